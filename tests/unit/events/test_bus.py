"""The bus: order, bounds, overflow, closing."""

from collections.abc import Sequence
from contextlib import ExitStack

import anyio
import pytest
from anyio.lowlevel import checkpoint

from pluginsvc.events.bus import _TURN, Bus, Lagged, Subscription
from pluginsvc.model.event import Event
from tests.support.records import event

pytestmark = pytest.mark.anyio


def numbered(seq: int, action: str = "enable") -> Event:
    return event(seq, seq=seq, action=action)


async def drain(subscription: Subscription) -> list[int]:
    with anyio.fail_after(5):
        return [found.seq async for found in subscription]


async def test_each_subscriber_gets_each_event_in_order() -> None:
    """Everybody gets everything that is published while subscribed, in order, and ends when the bus closes."""
    bus = Bus()
    with bus.subscribe() as early, bus.subscribe() as second:
        await bus.publish([numbered(1)])
        with bus.subscribe() as late:
            await bus.publish([numbered(2)])
            bus.close()
            assert [await drain(one) for one in (early, second, late)] == [[1, 2], [1, 2], [2]]
    assert len(bus) == 0


async def test_waiting_reader_is_woken() -> None:
    """A reader that waits gets the event as it is published."""
    bus = Bus()
    with bus.subscribe() as subscription:
        async with anyio.create_task_group() as group:

            async def read() -> None:
                with anyio.fail_after(5):
                    assert (await anext(subscription)).seq == 1

            group.start_soon(read)
            await checkpoint()
            await bus.publish([numbered(1)])


async def test_hands_over_to_a_reader_that_waits() -> None:
    """What is handed over wakes nobody; what is declined, and what comes before the reader waits again, is given."""
    bus = Bus()
    taken: list[int] = []
    given: list[int] = []

    def direct(found: Sequence[Event]) -> bool:
        if found[0].seq % 3 != 0:
            taken.extend(each.seq for each in found)
        return found[0].seq % 3 != 0

    async def read() -> None:
        while True:
            given.append((await anext(subscription)).seq)

    with bus.subscribe(direct=direct) as subscription:
        await bus.publish([numbered(1)])
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await checkpoint()
            for seq in range(2, 6):
                await bus.publish([numbered(seq)])
            assert (given, taken) == ([1], [2])
            await checkpoint()
            await bus.publish([numbered(7)])
            assert (given, taken) == ([1, 3, 4, 5], [2, 7])
            group.cancel_scope.cancel()


async def test_hands_nothing_over_once_the_wait_is_over() -> None:
    """When a wait is cancelled, what comes afterwards stays in the buffer."""
    bus = Bus()
    with bus.subscribe(direct=lambda _: True) as subscription:
        async with anyio.create_task_group() as group:
            group.start_soon(anext, subscription)
            await checkpoint()
            group.cancel_scope.cancel()
        await bus.publish([numbered(1)])
        assert (await anext(subscription)).seq == 1


async def test_a_gap_begins_after_what_was_handed_over() -> None:
    """A reader that lags resumes after the last event that was handed over or fits its buffer."""
    bus = Bus()
    with bus.subscribe(direct=lambda found: found[0].seq < 3, buffer=1) as subscription:
        async with anyio.create_task_group() as group:
            group.start_soon(anext, subscription)
            await checkpoint()
            for seq in range(1, 9):
                await bus.publish([numbered(seq)])
        with pytest.raises(Lagged) as caught:
            await anext(subscription)
        assert caught.value.after_seq == 3


async def test_overflow_delivers_the_buffer_then_tells_where_to_resume() -> None:
    """A full buffer is still delivered; then the reader is told the last number, and others never notice."""
    bus = Bus()
    with bus.subscribe(buffer=2) as slow, bus.subscribe() as fast:
        for seq in range(1, 6):
            await bus.publish([numbered(seq)])
        assert [(await anext(slow)).seq, (await anext(slow)).seq] == [1, 2]
        for _ in range(2):
            with pytest.raises(Lagged) as caught:
                await anext(slow)
            assert caught.value.after_seq == 2
        slow.rejoin()
        await bus.publish([numbered(6)])
        bus.close()
        assert await drain(slow) == [6]
        assert await drain(fast) == [1, 2, 3, 4, 5, 6]


async def test_unwanted_events_take_no_room() -> None:
    """Events that a subscriber does not want neither fill its buffer nor hold back where it resumes."""
    bus = Bus()
    with bus.subscribe(lambda found: found.action == "exit", buffer=1) as subscription:
        await bus.publish([numbered(1, "exit")])
        for seq in range(2, 50):
            await bus.publish([numbered(seq)])
        await bus.publish([numbered(50, "exit")])
        assert (await anext(subscription)).seq == 1
        with pytest.raises(Lagged) as caught:
            await anext(subscription)
        assert caught.value.after_seq == 49


async def test_overflown_subscriber_holds_no_memory() -> None:
    """After an overflow the bus has forgotten the subscriber until it rejoins."""
    bus = Bus()
    with bus.subscribe(buffer=1) as subscription:
        for seq in range(1, 1000):
            await bus.publish([numbered(seq)])
        assert len(bus) == 0
        assert len(subscription._buffer) == 1


async def test_left_and_late_subscribers() -> None:
    """A subscriber that has left gets nothing; one that comes after the close ends at once, also by rejoining."""
    bus = Bus()
    with bus.subscribe() as subscription:
        pass
    await bus.publish([numbered(1)])
    assert len(subscription._buffer) == 0
    bus.close()
    await bus.publish([numbered(2)])
    with bus.subscribe() as late:
        assert await drain(late) == []
        late.rejoin()
        assert await drain(late) == []


async def test_close_wakes_those_who_wait() -> None:
    """A reader that waits ends when the bus closes."""
    bus = Bus()
    with bus.subscribe() as subscription:
        async with anyio.create_task_group() as group:
            group.start_soon(drain, subscription)
            await checkpoint()
            bus.close()


async def test_cancelled_reader_loses_nothing() -> None:
    """Cancelling the wait, even at the moment of an event, leaves that event for the next wait."""
    bus = Bus()
    seen: list[int] = []
    with bus.subscribe() as subscription:

        async def wait(scope: anyio.CancelScope) -> None:
            with scope:
                while True:
                    seen.append((await anext(subscription)).seq)

        for seq in range(1, 40):
            scope = anyio.CancelScope()
            async with anyio.create_task_group() as group:
                group.start_soon(wait, scope)
                for _ in range(seq % 4):
                    await checkpoint()
                if seq % 2:
                    scope.cancel()
                    await bus.publish([numbered(seq)])
                else:
                    await bus.publish([numbered(seq)])
                    scope.cancel()
        bus.close()
        seen += await drain(subscription)
    assert seen == list(range(1, 40))


async def test_a_filter_is_asked_once_for_all_who_share_it() -> None:
    """Many events at once reach each subscriber in one go, and those with one filter get one and the same sequence."""
    bus = Bus()
    asked: list[int] = []
    got: list[Sequence[Event]] = []

    def wanted(found: Event) -> bool:
        asked.append(found.seq)
        return found.seq % 2 == 0

    def direct(found: Sequence[Event]) -> bool:
        got.append(found)
        return True

    async with anyio.create_task_group() as group:
        for _ in range(3):
            subscription = bus.subscribe(wanted, direct=direct)
            subscription.__enter__()
            group.start_soon(anext, subscription)
        await checkpoint()
        await bus.publish([numbered(seq) for seq in range(1, 6)])
        group.cancel_scope.cancel()
    assert asked == [1, 2, 3, 4, 5]
    assert [[found.seq for found in each] for each in got] == [[2, 4]] * 3
    assert got[0] is got[1] is got[2]


async def test_overflow_in_the_middle_of_many() -> None:
    """Of many events at once those that fit are kept, and the reader resumes after what it got or did not want."""
    bus = Bus()
    with bus.subscribe(lambda found: found.seq % 2 == 0, buffer=2) as subscription:
        await bus.publish([numbered(seq) for seq in range(1, 12)])
        assert [(await anext(subscription)).seq, (await anext(subscription)).seq] == [2, 4]
        with pytest.raises(Lagged) as caught:
            await anext(subscription)
        assert caught.value.after_seq == 5


async def test_publishing_gives_way_and_skips_who_left_meanwhile() -> None:
    """While many are served others get their turn; who leaves or comes then gets nothing of it."""
    bus = Bus()
    with ExitStack() as stack:
        everybody = [stack.enter_context(bus.subscribe()) for _ in range(2 * _TURN + 1)]
        late = bus.subscribe()

        async def meanwhile() -> None:
            everybody[-1].__exit__()
            stack.enter_context(late)

        async with anyio.create_task_group() as group:
            group.start_soon(meanwhile)
            await bus.publish([numbered(1)])
        assert [len(each) for each in everybody] == [1] * (2 * _TURN) + [0]
        assert len(late) == 0


async def test_depth_is_that_of_the_fullest() -> None:
    """The depth tells how many events wait in the fullest buffer."""
    bus = Bus()
    assert bus.depth == 0
    with bus.subscribe(lambda found: found.seq > 1), bus.subscribe():
        await bus.publish([numbered(1), numbered(2)])
        assert bus.depth == 2

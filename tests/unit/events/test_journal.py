"""Publishing from the journal, and following it: strict order, no gap, no duplicate, whatever the interleaving."""

import itertools
import random
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from pluginsvc.events.bus import Bus
from pluginsvc.events.journal import _BATCH, EventsPruned, Publisher, follow
from pluginsvc.model.event import Event
from pluginsvc.state import journal
from pluginsvc.state.database import Database, StateError
from tests.support.records import event, keep

pytestmark = pytest.mark.anyio
T = TypeVar("T")


async def commit(database: Database, count: int, action: str = "enable") -> list[Event]:
    def work(db: sqlite3.Connection) -> list[Event]:
        return [journal.append(db, event(n, action=action)) for n in range(count)]

    return await database.write(work)


async def take(events: AsyncIterator[Event], count: int) -> list[int]:
    with anyio.fail_after(10):
        return [(await anext(events)).seq for _ in range(count)]


async def rest(events: AsyncIterator[Event]) -> list[int]:
    with anyio.fail_after(10):
        return [found.seq async for found in events]


async def published_up_to(bus: Bus, database: Database) -> None:
    """Return when the bus has carried all that is committed."""
    with bus.subscribe(lambda found: found.action == "mark") as subscription, anyio.fail_after(10):
        await commit(database, 1, "mark")
        await anext(subscription)


# the publisher


async def test_publishes_in_order_from_the_start_on(database: Database, bus: Bus) -> None:
    """What was committed before the start is history; what comes after is published in order, over many batches."""
    await commit(database, 3)
    async with anyio.create_task_group() as group:
        await group.start(lambda *, task_status: Publisher(database, bus).run(task_status=task_status))
        with bus.subscribe(buffer=10_000) as subscription:
            for count in (1, _BATCH, _BATCH * 2 + 1, 1):
                await commit(database, count)
            assert await take(subscription, _BATCH * 3 + 3) == list(range(4, _BATCH * 3 + 7))
        group.cancel_scope.cancel()


@pytest.mark.usefixtures("publishing")
async def test_rolled_back_events_are_never_seen(database: Database, bus: Bus) -> None:
    """An event whose transaction failed is not published."""

    def fails(db: sqlite3.Connection) -> None:
        journal.append(db, event(1, action="ghost"))
        raise KeyError

    async with follow(database, bus) as events:
        with pytest.raises(KeyError):
            await database.write(fails)
        await commit(database, 1, "real")
        with anyio.fail_after(5):
            assert (await anext(events)).action == "real"


async def test_publisher_rests_when_there_is_nothing(tmp_path: Path, bus: Bus) -> None:
    """Between commits the publisher reads nothing."""

    class Counting(Database):
        reads = 0

        async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
            self.reads += 1
            return await super().read(work)

    database = await Counting.open(tmp_path / "counting.db")
    async with anyio.create_task_group() as group:
        await group.start(lambda *, task_status: Publisher(database, bus).run(task_status=task_status))
        await published_up_to(bus, database)
        for _ in range(20):
            await database.write(journal.last_seq)
        # the start, and the batch, which being short has no other behind it
        assert database.reads == 2
        group.cancel_scope.cancel()
    await database.close()


# following


@pytest.mark.usefixtures("publishing")
async def test_without_bounds_only_the_present(database: Database, bus: Bus) -> None:
    """Without bounds there is no history; being inside the block means being subscribed."""
    await commit(database, 3)
    await published_up_to(bus, database)
    async with follow(database, bus) as events:
        await commit(database, 2)
        assert await take(events, 2) == [5, 6]
        bus.close()
        assert await rest(events) == []


@pytest.mark.usefixtures("publishing")
async def test_history_then_present(database: Database, bus: Bus) -> None:
    """With a bound the reader gets the history from there, then what happens, each once."""
    first = await commit(database, 5)
    for bounds, start in (
        ({"after_seq": 0}, 1),
        ({"after_seq": 3}, 4),
        ({"after_seq": 5}, 6),
        ({"since_ns": first[1].time_ns}, 2),
        ({"since_ns": 0}, 1),
        ({"since_ns": first[1].time_ns, "after_seq": 3}, 4),
    ):
        last = await database.read(journal.last_seq)
        async with follow(database, bus, **bounds) as events:  # type: ignore[arg-type]  # mypy mixes the values' types
            await commit(database, 2)
            assert await take(events, last + 3 - start) == list(range(start, last + 3))


async def test_past_until_ends_after_the_history(database: Database, bus: Bus) -> None:
    """With an end in the past the iterator ends by itself, both bounds included, though nobody publishes."""
    written = await commit(database, _BATCH * 2 + 5)
    async with follow(database, bus, until_ns=written[3].time_ns) as events:
        assert await rest(events) == [1, 2, 3, 4]
    async with follow(database, bus, since_ns=written[2].time_ns, until_ns=written[3].time_ns) as events:
        assert await rest(events) == [3, 4]
    async with follow(database, bus, until_ns=time.time_ns()) as events:
        assert await rest(events) == list(range(1, _BATCH * 2 + 6))


@pytest.mark.usefixtures("publishing")
async def test_future_until_ends_at_that_moment(database: Database, bus: Bus) -> None:
    """With an end in the future the iterator gives what happens until then, and ends then."""
    until = time.time_ns() + 150_000_000
    async with follow(database, bus, until_ns=until) as events:
        await commit(database, 2)
        assert await rest(events) == [1, 2]
    assert time.time_ns() >= until


async def test_future_until_includes_what_nobody_published_yet(database: Database, bus: Bus) -> None:
    """An event that is committed in time and not yet published at the end is still given."""
    seen: list[int] = []

    async def read(events: AsyncIterator[Event]) -> None:
        seen.extend(await rest(events))

    async with (
        follow(database, bus, until_ns=time.time_ns() + 300_000_000) as events,
        anyio.create_task_group() as group,
    ):
        group.start_soon(read, events)
        while events._replaying:
            await checkpoint()
        await commit(database, 2)
    assert seen == [1, 2]


@pytest.mark.usefixtures("publishing")
@pytest.mark.parametrize("until", [2**63, 10**40])
async def test_absurd_until_is_a_long_time(database: Database, bus: Bus, until: int) -> None:
    """An end that no clock reaches does not break the wait."""
    async with follow(database, bus, until_ns=until) as events:
        await commit(database, 1)
        assert await take(events, 1) == [1]


@pytest.mark.usefixtures("publishing")
async def test_wanted_applies_to_history_and_present(database: Database, bus: Bus) -> None:
    """Events that are not wanted are left out of both, and a slow reader's buffer."""
    for action in ("a", "b", "a", "b"):
        await commit(database, 1, action)
    async with follow(database, bus, after_seq=0, wanted=lambda found: found.action == "b", buffer=1) as events:
        for action in ("a", "b", "b", "a", "b"):
            await commit(database, 1, action)
        assert await take(events, 5) == [2, 4, 6, 7, 9]
        bus.close()
        assert await rest(events) == []


@pytest.mark.usefixtures("publishing")
async def test_slow_reader_catches_up_in_bounded_memory(database: Database, bus: Bus) -> None:
    """A reader that stalls for thousands of events gets them all later, and holds a buffer and a batch at most."""
    async with follow(database, bus, buffer=4) as events:
        for _ in range(30):
            await commit(database, 100)
        await published_up_to(bus, database)
        assert len(bus) == 0
        seen = await take(events, 1500)
        held = len(events._batch) + len(events.subscription._buffer)
        assert held <= _BATCH + 4
        assert seen + await take(events, 1501) == list(range(1, 3002))


@pytest.mark.usefixtures("publishing")
async def test_pruned_history_is_an_error_not_a_gap(database: Database, bus: Bus) -> None:
    """A reader whose next events are gone is told so, at the start and in the middle; a start by time is not."""
    await commit(database, 10)
    await database.write(lambda db: keep(db, 5))
    with pytest.raises(EventsPruned) as caught:
        async with follow(database, bus, after_seq=4):
            raise AssertionError
    assert (caught.value.after_seq, caught.value.oldest_seq) == (4, 6)
    async with follow(database, bus, after_seq=5) as events:
        assert await take(events, 1) == [6]
    async with follow(database, bus, since_ns=0) as events:
        assert await take(events, 5) == [6, 7, 8, 9, 10]
    async with follow(database, bus, since_ns=0) as events:
        await commit(database, _BATCH * 2)
        await take(events, 1)
        await database.write(lambda db: keep(db, 5))
        with pytest.raises(EventsPruned):
            await rest(events)
    await published_up_to(bus, database)


@pytest.mark.usefixtures("publishing")
async def test_pruning_under_a_slow_reader(database: Database, bus: Bus) -> None:
    """A slow reader is told when what it missed is gone, but not when only unwanted events went."""
    async with follow(database, bus, buffer=1) as events:
        await commit(database, 500)
        await published_up_to(bus, database)
        await database.write(lambda db: keep(db, 5))
        assert await take(events, 1) == [1]
        with pytest.raises(EventsPruned, match="after number 1 "):
            await take(events, 1)
    async with follow(database, bus, wanted=lambda found: found.action == "b", buffer=1) as events:
        (first,) = await commit(database, 1, "b")
        await commit(database, 50, "a")
        (second,) = await commit(database, 1, "b")
        await published_up_to(bus, database)
        await database.write(lambda db: keep(db, 2))
        assert await take(events, 2) == [first.seq, second.seq]


@pytest.mark.usefixtures("publishing")
async def test_cancelled_wait_loses_nothing(database: Database, bus: Bus) -> None:
    """A reader whose wait is cancelled again and again, in replay and live, still gets each event once."""
    seen: list[int] = []
    async with follow(database, bus, after_seq=0, buffer=2) as events:
        for number in range(60):
            await commit(database, 1)
            with anyio.CancelScope() as scope:
                scope.deadline = anyio.current_time() + (number % 3) * 0.0005
                while True:
                    seen.append((await anext(events)).seq)
        await published_up_to(bus, database)
        bus.close()
        seen += await rest(events)
    assert seen == list(range(1, 62))


# handing over past the iterator


async def reader_waits(events: AsyncIterator[Event]) -> None:
    """Return when the task that iterates waits for what happens next."""
    with anyio.fail_after(5):
        while events.subscription._waiting is None:  # type: ignore[attr-defined]  # looks inside
            await checkpoint()


class Hands:
    """Notes the numbers of events: those handed over past the iterator, and those the iterator gave."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.given: list[int] = []

    def take(self, found: Sequence[Event]) -> bool:
        self.taken.extend(each.seq for each in found)
        return True

    async def read(self, events: AsyncIterator[Event]) -> None:
        self.given.extend(await rest(events))


async def test_handing_over_knows_what_the_history_held(database: Database, bus: Bus) -> None:
    """What the reader has from the journal is not handed over when it is published only then."""
    written = await commit(database, 4)
    hands = Hands()

    async with follow(database, bus, after_seq=1, direct=hands.take) as events, anyio.create_task_group() as group:
        group.start_soon(hands.read, events)
        await reader_waits(events)
        for found in written:
            await bus.publish([found])
        await bus.publish(await commit(database, 1))
        bus.close()
    assert (hands.given, hands.taken) == ([2, 3, 4], [5])


@pytest.mark.usefixtures("publishing")
async def test_nothing_is_handed_over_past_the_end(database: Database, bus: Bus) -> None:
    """An event later than the end is not handed over but ends the iterator; one at the end is the last."""
    (first,) = await commit(database, 1)
    end = first.time_ns + 3_600_000_000_000
    hands = Hands()
    async with (
        follow(database, bus, since_ns=end, until_ns=end, direct=hands.take) as events,
        anyio.create_task_group() as group,
    ):
        group.start_soon(rest, events)
        await reader_waits(events)
        await bus.publish([event(2, seq=2, time_ns=end)])
        await bus.publish([event(3, seq=3, time_ns=end + 1)])
    assert hands.taken == [2]


@pytest.mark.usefixtures("publishing")
async def test_what_was_handed_over_is_not_read_again_at_the_end(database: Database, bus: Bus) -> None:
    """The look into the journal when the time is up does not repeat what was handed over."""
    hands = Hands()

    until = time.time_ns() + 150_000_000
    async with follow(database, bus, until_ns=until, direct=hands.take) as events, anyio.create_task_group() as group:
        group.start_soon(hands.read, events)
        await reader_waits(events)
        await commit(database, 3)
    assert (hands.given, hands.taken) == ([], [1, 2, 3])


@settings(max_examples=80, deadline=None)
@given(
    commits=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 12)), min_size=1, max_size=12),
    takes=st.lists(st.booleans(), min_size=1, max_size=12),
    pauses=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    start=st.none() | st.integers(0, 3),
    buffer=st.integers(1, 4),
)
async def test_any_interleaving_of_handing_over(
    commits: list[tuple[int, int]], takes: list[bool], pauses: list[int], start: int | None, buffer: int
) -> None:
    """However a reader pauses and takes or declines what it is handed, it gets each event once and in order."""
    taking, pausing = itertools.cycle(takes), itertools.cycle(pauses)
    seen: list[int] = []

    def direct(found: Sequence[Event]) -> bool:
        if took := next(taking):
            seen.extend(each.seq for each in found)
        return took

    async def read(events: AsyncIterator[Event]) -> None:
        with anyio.fail_after(10):
            async for found in events:
                seen.append(found.seq)
                for _ in range(next(pausing)):
                    await checkpoint()

    with tempfile.TemporaryDirectory() as folder:
        database, bus = await Database.open(Path(folder) / "state.db"), Bus()
        try:
            await commit(database, 3)
            async with anyio.create_task_group() as group:
                await group.start(lambda *, task_status: Publisher(database, bus).run(task_status=task_status))
                async with (
                    follow(database, bus, after_seq=start, direct=direct, buffer=buffer) as events,
                    anyio.create_task_group() as readers,
                ):
                    readers.start_soon(read, events)
                    for count, turns in commits:
                        await commit(database, count)
                        for _ in range(turns):
                            await checkpoint()
                    await published_up_to(bus, database)
                    bus.close()
                last = await database.read(journal.last_seq)
                group.cancel_scope.cancel()
        finally:
            await database.close()
    assert seen == list(range((3 if start is None else start) + 1, last + 1))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.integers(1, 6)),
        st.tuples(st.just("take"), st.integers(1, 6)),
        st.tuples(st.just("turn"), st.integers(1, 8)),
        st.tuples(st.just("publish"), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=80, deadline=None)
@given(steps=STEPS, before=st.integers(0, 6), start=st.none() | st.integers(0, 6), buffer=st.integers(1, 4))
async def test_any_interleaving(steps: list[tuple[str, int]], before: int, start: int | None, buffer: int) -> None:
    """Whatever the order of commits, publishing and reading, a reader gets exactly what follows its start."""
    with tempfile.TemporaryDirectory() as folder:
        database, bus = await Database.open(Path(folder) / "state.db"), Bus()
        try:
            await commit(database, before)
            async with anyio.create_task_group() as group:
                await group.start(lambda *, task_status: Publisher(database, bus).run(task_status=task_status))
                start = None if start is None else min(start, before)
                first = (before if start is None else start) + 1
                seen: list[int] = []
                async with follow(database, bus, after_seq=start, buffer=buffer) as events:
                    for step, number in steps:
                        last = await database.read(journal.last_seq)
                        if step == "commit":
                            await commit(database, number)
                        elif step == "publish":
                            await published_up_to(bus, database)
                        elif step == "turn":
                            for _ in range(number):
                                await checkpoint()
                        else:
                            seen += await take(events, min(number, last + 1 - first - len(seen)))
                    await published_up_to(bus, database)
                    bus.close()
                    seen += await rest(events)
                assert seen == list(range(first, await database.read(journal.last_seq) + 1))
                group.cancel_scope.cancel()
        finally:
            await database.close()


@pytest.mark.usefixtures("publishing")
async def test_many_writers_and_readers(database: Database, bus: Bus) -> None:
    """Four writers and twelve readers that join at any moment: every reader sees every number after its start, once."""
    chance = random.Random(7)
    total = 400
    done: list[int] = []

    async def write() -> None:
        for _ in range(total // 4):
            await commit(database, 1)
            for _ in range(chance.randrange(4)):
                await checkpoint()

    async def read(start: int) -> None:
        with anyio.fail_after(20):
            while await database.read(journal.last_seq) < start:
                await checkpoint()
            async with follow(database, bus, after_seq=start, buffer=chance.randrange(1, 5)) as events:
                expected = start
                while expected < total:
                    expected += 1
                    assert (await anext(events)).seq == expected
                    for _ in range(chance.randrange(3)):
                        await checkpoint()
        done.append(start)

    async with anyio.create_task_group() as group:
        for number in range(12):
            group.start_soon(read, number * 15)
        for _ in range(4):
            group.start_soon(write)
    assert len(done) == 12


async def test_a_reader_from_another_journal_is_told(database: Database, bus: Bus) -> None:
    """Numbers that this journal never gave are an error: silence would hide all that happens until they come up."""
    await commit(database, 3)
    with pytest.raises(EventsPruned, match="new one") as caught:
        async with follow(database, bus, after_seq=4):
            raise AssertionError
    assert (caught.value.after_seq, caught.value.oldest_seq) == (4, 1)


@pytest.mark.usefixtures("publishing")
async def test_position_moves_with_what_is_not_wanted(database: Database, bus: Bus) -> None:
    """A reader that wants little still knows up to where it has all that it wants."""
    async with follow(database, bus, after_seq=0, wanted=lambda found: found.action == "b") as events:
        assert events.position == 0
        async with anyio.create_task_group() as group:
            group.start_soon(anext, events)
            await reader_waits(events)
            await commit(database, 5, "a")
            await published_up_to(bus, database)
            assert events.position == 6
            await commit(database, 1, "b")
        assert events.position == 7


async def test_what_was_committed_before_the_end_is_given(database: Database, bus: Bus) -> None:
    """A reader that knows where it is gets what was committed and not yet published when the bus closed."""
    async with follow(database, bus, after_seq=0) as events, anyio.create_task_group() as group:
        hands = Hands()
        group.start_soon(hands.read, events)
        await reader_waits(events)
        await commit(database, 3)
        bus.close()
    assert hands.given == [1, 2, 3]


class FailingOnce(Database):
    """Fails one read of the journal."""

    fails = 0

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self.fails:
            self.fails -= 1
            raise StateError(self.path, "SQLITE_IOERR", "scripted")
        return await super().read(work)


async def test_publishing_goes_on_after_trouble(tmp_path: Path, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that cannot be read for a moment ends nothing, and nothing of it is left out."""
    monkeypatch.setattr("pluginsvc.events.journal._RETRY", 0.001)
    database = await FailingOnce.open(tmp_path / "state.db")
    async with anyio.create_task_group() as group:
        await group.start(lambda *, task_status: Publisher(database, bus).run(task_status=task_status))
        with bus.subscribe() as subscription, anyio.fail_after(5):
            database.fails = 2
            await commit(database, 3)
            assert [(await anext(subscription)).seq for _ in range(3)] == [1, 2, 3]
        group.cancel_scope.cancel()
    assert database.fails == 0
    await database.close()

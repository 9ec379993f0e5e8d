"""In-process publish and subscribe: publishing waits for nobody, who is slow learns where to resume (design D13)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

import anyio
import anyio.lowlevel

from pluginsvc import metrics
from pluginsvc.errors import Unavailable
from pluginsvc.model.event import Event

_TURN = 128
"""Subscribers that are served before others get their turn on the loop: less than a millisecond."""


class Lagged(Unavailable):
    """A subscriber was too slow for its buffer; the journal has what it missed.

    Attributes:
        after_seq: every event up to this number was delivered or not wanted.
    """

    def __init__(self, after_seq: int) -> None:
        self.after_seq = after_seq
        super().__init__(
            f"events after number {after_seq} came faster than they were read: replay them from the journal"
        )


def everything(event: Event) -> bool:
    """Want every event."""
    return True


def decline(_events: Sequence[Event]) -> bool:
    """Leave every event to the buffer."""
    return False


class Subscription:
    """One subscriber's view of the bus: a context manager, and an iterator for one task.

    Events come from entering on. When the buffer overflows, what is in it is still delivered, and then ``Lagged`` is
    raised. Iteration ends when the bus closes.

    Attributes:
        wanted: which events it takes.
        seen: every event up to this number was handed over, is in the buffer, or is not wanted.
    """

    __slots__ = ("_buffer", "_bus", "_closed", "_direct", "_lagged", "_limit", "_waiting", "seen", "wanted")

    def __init__(
        self,
        bus: Bus,
        wanted: Callable[[Event], bool],
        direct: Callable[[Sequence[Event]], bool],
        limit: int,
    ) -> None:
        self._bus, self.wanted, self._direct, self._limit = bus, wanted, direct, limit
        self._buffer: deque[Event] = deque()
        self.seen = 0
        self._lagged = False
        self._closed = False
        # set as long as the reader waits and nothing has woken it
        self._waiting: anyio.Event | None = None

    def __enter__(self) -> Self:
        self._bus._join(self)  # noqa: SLF001 - the two classes are one mechanism
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bus._leave(self)  # noqa: SLF001 - as above
        self._buffer.clear()

    def __len__(self) -> int:
        return len(self._buffer)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Return the next event; being cancelled loses none.

        Raises:
            Lagged: the buffer has overflowed.
        """
        while not self._buffer:
            if self._lagged:
                raise Lagged(self.seen)
            if self._closed:
                raise StopAsyncIteration
            self._waiting = waiting = anyio.Event()
            try:
                await waiting.wait()
            finally:
                self._waiting = None
        return self._buffer.popleft()

    def rejoin(self) -> None:
        """After ``Lagged``: take events again, from now on; replay the journal after this, not before."""
        self._lagged = False
        self._bus._join(self)  # noqa: SLF001 - as above

    def offer(self, events: Sequence[Event], last_seq: int) -> None:
        """Take events that are wanted, as far as there is room; for the bus.

        Args:
            events: in order; may be none.
            last_seq: number of the last that was published with them, wanted or not.
        """
        # while the reader waits it has all that came before: what is handed over past the buffer keeps the order
        if events and not (self._waiting is not None and self._direct(events)):
            room = self._limit - len(self._buffer)
            self._buffer.extend(events[:room])
            if self._buffer and self._waiting is not None:
                self._rouse()
            if len(events) > room:
                self._lagged = True
                # what is before the first that has no room is here, or is not wanted
                self.seen = max(self.seen, events[room].seq - 1)
                if self._limit > 1:
                    # room for one is for those who only want to be woken
                    metrics.BUS_OVERFLOWS.inc()
                self._bus._leave(self)  # noqa: SLF001 - as above
                return
        self.seen = last_seq

    def end(self) -> None:
        """End the iteration after what is in the buffer; for the bus."""
        self._closed = True
        self._rouse()

    def _rouse(self) -> None:
        if self._waiting is not None:
            self._waiting.set()
            self._waiting = None


class Bus:
    """Hands each event to every subscriber that wants it; events come in the order of their numbers."""

    def __init__(self) -> None:
        # a dict keeps the order of joining and leaves in constant time
        self._subscriptions: dict[Subscription, None] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._subscriptions)

    @property
    def depth(self) -> int:
        """Return how many events wait in the fullest buffer."""
        return max(map(len, self._subscriptions), default=0)

    async def publish(self, events: Sequence[Event]) -> None:
        """Hand on events that have their numbers, in order, at least one; waits for no subscriber.

        Many events at once cost little more than one: each subscriber gets all that it wants in one go, and those
        with the same ``wanted`` share one sequence. One task publishes at a time.
        """
        chosen: dict[Callable[[Event], bool], Sequence[Event]] = {everything: events}
        last_seq = events[-1].seq
        for number, subscription in enumerate(tuple(self._subscriptions), 1):
            # it may have left while others had their turn
            if subscription in self._subscriptions:
                wanted = subscription.wanted
                mine = chosen.get(wanted)
                if mine is None:
                    mine = chosen[wanted] = [event for event in events if wanted(event)]
                subscription.offer(mine, last_seq)
            if number % _TURN == 0:
                await anyio.lowlevel.checkpoint()

    def subscribe(
        self,
        wanted: Callable[[Event], bool] = everything,
        *,
        direct: Callable[[Sequence[Event]], bool] = decline,
        buffer: int = 1024,
    ) -> Subscription:
        """Return a subscription; it takes events once it is entered.

        Args:
            wanted: a pure function that never fails; what it refuses takes no room.
            direct: offered wanted events while the iterator waits for one, without waking its task; returns whether
                it took them all, which the iterator then does not give; it takes all or none. It neither waits nor
                fails.
            buffer: how many events may wait, at least 1.
        """
        return Subscription(self, wanted, direct, buffer)

    def close(self) -> None:
        """End every subscription, also those yet to come, after what is in its buffer."""
        self._closed = True
        for subscription in tuple(self._subscriptions):
            self._leave(subscription)
            subscription.end()

    def _join(self, subscription: Subscription) -> None:
        if self._closed:
            subscription.end()
        else:
            self._subscriptions[subscription] = None

    def _leave(self, subscription: Subscription) -> None:
        self._subscriptions.pop(subscription, None)

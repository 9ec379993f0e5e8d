"""In-process publish and subscribe: publishing never waits, a slow subscriber learns where to resume (design D13)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Self

import anyio

from pluginsvc.errors import Unavailable
from pluginsvc.model.event import Event


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


def decline(_event: Event) -> bool:
    """Leave every event to the buffer."""
    return False


class Subscription:
    """One subscriber's view of the bus: a context manager, and an iterator for one task.

    Events come from entering on. When the buffer overflows, what is in it is still delivered, and then ``Lagged`` is
    raised. Iteration ends when the bus closes.
    """

    __slots__ = ("_buffer", "_bus", "_closed", "_direct", "_lagged", "_limit", "_seen", "_waiting", "_wanted")

    def __init__(self, bus: Bus, wanted: Callable[[Event], bool], direct: Callable[[Event], bool], limit: int) -> None:
        self._bus, self._wanted, self._direct, self._limit = bus, wanted, direct, limit
        self._buffer: deque[Event] = deque()
        self._seen = 0
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

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Return the next event; being cancelled loses none.

        Raises:
            Lagged: the buffer has overflowed.
        """
        while not self._buffer:
            if self._lagged:
                raise Lagged(self._seen)
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

    def offer(self, event: Event) -> None:
        """Take an event if it is wanted and there is room; for the bus."""
        # while the reader waits it has all that came before: what is handed over past the buffer keeps the order
        if self._wanted(event) and not (self._waiting is not None and self._direct(event)):
            if len(self._buffer) >= self._limit:
                self._lagged = True
                self._bus._leave(self)  # noqa: SLF001 - as above
                return
            self._buffer.append(event)
            self._rouse()
        self._seen = event.seq

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

    def publish(self, event: Event) -> None:
        """Hand ``event``, which has its number, to the subscribers; never waits."""
        for subscription in tuple(self._subscriptions):
            subscription.offer(event)

    def subscribe(
        self,
        wanted: Callable[[Event], bool] = everything,
        *,
        direct: Callable[[Event], bool] = decline,
        buffer: int = 1024,
    ) -> Subscription:
        """Return a subscription; it takes events once it is entered.

        Args:
            wanted: a pure function that never fails; what it refuses takes no room.
            direct: offered each wanted event while the iterator waits for one, without waking its task; returns
                whether it took the event, which the iterator then does not give. It neither waits nor fails.
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

"""From the journal to the bus, and from both to a reader: in order, with no gap and no duplicate (design D1, D13)."""

from __future__ import annotations

import math
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Self

import anyio
import anyio.abc
import structlog

from pluginsvc import metrics
from pluginsvc.errors import NotFound
from pluginsvc.events.bus import Bus, Lagged, decline, everything
from pluginsvc.events.forms import Origin
from pluginsvc.model.event import Event
from pluginsvc.state import journal
from pluginsvc.state.database import Database, StateError

_log = structlog.get_logger()
_GAUGES = (metrics.JOURNAL_EVENTS, metrics.JOURNAL_BYTES, metrics.JOURNAL_OLDEST, metrics.JOURNAL_NEWEST)
_BATCH = 128
_RETRY = 1.0
_LONGEST_WAIT = 3600.0
"""Seconds after which a wait for a far moment looks at the clock again, which may have been set."""


class EventsPruned(NotFound):
    """The journal does not go on from where a reader is: too much was pruned, or it is another journal.

    Attributes:
        after_seq: the last number the reader has.
        oldest_seq: the oldest number that is kept; not above ``after_seq`` when that was never given.
    """

    def __init__(self, after_seq: int, oldest_seq: int) -> None:
        self.after_seq, self.oldest_seq = after_seq, oldest_seq
        what = "are no longer kept" if oldest_seq > after_seq else "are none of this journal, which is a new one"
        super().__init__(
            f"events after number {after_seq} {what}, the oldest is {oldest_seq}: "
            "read the present state and follow from there"
        )


class Publisher:
    """Carries what is committed to the bus; the only one who publishes."""

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database, self._bus = database, bus
        self._wake = anyio.Event()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Publish each event that is committed from now on, in order; ends only by cancellation.

        A journal that cannot be read is tried again, for readers of what is in it need not suffer.

        Raises:
            StateError: the journal cannot be read at the start.
        """
        self._database.watch(self._on_commit)
        published = await self._database.read(journal.last_seq)
        task_status.started()
        while True:
            await self._wake.wait()
            # set anew before the read: a commit after the read wakes again
            self._wake = anyio.Event()
            while True:
                try:
                    batch = await self._database.read(partial(journal.after, seq=published, limit=_BATCH))
                except StateError as exc:
                    _log.error("events.not_published", after=published, error=str(exc), retry_seconds=_RETRY)
                    await anyio.sleep(_RETRY)
                    continue
                if batch:
                    await self._bus.publish(batch)
                    published = batch[-1].seq
                    _measure(batch)
                if len(batch) < _BATCH:
                    break

    def _on_commit(self) -> None:
        self._wake.set()


class EventLog:
    """What readers outside need of the journal and the bus."""

    def __init__(self, database: Database, bus: Bus, origin: Origin) -> None:
        self.origin = origin
        self._database, self._bus = database, bus
        self.follow = partial(follow, database, bus)

    async def number_at(self, since_ns: int | None) -> int:
        """Return the number after which events from this time on begin; of the last event for ``None``.

        Raises:
            StateError: the journal cannot be read.
        """
        return await self._database.read(
            journal.last_seq if since_ns is None else partial(journal.number_at, since_ns=since_ns)
        )

    async def measure(self) -> None:
        """Set the gauges that tell how much the journal holds and how the bus does.

        Those of a journal that cannot be read are no numbers: then the other metrics matter all the more.
        """

        def work(db: sqlite3.Connection) -> tuple[journal.Size, int, int]:
            return journal.size(db), journal.oldest_seq(db), journal.last_seq(db)

        try:
            size, oldest, newest = await self._database.read(work)
        except StateError as exc:
            _log.warning("journal.not_measured", error=str(exc))
            found: tuple[float, ...] = (math.nan,) * 4
        else:
            found = *size, oldest, newest
        for gauge, value in zip(_GAUGES, found, strict=True):
            gauge.set(value)
        metrics.BUS_SUBSCRIBERS.set(len(self._bus))
        metrics.BUS_DEPTH.set(self._bus.depth)


@asynccontextmanager
async def follow(
    database: Database,
    bus: Bus,
    *,
    since_ns: int | None = None,
    until_ns: int | None = None,
    after_seq: int | None = None,
    wanted: Callable[[Event], bool] = everything,
    direct: Callable[[Sequence[Event]], bool] = decline,
    buffer: int = 1024,
) -> AsyncIterator[EventReader]:
    """Give an iterator over events, for one task: history first if any bound is given, then what happens.

    Inside the block the reader is subscribed: it gets each event that is committed from then on. The iterator ends
    at ``until_ns``, or when the bus closes. A reader that is slow catches up from the journal; memory stays bounded.

    Args:
        database: holds the journal.
        bus: brings the present.
        since_ns: earliest time, inclusive, in nanoseconds since the epoch.
        until_ns: latest time, inclusive; what is in the past ends after the history.
        after_seq: the last number the reader knows.
        wanted: which events to give; a pure function that never fails.
        direct: offered what happens while the iterator waits for it, without waking its task; returns whether it took
            the events, all of them, which the iterator then does not give. It neither waits nor fails.
        buffer: how many events may wait in memory.

    Raises:
        EventsPruned: events after ``after_seq``, or after where a slow reader is, are gone; on entering or iterating.
        StateError: the journal cannot be read; while iterating.
    """
    reader = EventReader(
        database,
        bus,
        since_ns=since_ns,
        until_ns=until_ns,
        after_seq=after_seq,
        wanted=wanted,
        direct=direct,
        buffer=buffer,
    )
    with reader.subscription:
        if after_seq is not None:
            await database.read(reader.refuse_if_pruned)
        yield reader


class EventReader:
    """One reader: up to which number it was given all that it wants, and where the next comes from; see ``follow``.

    A plain iterator and no generator, so that a cancelled ``anext`` loses nothing and does not end it.

    Attributes:
        subscription: to be entered while it is read.
    """

    def __init__(
        self,
        database: Database,
        bus: Bus,
        *,
        since_ns: int | None,
        until_ns: int | None,
        after_seq: int | None,
        wanted: Callable[[Event], bool],
        direct: Callable[[Sequence[Event]], bool],
        buffer: int,
    ) -> None:
        self._database, self._wanted, self._direct = database, wanted, direct
        self.subscription = bus.subscribe(wanted, direct=self._hand_over, buffer=buffer)
        self._since_ns, self._until_ns = since_ns, until_ns
        self._position = after_seq or 0
        # whether the next read must find the journal unbroken after the position
        self._contiguous = after_seq is not None
        self._replaying = since_ns is not None or until_ns is not None or after_seq is not None
        self._batch: deque[Event] = deque()
        self._closed = self._done = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._done:
            while self._batch:
                event = self._batch.popleft()
                self._position = event.seq
                if self._wanted(event):
                    return event
            if self._replaying:
                await self._read()
            elif (live := await self._next()) is not None:
                self._position = live.seq
                return live
        raise StopAsyncIteration

    @property
    def position(self) -> int:
        """Return the number up to which everything that is wanted was given; 0: not known yet."""
        if self._replaying or self._batch or len(self.subscription):
            return self._position
        return max(self._position, self.subscription.seen)

    def refuse_if_pruned(self, db: sqlite3.Connection) -> None:
        """Raise unless the journal still holds all that follows the position."""
        oldest = journal.oldest_seq(db)
        if oldest > self._position + 1 or self._position > journal.last_seq(db):
            raise EventsPruned(self._position, oldest)

    async def _read(self) -> None:
        """Fetch the next batch of the past; an empty one ends the replay."""

        def work(db: sqlite3.Connection) -> list[Event]:
            if self._contiguous:
                self.refuse_if_pruned(db)
            return journal.between(
                db, since_ns=self._since_ns, until_ns=self._until_ns, after_seq=self._position, limit=_BATCH
            )

        # before the read: what is stamped earlier is in it, since the database's thread takes turns
        over = self._is_over()
        batch = await self._database.read(work)
        self._batch.extend(batch)
        if batch:
            self._contiguous = True
        else:
            self._replaying, self._done = False, over or self._closed

    async def _next(self) -> Event | None:
        """Wait for one live event past the position; ``None`` when there is something else to do first."""
        event = None
        try:
            if self._until_ns is None:
                event = await anext(self.subscription)
            else:
                with anyio.move_on_after(_remaining(self._until_ns)):
                    event = await anext(self.subscription)
        except StopAsyncIteration:
            self._position = self.position
            # one last look, if it is known from where: what was committed before need not have been published
            self._done = self._closed or not (self._contiguous or self._position)
            self._closed = self._replaying = self._contiguous = True
        except Lagged as lag:
            self._position = max(self._position, lag.after_seq)
            self.subscription.rejoin()
            self._replaying = self._contiguous = True
        else:
            if event is None:
                # at the end of the time the last events may be committed and not published yet
                self._replaying, self._contiguous = self._is_over(), False
            elif self._until_ns is not None and event.time_ns > self._until_ns:
                self._done = True
            elif event.seq > self._position:
                return event
        return None

    def _hand_over(self, events: Sequence[Event]) -> bool:
        """Give live events past the iterator, which waits; tell whether there is nothing left to do with them."""
        if events[0].seq <= self._position:
            # read from the journal before they were published
            events = [event for event in events if event.seq > self._position]
            if not events:
                return True
        if (self._until_ns is not None and events[-1].time_ns > self._until_ns) or not self._direct(events):
            return False
        self._position = events[-1].seq
        return True

    def _is_over(self) -> bool:
        return self._until_ns is not None and time.time_ns() > self._until_ns


def _remaining(until_ns: int) -> float:
    return min(max((until_ns - time.time_ns()) / 1e9, 0.0), _LONGEST_WAIT)


def _measure(events: Sequence[Event]) -> None:
    now = time.time_ns()
    for event in events:
        metrics.EVENT_DELIVERY.observe(max(0, now - event.time_ns) / 1e9)

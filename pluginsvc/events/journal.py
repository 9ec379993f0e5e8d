"""From the journal to the bus, and from both to a reader: in order, with no gap and no duplicate (design D1, D13)."""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Self

import anyio
import anyio.abc

from pluginsvc.errors import NotFound
from pluginsvc.events.bus import Bus, Lagged, decline, everything
from pluginsvc.model.event import Event
from pluginsvc.state import journal
from pluginsvc.state.database import Database

_BATCH = 128
_LONGEST_WAIT = 3600.0
"""Seconds after which a wait for a far moment looks at the clock again, which may have been set."""


class EventsPruned(NotFound):
    """Events that a reader still needs are no longer in the journal.

    Attributes:
        after_seq: the last number the reader has.
        oldest_seq: the oldest number that is kept.
    """

    def __init__(self, after_seq: int, oldest_seq: int) -> None:
        self.after_seq, self.oldest_seq = after_seq, oldest_seq
        super().__init__(
            f"events after number {after_seq} are no longer kept, the oldest is {oldest_seq}: "
            "read the present state and follow from there"
        )


class Publisher:
    """Carries what is committed to the bus; the only one who publishes."""

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database, self._bus = database, bus
        self._wake = anyio.Event()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Publish each event that is committed from now on, in order; ends only by cancellation.

        Raises:
            StateError: the journal cannot be read.
        """
        self._database.watch(self._on_commit)
        published = await self._database.read(journal.last_seq)
        task_status.started()
        while True:
            await self._wake.wait()
            # set anew before the read: a commit after the read wakes again
            self._wake = anyio.Event()
            while True:
                batch = await self._database.read(partial(journal.after, seq=published, limit=_BATCH))
                for event in batch:
                    self._bus.publish(event)
                    published = event.seq
                if len(batch) < _BATCH:
                    break

    def _on_commit(self) -> None:
        self._wake.set()


@asynccontextmanager
async def follow(
    database: Database,
    bus: Bus,
    *,
    since_ns: int | None = None,
    until_ns: int | None = None,
    after_seq: int | None = None,
    wanted: Callable[[Event], bool] = everything,
    direct: Callable[[Event], bool] = decline,
    buffer: int = 1024,
) -> AsyncIterator[AsyncIterator[Event]]:
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
            the event, which the iterator then does not give. It neither waits nor fails.
        buffer: how many events may wait in memory.

    Raises:
        EventsPruned: events after ``after_seq``, or after where a slow reader is, are gone; on entering or iterating.
        StateError: the journal cannot be read; while iterating.
    """
    reader = _Reader(
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


class _Reader:
    """The state of one reader: up to which number it was given all that it wants, and where the next comes from.

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
        direct: Callable[[Event], bool],
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
        self._done = False

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

    def refuse_if_pruned(self, db: sqlite3.Connection) -> None:
        """Raise unless the journal still holds all that follows the position."""
        oldest = journal.oldest_seq(db)
        if oldest > self._position + 1:
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
            self._replaying, self._done = False, over

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
            self._done = True
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

    def _hand_over(self, event: Event) -> bool:
        """Give one live event past the iterator, which waits; tell whether there is nothing left to do with it."""
        if event.seq <= self._position:
            return True
        if (self._until_ns is not None and event.time_ns > self._until_ns) or not self._direct(event):
            return False
        self._position = event.seq
        return True

    def _is_over(self) -> bool:
        return self._until_ns is not None and time.time_ns() > self._until_ns


def _remaining(until_ns: int) -> float:
    return min(max((until_ns - time.time_ns()) / 1e9, 0.0), _LONGEST_WAIT)

"""From the journal to a sink elsewhere: at least once, in order, from where it was when the daemon last ran."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import anyio
import anyio.abc
import structlog

from pluginsvc import metrics
from pluginsvc.errors import PluginsvcError, Unavailable
from pluginsvc.events.bus import Bus, Lagged, Subscription
from pluginsvc.model.event import Event, Gap
from pluginsvc.state import cursors, journal
from pluginsvc.state.database import Database, StateClosed

_log = structlog.get_logger()
_BATCH = 100
_FIRST_DELAY, _LONGEST_DELAY, _SPREAD = 0.1, 60.0, 0.1
_SEND_SECONDS = 60.0
"""Longest that a sink may take for a batch."""
_CLOSE_SECONDS = 5.0


class SinkFailed(Unavailable):
    """A sink did not take events; they are kept for it and offered again.

    Attributes:
        sink: its name.
        reason: what went wrong, without anything secret.
        retry_after: seconds for which the other side asks to be left alone; at most 60 are heeded.
    """

    def __init__(self, sink: str, reason: str, *, retry_after: float = 0.0) -> None:
        self.sink, self.reason, self.retry_after = sink, reason, retry_after
        super().__init__(f"the {sink} sink has not taken events: {reason}; they are kept and offered again")


class Sink(Protocol):
    """Takes events to somewhere else.

    Attributes:
        name: names its cursor, and it in logs and metrics.
    """

    name: str

    async def send(self, items: Sequence[Event | Gap]) -> None:
        """Hand on items in order, and return when all are safely there.

        Connects where it has to. After a failure the same items come again, perhaps with more after them, perhaps
        after a restart of the daemon: what can be told apart by its number is not to be doubled.

        Raises:
            SinkFailed: not all are certainly there.
        """
        ...

    async def close(self) -> None:
        """Give up connections and files; ``send`` may come again."""
        ...


async def deliver(
    sink: Sink, database: Database, bus: Bus, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Hand every event to a sink; ends when the bus has closed and the sink has all, or by cancellation.

    A sink that is new begins with what happens once this has started. The cursor is saved after each batch, so that
    what was handed on between a crash and the save before it comes twice, and nothing is lost. What was pruned before
    the sink could take it is told by a ``Gap``. Waits from 0.1 s, doubling to 60 s, between tries.

    Raises:
        StateError: the database failed before this has started.
    """
    with bus.subscribe(buffer=1) as news:
        taken = await _begin(sink.name, database)
        # there from the start: of a counter that appears with its first failure, nobody sees the increase
        metrics.SINK_FAILURES.labels(sink.name)
        metrics.SINK_EVENTS.labels(sink.name)
        metrics.SINK_SEQUENCE.labels(sink.name).set(taken)
        task_status.started()
        delay = _FIRST_DELAY
        try:
            while True:
                try:
                    items, last = await database.read(partial(_batch, after=taken))
                    if not items:
                        if not await _more(news):
                            return
                        continue
                    with anyio.fail_after(_SEND_SECONDS):
                        await sink.send(items)
                    await database.write(partial(cursors.put, name=sink.name, seq=last))
                except StateClosed:
                    return
                except Exception as exc:  # noqa: BLE001 - isolated: whatever fails here must not end other services
                    metrics.SINK_FAILURES.labels(sink.name).inc()
                    asked = min(exc.retry_after, _LONGEST_DELAY) if isinstance(exc, SinkFailed) else 0.0
                    pause = max(delay * random.uniform(1 - _SPREAD, 1 + _SPREAD), asked)  # noqa: S311 - no secret
                    _complain(sink.name, exc, pause)
                    await _close(sink)
                    await anyio.sleep(pause)
                    delay = min(delay * 2, _LONGEST_DELAY)
                else:
                    if delay > _FIRST_DELAY:
                        _log.info("sink.works_again", sink=sink.name, seq=last)
                    taken, delay = last, _FIRST_DELAY
                    metrics.SINK_EVENTS.labels(sink.name).inc(sum(isinstance(item, Event) for item in items))
                    metrics.SINK_SEQUENCE.labels(sink.name).set(taken)
        finally:
            with anyio.CancelScope(shield=True):
                await _close(sink)


async def _begin(name: str, database: Database) -> int:
    """Return up to which event a sink has taken them; a new one has taken all there are."""

    def work(db: sqlite3.Connection) -> int:
        seq = cursors.get(db, name)
        if seq is None:
            seq = journal.last_seq(db)
            cursors.put(db, name, seq)
        return seq

    return await database.write(work)


def _batch(db: sqlite3.Connection, after: int) -> tuple[list[Event | Gap], int]:
    """Return what comes after a number, and the number after which the next batch begins."""
    items: list[Event | Gap] = []
    oldest = journal.oldest_seq(db)
    if oldest > after + 1:
        items.append(Gap(after, oldest))
        after = oldest - 1
    items += journal.after(db, after, _BATCH)
    last = items[-1] if items else None
    return items, last.seq if isinstance(last, Event) else after


async def _more(news: Subscription) -> bool:
    """Wait until something is published, and return whether more may come; what it was, the journal says."""
    try:
        await anext(news)
    except Lagged:
        news.rejoin()
    except StopAsyncIteration:
        return False
    return True


def _complain(name: str, exc: Exception, pause: float) -> None:
    known = isinstance(exc, (PluginsvcError, TimeoutError))
    error = f"no answer for {_SEND_SECONDS:g} s" if isinstance(exc, TimeoutError) else str(exc)
    _log.warning("sink.failed", sink=name, error=error, retry_seconds=round(pause, 1), exc_info=None if known else exc)


async def _close(sink: Sink) -> None:
    try:
        with anyio.fail_after(_CLOSE_SECONDS):
            await sink.close()
    except Exception as exc:  # noqa: BLE001 - it is given up either way
        _log.warning("sink.not_closed", sink=sink.name, error=str(exc))

"""Subscribers inside the daemon: each has its own task and bounded buffer, and its failures harm nobody else."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.abc
import structlog

from pluginsvc import metrics
from pluginsvc.events.bus import Bus, Lagged, everything
from pluginsvc.events.journal import EventsPruned, follow
from pluginsvc.model.event import Event
from pluginsvc.state import journal
from pluginsvc.state.database import Database, StateClosed

_log = structlog.get_logger()
_RETRY = 1.0
"""Seconds until a subscriber that failed starts again."""


async def consume(
    name: str,
    handle: Callable[[Event], None],
    database: Database,
    bus: Bus,
    *,
    wanted: Callable[[Event], bool] = everything,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Hand each event that is committed from now on to ``handle``, in order, none twice; ends when the bus closes.

    After a failure it goes on where it was; an event on which ``handle`` fails twice is left out, and that is logged.

    Args:
        name: of the subscriber, for log and metrics.
        handle: neither waits nor blocks.
        database: holds the journal.
        bus: brings the present.
        wanted: which events; a pure function that never fails.
        task_status: for ``TaskGroup.start``.
    """
    metrics.SUBSCRIBER_FAILURES.labels(name)
    done = await database.read(journal.last_seq)
    tried = 0
    task_status.started()
    while True:
        trying = done
        try:
            async with follow(database, bus, after_seq=done, wanted=wanted) as events:
                async for event in events:
                    trying = event.seq
                    handle(event)
                    done = event.seq
            return
        except StateClosed:
            return
        except EventsPruned as exc:
            _log.error("subscriber.gap", subscriber=name, after=exc.after_seq, oldest=exc.oldest_seq)
            done = exc.oldest_seq - 1
        except Exception:  # noqa: BLE001 - isolated: whatever fails here must not end the daemon's other services
            metrics.SUBSCRIBER_FAILURES.labels(name).inc()
            if done < trying == tried:
                _log.exception("subscriber.skips", subscriber=name, seq=trying)
                done = trying
            else:
                _log.exception("subscriber.failed", subscriber=name, after=done, retry_seconds=_RETRY)
            tried = trying
            await anyio.sleep(_RETRY)


async def notify(
    name: str,
    callback: Callable[[], None],
    bus: Bus,
    *,
    wanted: Callable[[Event], bool] = everything,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Call ``callback`` after wanted events, once for those that come together; ends when the bus closes.

    Args:
        name: of the subscriber, for log and metrics.
        callback: does not wait; called at least once after the last of several events, and again for later ones
            even when it has failed.
        bus: brings the events.
        wanted: a pure function that never fails.
        task_status: for ``TaskGroup.start``.
    """
    metrics.SUBSCRIBER_FAILURES.labels(name)
    # one that waits stands for all that come while the callback runs
    with bus.subscribe(wanted, buffer=1) as subscription:
        task_status.started()
        while True:
            try:
                await anext(subscription)
            except StopAsyncIteration:
                return
            except Lagged:
                subscription.rejoin()
            try:
                callback()
            except Exception:  # noqa: BLE001 - isolated: a failing callback must not end this or other services
                metrics.SUBSCRIBER_FAILURES.labels(name).inc()
                _log.exception("subscriber.failed", subscriber=name)


def audit(event: Event) -> None:
    """Log one line for an event."""
    _log.info(
        "plugin.event",
        action=event.action,
        plugin=event.plugin_id,
        plugin_name=event.plugin_name,
        seq=event.seq,
        # under one key, so that no attribute can pass for another field
        attributes=event.attributes,
    )


def count(event: Event) -> None:
    """Count an event for the metrics."""
    metrics.EVENTS.labels(event.action).inc()

"""Subscribers inside the daemon: service tasks of their own, whose failures harm nobody else."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.abc
import structlog

from pluginsvc.events.bus import Bus, Lagged
from pluginsvc.events.journal import EventsPruned, follow
from pluginsvc.model.event import Event
from pluginsvc.state import journal
from pluginsvc.state.database import Database, StateClosed

_log = structlog.get_logger()
_RETRY = 1.0
"""Seconds until a subscriber that failed starts again."""


async def audit_log(
    database: Database, bus: Bus, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Log one line per event that is committed from now on, none twice; ends when the bus closes.

    After a failure it goes on where it was.
    """
    logged = await database.read(journal.last_seq)
    task_status.started()
    while True:
        try:
            async with follow(database, bus, after_seq=logged) as events:
                async for event in events:
                    _log_event(event)
                    logged = event.seq
            return
        except StateClosed:
            return
        except EventsPruned as exc:
            _log.error("audit.gap", after=exc.after_seq, oldest=exc.oldest_seq)
            logged = exc.oldest_seq - 1
        except Exception:  # noqa: BLE001 - isolated: whatever fails here must not end the daemon's other services
            _log.exception("audit.failed", after=logged, retry_seconds=_RETRY)
            await anyio.sleep(_RETRY)


def _log_event(event: Event) -> None:
    _log.info(
        "plugin.event",
        action=event.action,
        plugin=event.plugin_id,
        plugin_name=event.plugin_name,
        seq=event.seq,
        # under one key, so that no attribute can pass for another field
        attributes=event.attributes,
    )


async def notify(
    bus: Bus,
    wanted: Callable[[Event], bool],
    callback: Callable[[], None],
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Call ``callback`` after wanted events; ends when the bus closes.

    Args:
        bus: brings the events.
        wanted: a pure function that never fails.
        callback: does not wait; called at least once after the last of several events, and again for later ones
            even when it has failed.
        task_status: for ``TaskGroup.start``.
    """
    with bus.subscribe(wanted) as subscription:
        task_status.started()
        while True:
            try:
                await anext(subscription)
            except StopAsyncIteration:
                return
            except Lagged:
                # what was missed needs no replay: one call stands for all of it
                subscription.rejoin()
            try:
                callback()
            except Exception:  # noqa: BLE001 - isolated: a failing callback must not end this or other services
                _log.exception("events.callback_failed")

"""The daemon's own subscribers."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
import structlog
from anyio.lowlevel import checkpoint

from pluginsvc.events import subscribers
from pluginsvc.events.bus import Bus
from pluginsvc.events.subscribers import audit_log, notify
from pluginsvc.model.event import Event
from pluginsvc.state import journal
from pluginsvc.state.database import Database, StateError
from tests.support.records import event

pytestmark = pytest.mark.anyio
T = TypeVar("T")


async def commit(database: Database, count: int) -> list[Event]:
    return await database.write(lambda db: [journal.append(db, event(n)) for n in range(count)])


@pytest.mark.usefixtures("publishing")
async def test_audit_log_has_one_line_per_event(database: Database, bus: Bus) -> None:
    """Each event that is committed while it runs is one line, in order; it ends with the bus."""
    await commit(database, 3)
    with structlog.testing.capture_logs() as logs:
        async with anyio.create_task_group() as group:
            await group.start(lambda *, task_status: audit_log(database, bus, task_status=task_status))
            with bus.subscribe(buffer=5000) as probe:
                await commit(database, 2000)
                with anyio.fail_after(10):
                    while (await anext(probe)).seq < 2003:
                        pass
            bus.close()
    assert [line["seq"] for line in logs] == list(range(4, 2004))
    assert logs[0]["action"] == "enable"
    assert logs[0]["attributes"] == {"n": "0"}


class FailingReads(Database):
    """Fails a read before and one after it gave events; they are committed at the first failure."""

    reads = 0

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self.reads += 1
        if self.reads == 2:
            await commit(self, 3)
        if self.reads in {2, 5}:
            raise StateError(self.path, "SQLITE_IOERR", "scripted")
        return await super().read(work)


async def test_audit_log_survives_failure_and_goes_on_where_it_was(
    tmp_path: Path, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After failing reads of the journal it starts again and misses nothing."""
    monkeypatch.setattr(subscribers, "_RETRY", 0.01)
    database = await FailingReads.open(tmp_path / "state.db")
    await commit(database, 1)
    with structlog.testing.capture_logs() as logs, anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            await group.start(lambda *, task_status: audit_log(database, bus, task_status=task_status))
            while database.reads < 6:
                await checkpoint()
            bus.close()
    await database.close()
    assert [line["seq"] for line in logs if line["event"] == "plugin.event"] == [2, 3, 4]
    assert sum(line["event"] == "audit.failed" for line in logs) == 2


async def test_notify_calls_for_wanted_events_and_survives_its_callback(bus: Bus) -> None:
    """The callback runs for wanted events only, also after it has failed; the task ends with the bus."""
    calls: list[int] = []

    def callback() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("first time")

    with structlog.testing.capture_logs() as logs:
        async with anyio.create_task_group() as group:
            await group.start(
                lambda *, task_status: notify(bus, lambda e: e.action == "remove", callback, task_status=task_status)
            )
            bus.publish(event(1, seq=1, action="enable"))
            bus.publish(event(1, seq=2, action="remove"))
            bus.publish(event(1, seq=3, action="remove"))
            bus.close()
    assert len(calls) == 2
    assert [line["event"] for line in logs] == ["events.callback_failed"]


async def test_notify_misses_no_burst(bus: Bus) -> None:
    """After a burst that overflows its buffer the callback is called after the last event."""
    published = 0
    seen_at: list[int] = []
    async with anyio.create_task_group() as group:
        await group.start(
            lambda *, task_status: notify(
                bus, lambda _: True, lambda: seen_at.append(published), task_status=task_status
            )
        )
        for published in range(1, 5001):
            bus.publish(event(1, seq=published))
        for _ in range(3):
            await checkpoint()
        assert seen_at[-1] == 5000
        bus.publish(event(1, seq=5001))
        published = 5001
        await checkpoint()
        bus.close()
    assert seen_at[-1] == 5001

"""The daemon's own subscribers."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
import structlog
from anyio.lowlevel import checkpoint

from pluginsvc import metrics
from pluginsvc.events import subscribers
from pluginsvc.events.bus import Bus
from pluginsvc.events.journal import Publisher
from pluginsvc.events.subscribers import audit, consume, notify
from pluginsvc.model.event import Event
from pluginsvc.state import journal
from pluginsvc.state.database import Database, StateError
from tests.support.records import event, keep

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
            await group.start(lambda *, task_status: consume("audit", audit, database, bus, task_status=task_status))
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
            await group.start(lambda *, task_status: consume("audit", audit, database, bus, task_status=task_status))
            while database.reads < 6:
                await checkpoint()
            bus.close()
    await database.close()
    assert [line["seq"] for line in logs if line["event"] == "plugin.event"] == [2, 3, 4]
    assert sum(line["event"] == "subscriber.failed" for line in logs) == 2


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
                lambda *, task_status: notify(
                    "test", callback, bus, wanted=lambda e: e.action == "remove", task_status=task_status
                )
            )
            await bus.publish([event(1, seq=1, action="enable")])
            await bus.publish([event(1, seq=2, action="remove")])
            await bus.publish([event(1, seq=3, action="remove")])
            bus.close()
    assert len(calls) == 2
    assert [line["event"] for line in logs] == ["subscriber.failed"]


async def test_notify_misses_no_burst(bus: Bus) -> None:
    """After a burst that overflows its buffer the callback is called after the last event."""
    published = 0
    seen_at: list[int] = []
    async with anyio.create_task_group() as group:
        await group.start(
            lambda *, task_status: notify("test", lambda: seen_at.append(published), bus, task_status=task_status)
        )
        for published in range(1, 5001):
            await bus.publish([event(1, seq=published)])
        for _ in range(3):
            await checkpoint()
        assert seen_at[-1] == 5000
        await bus.publish([event(1, seq=5001)])
        published = 5001
        await checkpoint()
        bus.close()
    assert seen_at[-1] == 5001


async def test_an_event_that_cannot_be_handled_is_left_out(
    database: Database, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failing twice on one event a subscriber goes on with the next; failing once loses nothing; all is counted."""
    monkeypatch.setattr(subscribers, "_RETRY", 0.001)
    handled: list[int] = []
    failures = {2: 1, 4: 9}
    over = anyio.Event()

    def handle(found: Event) -> None:
        if failures.get(found.seq, 0):
            failures[found.seq] -= 1
            raise RuntimeError(found.seq)
        handled.append(found.seq)
        if found.seq == 6:
            over.set()

    counted = metrics.SUBSCRIBER_FAILURES.labels("test")
    before = counted._value.get()
    with structlog.testing.capture_logs() as logs, anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            await group.start(Publisher(database, bus).run)
            await group.start(consume, "test", handle, database, bus)
            await commit(database, 6)
            await over.wait()
            group.cancel_scope.cancel()
    assert handled == [1, 2, 3, 5, 6]
    assert [line["event"] for line in logs] == ["subscriber.failed"] * 2 + ["subscriber.skips"]
    assert counted._value.get() - before == 3


class FailingSecond(Database):
    """Fails the read with which a subscriber starts again."""

    fails = False

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self.fails:
            self.fails = False
            raise StateError(self.path, "SQLITE_IOERR", "scripted")
        return await super().read(work)


async def test_trouble_elsewhere_is_no_failure_on_an_event(
    tmp_path: Path, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event on which a subscriber failed once is not left out because the journal cannot be read meanwhile."""
    monkeypatch.setattr(subscribers, "_RETRY", 0.001)
    database = await FailingSecond.open(tmp_path / "state.db")
    handled: list[int] = []
    over = anyio.Event()

    def handle(found: Event) -> None:
        handled.append(found.seq)
        if handled == [1]:
            database.fails = True
            raise RuntimeError("first time")
        if found.seq == 2:
            over.set()

    with structlog.testing.capture_logs(), anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            await group.start(consume, "test", handle, database, bus)
            await commit(database, 2)
            await bus.publish(await database.read(lambda db: journal.after(db, 0, 9)))
            await over.wait()
            group.cancel_scope.cancel()
    await database.close()
    assert handled == [1, 1, 2]


async def test_a_subscriber_is_told_of_what_was_pruned(database: Database, bus: Bus) -> None:
    """One that is too slow for the journal goes on with the oldest event there is, and says so."""
    handled: list[int] = []
    over = anyio.Event()

    def handle(found: Event) -> None:
        handled.append(found.seq)
        if found.seq == 9:
            over.set()

    with structlog.testing.capture_logs() as logs, anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            await group.start(consume, "test", handle, database, bus)
            await database.write(lambda db: ([journal.append(db, event(n)) for n in range(9)], keep(db, 3)))
            await over.wait()
            group.cancel_scope.cancel()
    assert handled == [7, 8, 9]
    assert [(line["event"], line["after"], line["oldest"]) for line in logs] == [("subscriber.gap", 0, 7)]

"""Pruning of the journal."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
import structlog

from pluginsvc.events import retention
from pluginsvc.events.retention import Retention
from pluginsvc.state import journal
from pluginsvc.state.database import Database, StateError
from tests.support.records import event

pytestmark = pytest.mark.anyio
T = TypeVar("T")


class Counting(Database):
    """Counts transactions, and fails the first if told so."""

    writes = 0
    fails = False

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.pruned = anyio.Event()

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self.writes += 1
        if self.fails and self.writes == 1:
            raise StateError(self.path, "SQLITE_IOERR", "scripted")
        result = await super().write(work)
        if result == 0:
            self.pruned.set()
        return result


async def filled(folder: Path, count: int) -> Counting:
    database = await Counting.open(folder / "state.db")
    await database.write(lambda db: [journal.append(db, event(n)) for n in range(count)])
    database.writes = 0
    return database


async def test_many_go_in_short_transactions(tmp_path: Path) -> None:
    """What is over a bound goes in several transactions, so that changes get their turn between them."""
    database = await filled(tmp_path, 2300)
    kept = Retention(events=100, bytes=2**40, seconds=3600)
    assert await kept.prune(database) == 2200
    assert database.writes == 2200 // retention._AT_ONCE + 2
    assert await kept.prune(database) == 0
    assert await database.read(journal.oldest_seq) == 2201
    await database.close()


async def test_age_counts_back_from_now(tmp_path: Path) -> None:
    """Events older than allowed go, but for the newest."""
    database = await filled(tmp_path, 10)
    assert await Retention(events=100, bytes=2**40, seconds=3600).prune(database) == 0
    assert await Retention(events=100, bytes=2**40, seconds=0).prune(database) == 9
    await database.close()


async def test_it_goes_on_after_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing database is logged, and the next time prunes."""
    monkeypatch.setattr(retention, "PRUNE_EVERY", 0.01)
    database = await filled(tmp_path, 10)
    database.fails = True
    with structlog.testing.capture_logs() as logs, anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(Retention(events=2, bytes=2**40, seconds=3600).serve, database)
            await database.pruned.wait()
            group.cancel_scope.cancel()
    assert await database.read(journal.oldest_seq) == 9
    assert [line["event"] for line in logs] == ["journal.not_pruned"]
    await database.close()

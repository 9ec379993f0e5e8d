"""Transactions, cancellation, damage and sudden death of the state database."""

import asyncio
import os
import signal
import sqlite3
import stat
import sys
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from pluginsvc.errors import Conflict, Internal
from pluginsvc.state import journal, plugins
from pluginsvc.state.database import Database, StateClosed, StateError
from pluginsvc.state.schema import MIGRATIONS, SchemaTooNew
from tests.support.records import event, keep, record

pytestmark = pytest.mark.anyio

WRITER = """
import asyncio, sys
from pathlib import Path
from pluginsvc.state import journal, plugins
from pluginsvc.state.database import Database
from tests.support.records import event, keep, record

def change(db, number):
    plugins.put(db, record(1, generation=number))
    journal.append(db, event(1, attributes={"n": str(number)}))
    plugins.put(db, record(2, generation=number))

async def main():
    database = await Database.open(Path(sys.argv[1]))
    number = int(sys.argv[2])
    while True:
        number += 1
        await database.write(lambda db: change(db, number))
        print(number, flush=True)

asyncio.run(main())
"""


async def test_new_database_is_private_and_durable(database: Database) -> None:
    """A new database is 0600 with its side files, uses a write-ahead log, and syncs every commit."""
    await database.write(lambda db: plugins.put(db, record(1)))
    for name in ("state.db", "state.db-wal", "state.db-shm"):
        assert stat.S_IMODE((database.path.parent / name).stat().st_mode) == 0o600
    facts = await database.read(
        lambda db: [
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "user_version")
        ]
    )
    assert facts == ["wal", 2, len(MIGRATIONS)]


async def test_open_takes_rights_of_others_away(tmp_path: Path) -> None:
    """A database that others may read is made private when it is opened."""
    path = tmp_path / "state.db"
    path.touch(0o644)
    await (await Database.open(path)).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_work_outlives_reopening(tmp_path: Path) -> None:
    """What one daemon wrote, the next one reads."""
    path = tmp_path / "state.db"
    first = await Database.open(path)
    await first.write(lambda db: plugins.put(db, record(1)))
    await first.close()
    second = await Database.open(path)
    assert await second.read(plugins.load) == [record(1)]
    await second.close()


async def test_failed_work_leaves_nothing(database: Database) -> None:
    """An error in the middle of a transaction takes all of it back and reaches the caller as it is."""

    def work(db: sqlite3.Connection) -> None:
        plugins.put(db, record(1))
        journal.append(db, event(1))
        raise KeyError("half way")

    with pytest.raises(KeyError, match="half way"):
        await database.write(work)
    assert await database.read(plugins.load) == []
    assert await database.read(journal.last_seq) == 0
    await database.write(lambda db: plugins.put(db, record(2)))


async def test_sqlite_errors_are_state_errors(database: Database) -> None:
    """SQLite's own errors become one of ours, which names the database and the code."""
    with pytest.raises(StateError, match="no such table: nope") as caught:
        await database.write(lambda db: db.execute("DELETE FROM nope"))
    assert caught.value.path == database.path
    assert isinstance(caught.value, Internal)
    assert isinstance(caught.value.__cause__, sqlite3.Error)


async def test_read_cannot_write(database: Database) -> None:
    """A read that tries to write fails and changes nothing; writing works afterwards."""
    with pytest.raises(StateError) as caught:
        await database.read(lambda db: plugins.put(db, record(1)))
    assert caught.value.code == "SQLITE_READONLY"
    await database.write(lambda db: plugins.put(db, record(1)))
    assert len(await database.read(plugins.load)) == 1


async def test_full_disk(database: Database) -> None:
    """A full disk fails the transaction with advice, keeps what was there, and is survived."""
    await database.write(lambda db: plugins.put(db, record(1)))
    pages = await database.read(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    await database.read(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone())
    with pytest.raises(StateError, match="free some space") as caught:
        await database.write(lambda db: plugins.put(db, record(2, source="x" * 100_000)))
    assert caught.value.code == "SQLITE_FULL"
    await database.read(lambda db: db.execute("PRAGMA max_page_count = 100000").fetchone())
    await database.write(lambda db: plugins.put(db, record(3)))
    assert [found.name for found in await database.read(plugins.load)] == ["p1:latest", "p3:latest"]


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
async def test_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no database is refused with advice and left as it is."""
    path = tmp_path / "state.db"
    path.write_bytes(content)
    with pytest.raises(StateError, match="move it away"):
        await Database.open(path)
    assert path.read_bytes() == content


async def test_damage_inside_is_told(database: Database) -> None:
    """Damage that is met later fails that transaction with advice."""
    for number in range(200):
        await database.write(lambda db, n=number: plugins.put(db, record(n, source="x" * 500)))  # type: ignore[misc]  # mypy cannot type a default
    await database.close()
    with database.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xde\xad" * 4096 * 20)
    with pytest.raises(StateError, match="damaged"):
        await (await Database.open(database.path)).read(plugins.load)


async def test_missing_directory(tmp_path: Path) -> None:
    """A database in a directory that is not there is refused with its path."""
    with pytest.raises(StateError, match="nowhere"):
        await Database.open(tmp_path / "nowhere" / "state.db")


async def test_newer_schema_is_refused(database: Database) -> None:
    """A database that a newer version wrote is not touched."""
    await database.write(lambda db: db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}"))
    await database.close()
    with pytest.raises(SchemaTooNew, match="run the newer pluginsvc"):
        await Database.open(database.path)


async def test_close_finishes_what_was_submitted(database: Database) -> None:
    """Work submitted before the close is done; work after it is refused; closing twice is fine."""
    async with anyio.create_task_group() as group:
        group.start_soon(database.write, lambda db: plugins.put(db, record(1)))
        await checkpoint()
        await database.close()
        await database.close()
    with pytest.raises(StateClosed):
        await database.read(plugins.load)
    again = await Database.open(database.path)
    assert len(await again.read(plugins.load)) == 1
    await again.close()


@pytest.mark.parametrize("native", [True, False])
async def test_cancelled_writer_waits_for_the_outcome(database: Database, *, native: bool) -> None:
    """A caller cancelled during its transaction waits for the commit and is cancelled then."""
    import threading  # noqa: PLC0415 - only this test steps between two threads

    started, go_on = anyio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    scope = anyio.CancelScope()
    trace: list[str] = []

    def work(db: sqlite3.Connection) -> None:
        loop.call_soon_threadsafe(started.set)
        assert go_on.wait(10)
        plugins.put(db, record(1))
        trace.append("worked")

    async def caller() -> None:
        with scope:
            try:
                await database.write(work)
            except asyncio.CancelledError:
                trace.append("cancelled")
                raise
            trace.append("returned")

    task = asyncio.create_task(caller())
    await started.wait()
    for _ in range(3):
        if native:
            task.cancel()
        else:
            scope.cancel()
        for _ in range(5):
            await checkpoint()
    assert not task.done()
    go_on.set()
    await asyncio.wait([task])
    assert task.cancelled() is native
    assert trace == ["worked", "cancelled"]
    assert len(await database.read(plugins.load)) == 1


async def test_cancelled_before_is_never_run(database: Database) -> None:
    """A caller that is cancelled already starts no transaction."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await database.write(lambda db: plugins.put(db, record(1)))
    assert scope.cancelled_caught
    assert await database.read(plugins.load) == []


async def test_watchers_wake_only_for_events(database: Database) -> None:
    """Watchers are called on the loop after a commit that appended, and before its writer goes on."""
    thread_and_seq: list[tuple[bool, int]] = []
    loop = asyncio.get_running_loop()
    seq = 0
    database.watch(lambda: thread_and_seq.append((asyncio.get_running_loop() is loop, seq)))
    await database.write(lambda db: plugins.put(db, record(1)))

    def fails(db: sqlite3.Connection) -> None:
        journal.append(db, event(1))
        raise KeyError

    with pytest.raises(KeyError):
        await database.write(fails)
    assert thread_and_seq == []
    await database.write(lambda db: journal.append(db, event(1)))
    assert thread_and_seq == [(True, 0)]
    seq = 1
    # all rows pruned in the transaction that appends: the commit still appended
    await database.write(lambda db: (journal.append(db, event(2)), keep(db, 1)))
    assert thread_and_seq == [(True, 0), (True, 1)]


async def test_writers_take_turns(database: Database) -> None:
    """Fifty transactions at once that read, then write, lose no update."""

    def add_one(db: sqlite3.Connection) -> None:
        (found,) = plugins.load(db)
        plugins.put(db, record(1, generation=found.generation + 1))

    await database.write(lambda db: plugins.put(db, record(1, generation=0)))
    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(database.write, add_one)
    (found,) = await database.read(plugins.load)
    assert found.generation == 50


async def test_name_conflict_keeps_the_rest_of_nothing(database: Database) -> None:
    """A name that another plugin has is a conflict, and the event beside it is not kept."""
    await database.write(lambda db: plugins.put(db, record(1)))

    def work(db: sqlite3.Connection) -> None:
        journal.append(db, event(2))
        plugins.put(db, record(2, name="p1:latest"))

    with pytest.raises(plugins.NameTaken, match="plugin p1:latest already exists") as caught:
        await database.write(work)
    assert isinstance(caught.value, Conflict)
    assert await database.read(journal.last_seq) == 0


async def test_killed_writer_leaves_records_and_journal_in_agreement(tmp_path: Path) -> None:
    """SIGKILL in a stream of transactions leaves each whole or absent, and loses none that was acknowledged."""
    path = tmp_path / "state.db"
    written = 0
    for extra in (1, 7, 30, 120):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, str(path), str(written), stdout=asyncio.subprocess.PIPE, cwd=Path.cwd()
        )
        assert process.stdout is not None
        acknowledged = written
        while acknowledged < written + extra:
            acknowledged = int(await process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        rest = (await process.stdout.read()).split()
        assert await process.wait() == -signal.SIGKILL
        acknowledged = int(rest[-1]) if rest else acknowledged

        database = await Database.open(path)
        events = await database.read(lambda db: journal.after(db, 0, 1_000_000))
        records = await database.read(plugins.load)
        await database.close()
        assert [found.seq for found in events] == list(range(1, len(events) + 1))
        assert [found.attributes["n"] for found in events] == [str(found.seq) for found in events]
        assert len(events) in {acknowledged, acknowledged + 1}
        assert {found.generation for found in records} == {len(events)}
        written = len(events)

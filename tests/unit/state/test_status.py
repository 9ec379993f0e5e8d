import pytest

from pluginsvc.model.lifecycle import Ended, Status
from pluginsvc.state import plugins, status
from pluginsvc.state.database import Database
from tests.support.records import record as make_record

pytestmark = pytest.mark.anyio


async def test_a_status_lives_and_goes_with_its_record(database: Database) -> None:
    """What is written is read back, the last word counts, and a plugin that is removed takes it along."""
    record = make_record(1)
    first = Status(state="running", since_ns=5, reason="enabled", boot="b")
    last = first.to(
        "crash-loop",
        now_ns=9,
        reason="why",
        exit=Ended(code=137, signal=9, oom=True, time_ns=8),
        next_ns=10,
        failures=3,
    )
    await database.write(lambda db: plugins.put(db, record))
    await database.write(lambda db: status.put(db, record.id, first))
    await database.write(lambda db: status.put(db, record.id, last))
    assert await database.read(status.load) == {record.id: last}
    await database.write(lambda db: plugins.put(db, record))
    assert await database.read(status.load) == {record.id: last}
    await database.write(lambda db: plugins.delete(db, record.id))
    assert await database.read(status.load) == {}


async def test_no_status_without_a_record(database: Database) -> None:
    """A status that arrives after the removal is dropped, and one that cannot be read is left out."""
    await database.write(lambda db: status.put(db, "0" * 64, Status()))
    assert await database.read(status.load) == {}
    record = make_record(1)
    await database.write(lambda db: plugins.put(db, record))
    await database.write(lambda db: db.execute("INSERT INTO plugin_status VALUES (?, ?)", (record.id, b"{")))
    assert await database.read(status.load) == {}

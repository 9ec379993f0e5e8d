"""The ledger's rows in the database."""

import sqlite3

import msgspec
import pytest

from pluginsvc.state import mounts
from pluginsvc.state.database import Database
from pluginsvc.state.mounts import MountRow
from tests.support.records import plugin_id

pytestmark = pytest.mark.anyio


def row(number: int, path: str, **changes: object) -> MountRow:
    made = MountRow(path=path, plugin_id=plugin_id(number), mount_id=7, source="0:1 /", boot="b", since_ns=2**62)
    return msgspec.structs.replace(made, **changes)


async def test_rows(database: Database) -> None:
    """A mount is written down, changed, found by its plugin and forgotten, whether or not there is such a plugin."""
    one, other = row(1, "/b"), row(2, "/a", trouble="held by a (b)")

    def work(db: sqlite3.Connection) -> None:
        mounts.put(db, one)
        mounts.put(db, msgspec.structs.replace(one, mount_id=8))
        mounts.put(db, other)

    await database.write(work)
    changed = msgspec.structs.replace(one, mount_id=8)
    assert await database.read(mounts.load) == [other, changed]
    assert await database.read(lambda db: mounts.load(db, plugin_id(1))) == [changed]
    await database.write(lambda db: mounts.delete(db, "/b"))
    await database.write(lambda db: mounts.delete(db, "/b"))
    assert await database.read(mounts.load) == [other]


async def test_replacing(database: Database) -> None:
    """Some rows give way to others in one step, and rows of which nobody spoke stay."""
    kept, gone, new = row(1, "/kept"), row(1, "/gone"), row(1, "/new")
    await database.write(lambda db: mounts.replace(db, [], [kept, gone]))
    await database.write(lambda db: mounts.replace(db, [gone, new], [new]))
    assert await database.read(mounts.load) == [kept, new]

"""Leases in the database."""

import sqlite3

import pytest

from pluginsvc.state import leases
from pluginsvc.state.database import Database
from tests.support.records import digest

pytestmark = pytest.mark.anyio


async def test_life_of_a_lease(database: Database) -> None:
    """A lease holds the blobs added to it until it is released; adding twice and releasing twice are fine."""

    def work(db: sqlite3.Connection) -> None:
        leases.create(db, "one", expires_ns=100, purpose="pull a")
        leases.create(db, "two", expires_ns=100, purpose="pull b")
        leases.add(db, "one", digest(1))
        leases.add(db, "one", digest(1))
        leases.add(db, "one", digest(2))
        leases.add(db, "two", digest(2))

    await database.write(work)
    assert await database.read(leases.digests) == {digest(1), digest(2)}
    await database.write(lambda db: leases.release(db, "one"))
    await database.write(lambda db: leases.release(db, "one"))
    assert await database.read(lambda db: [leases.holds(db, digest(n)) for n in (1, 2, 3)]) == [False, True, False]


async def test_expire_ends_only_what_is_over(database: Database) -> None:
    """Leases end at their time, the bound included, and are counted."""

    def work(db: sqlite3.Connection) -> list[int]:
        for number, expires in enumerate((10, 20, 30)):
            leases.create(db, str(number), expires_ns=expires, purpose="")
            leases.add(db, str(number), digest(number))
        return [leases.expire(db, now) for now in (9, 20, 20)]

    assert await database.write(work) == [0, 2, 0]
    assert await database.read(leases.digests) == {digest(2)}


async def test_add_to_a_gone_lease_fails(database: Database) -> None:
    """A job whose lease has expired learns it at once, so that it does not trust blobs that may be collected."""
    with pytest.raises(leases.LeaseGone, match="try again"):
        await database.write(lambda db: leases.add(db, "gone", digest(1)))
    assert await database.read(leases.digests) == set()


async def test_clear_ends_all(database: Database) -> None:
    """A starting daemon ends every lease that is left over."""

    def work(db: sqlite3.Connection) -> None:
        leases.create(db, "one", expires_ns=2**62, purpose="")
        leases.add(db, "one", digest(1))
        leases.clear(db)

    await database.write(work)
    assert await database.read(leases.digests) == set()

"""Plugin records in the database."""

import sqlite3

import pytest
import structlog

from pluginsvc.model.plugin import Device, Mount, PluginSettings
from pluginsvc.state import plugins
from pluginsvc.state.database import Database
from tests.support.records import digest, plugin_id, record

pytestmark = pytest.mark.anyio


async def test_round_trip(database: Database) -> None:
    """A record comes back as it was put, every field of it."""
    full = record(
        1,
        reference="docker.io/library/p1:latest",
        enabled=True,
        settings=PluginSettings(args=["a", ""], devices=[Device(name="d")], env=["K=é\0"], mounts=[Mount(source="")]),
        generation=7,
        source="host:5000/a/b",
        timeout=30,
        unsynced_boot="boot",
    )
    await database.write(lambda db: plugins.put(db, full))
    (found,) = await database.read(plugins.load)
    assert found == full
    assert type(found.config) is type(full.config)
    assert found.blobs[0].short == digest(1).short


async def test_put_replaces_by_id_and_load_sorts_by_name(database: Database) -> None:
    """A second put with the same ID replaces, also the name; records come sorted by name."""

    def work(db: sqlite3.Connection) -> None:
        plugins.put(db, record(2, name="b:1"))
        plugins.put(db, record(1, name="c:1"))
        plugins.put(db, record(1, name="a:1", enabled=True))

    await database.write(work)
    assert [(r.name, r.enabled) for r in await database.read(plugins.load)] == [("a:1", True), ("b:1", False)]


async def test_delete_frees_name_and_blobs(database: Database) -> None:
    """A deleted plugin's name and blobs are free; deleting again is fine."""

    def work(db: sqlite3.Connection) -> None:
        plugins.put(db, record(1))
        plugins.put(db, record(2))
        plugins.delete(db, plugin_id(1))
        plugins.delete(db, plugin_id(1))
        plugins.put(db, record(3, name="p1:latest"))

    await database.write(work)
    held = await database.read(lambda db: [n for n in range(8) if plugins.holds(db, digest(n))])
    assert held == [2, 3, 4, 5]
    assert await database.read(plugins.digests) == {digest(n) for n in held}


async def test_put_replaces_the_blobs(database: Database) -> None:
    """After an upgrade only the new blobs are held, config and manifest included even if the list forgets them."""
    await database.write(lambda db: plugins.put(db, record(1)))
    await database.write(
        lambda db: plugins.put(db, record(1, config=digest(10), manifest=digest(11), blobs=[digest(12)]))
    )
    assert await database.read(plugins.digests) == {digest(10), digest(11), digest(12)}


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff\xfe", b'{"id":1}', b"null", b"[" * 10_000])
async def test_unreadable_record_is_skipped_and_keeps_its_blobs(database: Database, raw: bytes) -> None:
    """One row that cannot be decoded is logged and left out; the others load, and its blobs stay held."""

    def work(db: sqlite3.Connection) -> None:
        plugins.put(db, record(1))
        plugins.put(db, record(100))
        db.execute("UPDATE plugins SET record = ? WHERE id = ?", (raw, plugin_id(1)))

    await database.write(work)
    with structlog.testing.capture_logs() as logs:
        assert await database.read(plugins.load) == [record(100)]
    assert [line["plugin"] for line in logs] == [plugin_id(1)]
    assert await database.read(lambda db: plugins.holds(db, digest(1)))

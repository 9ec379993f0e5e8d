"""Plugin records: one row each, and beside them the blobs they keep alive."""

from __future__ import annotations

import sqlite3

import msgspec
import structlog

from pluginsvc.errors import Conflict
from pluginsvc.model.digest import Digest, encode_digest
from pluginsvc.model.manifest import decode_digest
from pluginsvc.model.plugin import PluginRecord

_log = structlog.get_logger()
_ENCODER = msgspec.json.Encoder(enc_hook=encode_digest)
_DECODER = msgspec.json.Decoder(PluginRecord, dec_hook=decode_digest)


class NameTaken(Conflict):
    """Another plugin has that name (REF 3.2)."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"plugin {name} already exists")


def put(db: sqlite3.Connection, record: PluginRecord) -> None:
    """Insert a record, or replace the one with its ID.

    Raises:
        NameTaken: a plugin with another ID has the name.
    """
    try:
        db.execute(
            "INSERT INTO plugins (id, name, record) VALUES (?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET name = excluded.name, record = excluded.record",
            (record.id, record.name, _ENCODER.encode(record)),
        )
    except sqlite3.IntegrityError as exc:
        raise NameTaken(record.name) from exc
    db.execute("DELETE FROM plugin_blobs WHERE plugin_id = ?", (record.id,))
    db.executemany(
        "INSERT INTO plugin_blobs (plugin_id, digest) VALUES (?, ?)",
        [(record.id, str(digest)) for digest in {record.config, record.manifest, *record.blobs}],
    )


def delete(db: sqlite3.Connection, plugin_id: str) -> None:
    """Delete a record; a missing one is fine."""
    db.execute("DELETE FROM plugins WHERE id = ?", (plugin_id,))


def exists(db: sqlite3.Connection, plugin_id: str) -> bool:
    """Tell whether there is a record, be it unreadable."""
    return db.execute("SELECT 1 FROM plugins WHERE id = ?", (plugin_id,)).fetchone() is not None


def enabled(db: sqlite3.Connection, plugin_id: str) -> bool:
    """Tell whether there is a record that wishes the plugin enabled."""
    row = db.execute("SELECT record FROM plugins WHERE id = ?", (plugin_id,)).fetchone()
    return row is not None and _DECODER.decode(row[0]).enabled


def ids(db: sqlite3.Connection) -> list[str]:
    """Return the IDs of all plugins, also of those whose record cannot be decoded."""
    return [row[0] for row in db.execute("SELECT id FROM plugins")]


def load(db: sqlite3.Connection) -> list[PluginRecord]:
    """Return all records by name; one that cannot be decoded is logged and left out, and keeps its blobs."""
    records = []
    for plugin_id, name, raw in db.execute("SELECT id, name, record FROM plugins ORDER BY name"):
        try:
            records.append(_DECODER.decode(raw))
        except (msgspec.MsgspecError, ValueError) as exc:
            _log.error("state.record_unreadable", plugin=plugin_id, name=name, error=str(exc))
    return records


def digests(db: sqlite3.Connection) -> set[Digest]:
    """Return every blob that some plugin needs: roots of collection."""
    return {Digest.parse(text) for (text,) in db.execute("SELECT DISTINCT digest FROM plugin_blobs")}


def holds(db: sqlite3.Connection, digest: Digest) -> bool:
    """Tell whether some plugin needs the blob."""
    found = db.execute("SELECT 1 FROM plugin_blobs WHERE digest = ? LIMIT 1", (str(digest),))
    return found.fetchone() is not None

"""What was last seen of each plugin, one row beside its record (design D2)."""

from __future__ import annotations

import sqlite3

import msgspec
import structlog

from pluginsvc.model.lifecycle import Status

_log = structlog.get_logger()
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Status)


def put(db: sqlite3.Connection, plugin_id: str, status: Status) -> None:
    """Write a plugin's status; where the plugin is gone, so is its status, and nothing is written."""
    db.execute(
        "INSERT INTO plugin_status (plugin_id, status) SELECT id, ? FROM plugins WHERE id = ?"
        " ON CONFLICT (plugin_id) DO UPDATE SET status = excluded.status",
        (_ENCODER.encode(status), plugin_id),
    )


def load(db: sqlite3.Connection) -> dict[str, Status]:
    """Return all statuses by plugin ID; one that cannot be decoded is logged and left out."""
    found = {}
    for plugin_id, raw in db.execute("SELECT plugin_id, status FROM plugin_status"):
        try:
            found[plugin_id] = _DECODER.decode(raw)
        except (msgspec.MsgspecError, ValueError) as exc:
            _log.error("state.status_unreadable", plugin=plugin_id, error=str(exc))
    return found

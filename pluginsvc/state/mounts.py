"""The mounts that the daemon has made: written down before they are made, forgotten when they are gone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import msgspec


class MountRow(msgspec.Struct, frozen=True, kw_only=True):
    """One mount.

    Attributes:
        path: the mount point, without symbolic links.
        plugin_id: whose it is; what is mounted may outlive the plugin.
        mount_id: the kernel's number of it; 0 until it is mounted.
        source: what is mounted; the kernel gives a number to the next mount as soon as it is free.
        boot: boot ID to which that number belongs.
        since_ns: when it was made, in nanoseconds since the epoch.
        trouble: why it is still there though it should be gone; empty: it is meant to be there.
    """

    path: str
    plugin_id: str
    mount_id: int
    source: str
    boot: str
    since_ns: int
    trouble: str = ""


def put(db: sqlite3.Connection, row: MountRow) -> None:
    """Write a mount down, in place of what was known of its mount point."""
    db.execute(
        "INSERT OR REPLACE INTO mounts (path, plugin_id, mount_id, source, boot, since_ns, trouble)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        msgspec.structs.astuple(row),
    )


def delete(db: sqlite3.Connection, path: str) -> None:
    """Forget a mount; a missing one is fine."""
    db.execute("DELETE FROM mounts WHERE path = ?", (path,))


def replace(db: sqlite3.Connection, old: Iterable[MountRow], new: Iterable[MountRow]) -> None:
    """Forget some mounts and write down others, which may be the same."""
    for row in old:
        delete(db, row.path)
    for row in new:
        put(db, row)


def load(db: sqlite3.Connection, plugin_id: str | None = None) -> list[MountRow]:
    """Return the mounts of one plugin, or of all, by path."""
    rows = db.execute(
        "SELECT path, plugin_id, mount_id, source, boot, since_ns, trouble FROM mounts"
        " WHERE plugin_id = coalesce(?, plugin_id) ORDER BY path",
        (plugin_id,),
    )
    return [MountRow(**dict(zip(MountRow.__struct_fields__, row, strict=True))) for row in rows]

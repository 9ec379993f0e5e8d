"""Leases on plugins: reference counts with names, which outlive the daemon (REF 3.13, 7.38)."""

from __future__ import annotations

import sqlite3

from pluginsvc.errors import Conflict
from pluginsvc.model.lease import PluginLease, check_text

MOST = 10_000
"""Most leases on one plugin."""


class TooManyLeases(Conflict):
    """A plugin has as many leases as it can have."""

    def __init__(self, plugin_id: str) -> None:
        self.plugin_id = plugin_id
        super().__init__(f"plugin {plugin_id[:12]} has {MOST} leases: release those that nobody needs any more")


def acquire(
    db: sqlite3.Connection, plugin_id: str, holder: str, purpose: str, *, now_ns: int, expires_ns: int | None
) -> PluginLease:
    """Count one more use of a plugin.

    Args:
        db: the connection.
        plugin_id: 64 hex digits; the plugin exists.
        holder: who uses it.
        purpose: what for.
        now_ns: nanoseconds since the epoch; leases that are over by then are ended first.
        expires_ns: when the lease ends by itself, ``None`` for never; the later of this and the one before counts.

    Raises:
        InvalidLease: ``holder`` or ``purpose`` could not be shown.
        TooManyLeases: there is no room for another.
    """
    check_text("Holder", holder)
    check_text("Purpose", purpose)
    expire(db, now_ns)
    row = db.execute(
        "INSERT INTO plugin_leases (plugin_id, holder, purpose, count, since_ns, expires_ns) VALUES (?, ?, ?, 1, ?, ?)"
        " ON CONFLICT (plugin_id, holder, purpose) DO UPDATE SET count = count + 1,"
        # max() of anything and NULL is NULL: for ever stays for ever
        " expires_ns = max(expires_ns, excluded.expires_ns) RETURNING holder, purpose, count, since_ns, expires_ns",
        (plugin_id, holder, purpose, now_ns, expires_ns),
    ).fetchone()
    (number,) = db.execute("SELECT count(*) FROM plugin_leases WHERE plugin_id = ?", (plugin_id,)).fetchone()
    if number > MOST:
        raise TooManyLeases(plugin_id)
    return _lease(row)


def release(
    db: sqlite3.Connection, plugin_id: str, holder: str, purpose: str | None = None, *, everything: bool = False
) -> int:
    """Count one use less; where there is none that is fine, and the count never goes below zero.

    Args:
        db: the connection.
        plugin_id: 64 hex digits.
        holder: who used it.
        purpose: what for; ``None``: whatever it was, the oldest first.
        everything: end all of these uses and not only one.

    Returns:
        How many of these uses are left.
    """
    if everything:
        db.execute(
            "DELETE FROM plugin_leases WHERE plugin_id = ?1 AND holder = ?2 AND purpose = coalesce(?3, purpose)",
            (plugin_id, holder, purpose),
        )
        return 0
    rows = db.execute(
        "SELECT purpose, count FROM plugin_leases"
        " WHERE plugin_id = ?1 AND holder = ?2 AND purpose = coalesce(?3, purpose) ORDER BY since_ns, purpose",
        (plugin_id, holder, purpose),
    ).fetchall()
    if not rows:
        return 0
    oldest, count = rows[0]
    change = "DELETE FROM plugin_leases" if count == 1 else "UPDATE plugin_leases SET count = count - 1"
    db.execute(f"{change} WHERE plugin_id = ? AND holder = ? AND purpose = ?", (plugin_id, holder, oldest))
    return sum(int(count) for _, count in rows) - 1


def held(db: sqlite3.Connection, plugin_id: str, now_ns: int) -> list[PluginLease]:
    """Return the leases on a plugin that are not over at ``now_ns`` (nanoseconds since the epoch), the oldest first."""
    rows = db.execute(
        "SELECT holder, purpose, count, since_ns, expires_ns FROM plugin_leases"
        " WHERE plugin_id = ? AND (expires_ns IS NULL OR expires_ns > ?) ORDER BY since_ns, holder, purpose",
        (plugin_id, now_ns),
    )
    return [_lease(row) for row in rows]


def expire(db: sqlite3.Connection, now_ns: int) -> int:
    """End the leases whose time is over at ``now_ns`` (nanoseconds since the epoch); return how many."""
    return db.execute("DELETE FROM plugin_leases WHERE expires_ns <= ?", (now_ns,)).rowcount


def _lease(row: tuple[str, str, int, int, int | None]) -> PluginLease:
    holder, purpose, count, since_ns, expires_ns = row
    return PluginLease(holder=holder, purpose=purpose, count=count, since_ns=since_ns, expires_ns=expires_ns)

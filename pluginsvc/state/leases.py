"""Leases: blobs that a job under way needs, before any record names them (design D9)."""

from __future__ import annotations

import sqlite3

from pluginsvc.errors import Unavailable
from pluginsvc.model.digest import Digest


class LeaseGone(Unavailable):
    """A job wants to lease a blob under a lease that was released or has expired."""

    def __init__(self, lease_id: str) -> None:
        self.lease_id = lease_id
        super().__init__(f"lease {lease_id} has expired or was released, its blobs may be gone: try again")


def create(db: sqlite3.Connection, lease_id: str, *, expires_ns: int, purpose: str) -> None:
    """Open a lease.

    Args:
        db: the connection.
        lease_id: a name nobody else uses.
        expires_ns: when ``expire`` may end it, in nanoseconds since the epoch.
        purpose: what for, for people.
    """
    db.execute("INSERT INTO leases (id, purpose, expires_ns) VALUES (?, ?, ?)", (lease_id, purpose, expires_ns))


def add(db: sqlite3.Connection, lease_id: str, digest: Digest) -> None:
    """Keep a blob, present or not yet, from collection; a second time is fine.

    Raises:
        LeaseGone: there is no such lease (any more).
    """
    try:
        db.execute(
            "INSERT INTO lease_blobs (lease_id, digest) VALUES (?, ?) ON CONFLICT DO NOTHING", (lease_id, str(digest))
        )
    except sqlite3.IntegrityError as exc:
        raise LeaseGone(lease_id) from exc


def release(db: sqlite3.Connection, lease_id: str) -> None:
    """End a lease; a missing one is fine."""
    db.execute("DELETE FROM leases WHERE id = ?", (lease_id,))


def digests(db: sqlite3.Connection) -> set[Digest]:
    """Return every leased blob: roots of collection."""
    return {Digest.parse(text) for (text,) in db.execute("SELECT DISTINCT digest FROM lease_blobs")}


def holds(db: sqlite3.Connection, digest: Digest) -> bool:
    """Tell whether some lease keeps the blob."""
    found = db.execute("SELECT 1 FROM lease_blobs WHERE digest = ? LIMIT 1", (str(digest),))
    return found.fetchone() is not None


def expire(db: sqlite3.Connection, now_ns: int) -> int:
    """End the leases whose time is over at ``now_ns`` (nanoseconds since the epoch); return how many."""
    return db.execute("DELETE FROM leases WHERE expires_ns <= ?", (now_ns,)).rowcount


def clear(db: sqlite3.Connection) -> None:
    """End all leases: at the start of the daemon, since no job survives it."""
    db.execute("DELETE FROM leases")

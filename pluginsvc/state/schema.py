"""The tables, as a list of steps; ``user_version`` counts the steps a database has taken."""

from __future__ import annotations

import sqlite3

from pluginsvc.errors import Internal

_FIRST = (
    "CREATE TABLE plugins (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record BLOB NOT NULL) STRICT",
    # beside the record, so that a record nobody can decode still keeps its blobs from collection
    """CREATE TABLE plugin_blobs (
        plugin_id TEXT NOT NULL REFERENCES plugins (id) ON DELETE CASCADE, digest TEXT NOT NULL,
        PRIMARY KEY (plugin_id, digest)) STRICT, WITHOUT ROWID""",
    "CREATE INDEX plugin_blobs_digest ON plugin_blobs (digest)",
    "CREATE TABLE leases (id TEXT PRIMARY KEY, purpose TEXT NOT NULL, expires_ns INTEGER NOT NULL) STRICT",
    """CREATE TABLE lease_blobs (
        lease_id TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE, digest TEXT NOT NULL,
        PRIMARY KEY (lease_id, digest)) STRICT, WITHOUT ROWID""",
    "CREATE INDEX lease_blobs_digest ON lease_blobs (digest)",
    # AUTOINCREMENT: a number is never given twice, not even after its row was pruned
    """CREATE TABLE journal (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, time_ns INTEGER NOT NULL, event BLOB NOT NULL) STRICT""",
    "CREATE INDEX journal_time ON journal (time_ns)",
)

_SECOND = (
    # what was last seen of a plugin, beside the record, which holds what is wished (design D2)
    """CREATE TABLE plugin_status (
        plugin_id TEXT PRIMARY KEY REFERENCES plugins (id) ON DELETE CASCADE, status BLOB NOT NULL) STRICT""",
    # who uses a plugin, and how many times
    """CREATE TABLE plugin_leases (
        plugin_id TEXT NOT NULL REFERENCES plugins (id) ON DELETE CASCADE, holder TEXT NOT NULL, purpose TEXT NOT NULL,
        count INTEGER NOT NULL CHECK (count > 0), since_ns INTEGER NOT NULL, expires_ns INTEGER,
        PRIMARY KEY (plugin_id, holder, purpose)) STRICT, WITHOUT ROWID""",
    # no reference to a plugin: what is mounted outlives the record until it is unmounted
    """CREATE TABLE mounts (
        path TEXT PRIMARY KEY, plugin_id TEXT NOT NULL, mount_id INTEGER NOT NULL, source TEXT NOT NULL,
        boot TEXT NOT NULL, since_ns INTEGER NOT NULL, trouble TEXT NOT NULL) STRICT, WITHOUT ROWID""",
)

_THIRD = (
    # bytes of all events up to and with this one: the difference of two says what lies between them, without a sum
    "ALTER TABLE journal ADD COLUMN end_bytes INTEGER NOT NULL DEFAULT 0",
    """UPDATE journal SET end_bytes = sums.total
        FROM (SELECT seq, sum(length(event)) OVER (ORDER BY seq) AS total FROM journal) AS sums
        WHERE journal.seq = sums.seq""",
    # drawn with the journal: numbers that begin anew, in a database that begins anew, must not pass for the old ones
    "CREATE TABLE journal_id (id TEXT NOT NULL) STRICT",
    "INSERT INTO journal_id (id) VALUES (lower(hex(randomblob(16))))",
    # up to which event each sink has taken them
    "CREATE TABLE cursors (name TEXT PRIMARY KEY, seq INTEGER NOT NULL) STRICT, WITHOUT ROWID",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _SECOND, _THIRD)
"""Statements of each step; a step that was released is never changed, only followed by another."""


class SchemaTooNew(Internal):
    """A newer pluginsvc has written the database."""

    def __init__(self, found: int, known: int) -> None:
        self.found, self.known = found, known
        super().__init__(
            f"the state database has schema {found}, this pluginsvc knows schemas up to {known}: "
            "run the newer pluginsvc that wrote it, or restore a backup from before the upgrade"
        )


def migrate(db: sqlite3.Connection) -> None:
    """Take the steps that are missing, each in a transaction of its own.

    Raises:
        SchemaTooNew: the database has taken steps that are not known here.
    """
    (taken,) = db.execute("PRAGMA user_version").fetchone()
    if taken > len(MIGRATIONS):
        raise SchemaTooNew(taken, len(MIGRATIONS))
    for number in range(taken, len(MIGRATIONS)):
        db.execute("BEGIN IMMEDIATE")
        for statement in MIGRATIONS[number]:
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {number + 1}")
        db.execute("COMMIT")

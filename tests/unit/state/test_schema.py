"""Databases of earlier versions."""

import sqlite3

from pluginsvc.state import cursors, journal
from pluginsvc.state.schema import MIGRATIONS, migrate
from tests.support.records import event


def test_a_journal_of_before_gets_its_sizes() -> None:
    """Events that an older version has written, and pruned, count as they would have from the beginning."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    for statements in MIGRATIONS[:2]:
        for statement in statements:
            db.execute(statement)
    db.execute("PRAGMA user_version = 2")
    for number in range(1, 6):
        db.execute("INSERT INTO journal (time_ns, event) VALUES (?, ?)", (number, b"x" * number))
    db.execute("DELETE FROM journal WHERE seq <= 2")
    migrate(db)
    assert journal.size(db) == (3, 3 + 4 + 5)
    added = journal.append(db, event(6))
    (length,) = db.execute("SELECT length(event) FROM journal WHERE seq = ?", (added.seq,)).fetchone()
    assert journal.size(db) == (4, 3 + 4 + 5 + length)


def test_cursors() -> None:
    """A cursor is unknown, then where it was put; those of others go on wish."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    migrate(db)
    assert cursors.get(db, "file") is None
    cursors.put(db, "file", 0)
    cursors.put(db, "nats", 9)
    cursors.put(db, "nats", 12)
    assert (cursors.get(db, "file"), cursors.get(db, "nats")) == (0, 12)
    cursors.drop_others(db, {"nats", "webhook"})
    assert (cursors.get(db, "file"), cursors.get(db, "nats")) == (None, 12)

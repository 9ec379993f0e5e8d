"""Up to which event each sink has taken them."""

from __future__ import annotations

import sqlite3


def get(db: sqlite3.Connection, name: str) -> int | None:
    """Return the number of the last event that was taken; ``None`` for a sink that was never there."""
    row = db.execute("SELECT seq FROM cursors WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def put(db: sqlite3.Connection, name: str, seq: int) -> None:
    """Note that a sink has taken every event up to ``seq``."""
    db.execute(
        "INSERT INTO cursors (name, seq) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET seq = excluded.seq", (name, seq)
    )


def drop_others(db: sqlite3.Connection, names: set[str]) -> None:
    """Forget sinks that are no longer configured: set up again, they begin with what happens then."""
    for (name,) in db.execute("SELECT name FROM cursors").fetchall():
        if name not in names:
            db.execute("DELETE FROM cursors WHERE name = ?", (name,))

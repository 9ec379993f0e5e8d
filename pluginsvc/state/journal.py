"""The event journal: every change in the order in which it was committed (design D1)."""

from __future__ import annotations

import sqlite3
import time

import msgspec
import structlog

from pluginsvc.model.event import Event

_log = structlog.get_logger()
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Event)
_INT64 = 2**63 - 1


def append(db: sqlite3.Connection, event: Event) -> Event:
    """Write an event in the transaction that makes it true; return it with its number and time.

    Both grow from event to event, the time even when the clock is set back: either one orders events, and can be
    resumed from.
    """
    last = db.execute("SELECT time_ns FROM journal ORDER BY seq DESC LIMIT 1").fetchone()
    now = max(time.time_ns(), last[0] + 1 if last else 0)
    seq = db.execute("INSERT INTO journal (time_ns, event) VALUES (?, ?)", (now, _ENCODER.encode(event))).lastrowid
    assert seq is not None
    return msgspec.structs.replace(event, seq=seq, time_ns=now)


def after(db: sqlite3.Connection, seq: int, limit: int) -> list[Event]:
    """Return up to ``limit`` events whose number is greater than ``seq``, in order."""
    return between(db, after_seq=seq, limit=limit)


def between(
    db: sqlite3.Connection,
    *,
    since_ns: int | None = None,
    until_ns: int | None = None,
    after_seq: int = 0,
    limit: int,
) -> list[Event]:
    """Return up to ``limit`` events in order; fewer only when there are no more.

    A row that cannot be decoded is logged and left out.

    Args:
        db: the connection.
        since_ns: earliest time, inclusive, in nanoseconds since the epoch.
        until_ns: latest time, inclusive.
        after_seq: only events with a greater number.
        limit: how many at most.
    """
    if since_ns is not None:
        # times grow with the numbers: one look into the index finds where to start
        first = db.execute(
            "SELECT seq FROM journal WHERE time_ns >= ? ORDER BY time_ns LIMIT 1", (_int64(since_ns),)
        ).fetchone()
        if first is None:
            return []
        after_seq = max(after_seq, first[0] - 1)
    found: list[Event] = []
    rows = db.execute("SELECT seq, time_ns, event FROM journal WHERE seq > ? ORDER BY seq", (_int64(after_seq),))
    for seq, time_ns, raw in rows:
        if until_ns is not None and time_ns > until_ns:
            break
        try:
            event = _DECODER.decode(raw)
        except (msgspec.MsgspecError, ValueError) as exc:
            _log.error("state.event_unreadable", seq=seq, error=str(exc))
            continue
        found.append(msgspec.structs.replace(event, seq=seq, time_ns=time_ns))
        if len(found) >= limit:
            break
    return found


def last_seq(db: sqlite3.Connection) -> int:
    """Return the number of the last event ever written; 0 when there was none."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'journal'").fetchone()
    return int(row[0]) if row else 0


def oldest_seq(db: sqlite3.Connection) -> int:
    """Return the number of the oldest event that is kept; the next number when none is."""
    (oldest,) = db.execute("SELECT min(seq) FROM journal").fetchone()
    return int(oldest) if oldest is not None else last_seq(db) + 1


def prune(db: sqlite3.Connection, *, keep: int) -> int:
    """Delete all but the newest ``keep`` events; return how many went.

    The newest always stays, because the time of the next one builds on it.
    """
    return db.execute("DELETE FROM journal WHERE seq <= ?", (last_seq(db) - max(keep, 1),)).rowcount


def _int64(number: int) -> int:
    """Bring a number that a client chose into the range that SQLite stores."""
    return max(-_INT64, min(number, _INT64))

"""The event journal: every change in the order in which it was committed (design D1)."""

from __future__ import annotations

import sqlite3
import time
from typing import NamedTuple

import msgspec
import structlog

from pluginsvc.model.event import Event

_log = structlog.get_logger()
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Event)
_UNREADABLE = Event(action="unreadable", plugin_id="", plugin_name="")
_INT64 = 2**63 - 1


def append(db: sqlite3.Connection, event: Event) -> Event:
    """Write an event in the transaction that makes it true; return it with its number and time.

    Both grow from event to event, the time even when the clock is set back: either one orders events, and can be
    resumed from.
    """
    last_ns, end = db.execute("SELECT time_ns, end_bytes FROM journal ORDER BY seq DESC LIMIT 1").fetchone() or (-1, 0)
    now = max(time.time_ns(), last_ns + 1)
    raw = _ENCODER.encode(event)
    seq = db.execute(
        "INSERT INTO journal (time_ns, event, end_bytes) VALUES (?, ?, ?)", (now, raw, end + len(raw))
    ).lastrowid
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

    A row that cannot be decoded is logged, and comes as an event of the action ``unreadable``: every number is there.

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
            event = _UNREADABLE
        found.append(msgspec.structs.replace(event, seq=seq, time_ns=time_ns))
        if len(found) >= limit:
            break
    return found


def identity(db: sqlite3.Connection) -> str:
    """Return what tells this journal from every other, the one before it on this host among them: 32 hex digits."""
    (found,) = db.execute("SELECT id FROM journal_id").fetchone()
    return str(found)


def last_seq(db: sqlite3.Connection) -> int:
    """Return the number of the last event ever written; 0 when there was none."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'journal'").fetchone()
    return int(row[0]) if row else 0


def oldest_seq(db: sqlite3.Connection) -> int:
    """Return the number of the oldest event that is kept; the next number when none is."""
    (oldest,) = db.execute("SELECT min(seq) FROM journal").fetchone()
    return int(oldest) if oldest is not None else last_seq(db) + 1


class Size(NamedTuple):
    """How much the journal holds.

    Attributes:
        events: how many.
        bytes: of their texts; the database takes about half as much again.
    """

    events: int
    bytes: int


def size(db: sqlite3.Connection) -> Size:
    """Return how much is kept, without a look at all of it."""
    oldest = db.execute("SELECT seq, end_bytes - length(event) FROM journal ORDER BY seq LIMIT 1").fetchone()
    if oldest is None:
        return Size(0, 0)
    newest, end = db.execute("SELECT seq, end_bytes FROM journal ORDER BY seq DESC LIMIT 1").fetchone()
    # only the oldest are ever deleted, and a number is only used up by an event that is committed
    return Size(newest - oldest[0] + 1, end - oldest[1])


def number_at(db: sqlite3.Connection, since_ns: int) -> int:
    """Return the number after which the events begin that happened at this time or later."""
    row = db.execute("SELECT seq FROM journal WHERE time_ns >= ? ORDER BY time_ns LIMIT 1", (_int64(since_ns),))
    first = row.fetchone()
    return int(first[0]) - 1 if first else last_seq(db)


def prune(db: sqlite3.Connection, *, events: int, bytes_: int, before_ns: int, limit: int) -> int:
    """Delete events, the oldest first, until all three bounds hold or ``limit`` are gone; return how many went.

    The newest always stays, because number and time of the next one build on it.

    Args:
        db: the connection.
        events: how many may stay.
        bytes_: of text that may stay.
        before_ns: what happened before this time goes, in nanoseconds since the epoch.
        limit: how many at most go now, so that others get their turn at the database.
    """
    newest = db.execute("SELECT seq, end_bytes FROM journal ORDER BY seq DESC LIMIT 1").fetchone()
    if newest is None:
        return 0
    last, end = newest
    row = db.execute(
        "SELECT max(seq) FROM"
        " (SELECT seq, time_ns, end_bytes - length(event) AS begin FROM journal ORDER BY seq LIMIT ?)"
        " WHERE seq < ? AND (seq <= ? OR begin < ? OR time_ns < ?)",
        (limit, last, last - events, end - bytes_, _int64(before_ns)),
    )
    (until,) = row.fetchone()
    return 0 if until is None else db.execute("DELETE FROM journal WHERE seq <= ?", (until,)).rowcount


def _int64(number: int) -> int:
    """Bring a number that a client chose into the range that SQLite stores."""
    return max(-_INT64, min(number, _INT64))

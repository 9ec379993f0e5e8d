"""The event journal in the database."""

import sqlite3
import time

import msgspec
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pluginsvc.state import journal
from pluginsvc.state.database import Database
from pluginsvc.state.schema import migrate
from tests.support.records import event, keep


@pytest.fixture
def db() -> sqlite3.Connection:
    return fresh()


def fresh() -> sqlite3.Connection:
    found = sqlite3.connect(":memory:", isolation_level=None)
    migrate(found)
    return found


def test_append_numbers_and_stamps(db: sqlite3.Connection) -> None:
    """Events are numbered from 1 without holes, stamped with the present, and come back whole."""
    before = time.time_ns()
    written = [journal.append(db, event(n, seq=99, time_ns=99)) for n in range(3)]
    assert [found.seq for found in written] == [1, 2, 3]
    assert before <= written[0].time_ns < written[1].time_ns < written[2].time_ns <= time.time_ns() + 3
    assert journal.after(db, 0, 10) == written
    assert [msgspec.structs.replace(found, seq=0, time_ns=0) for found in written] == [event(n) for n in range(3)]


def test_time_never_runs_back(db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the clock is set back, times still grow."""
    first = journal.append(db, event(1))
    monkeypatch.setattr(time, "time_ns", lambda: 1000)
    second = journal.append(db, event(2))
    keep(db, 0)
    third = journal.append(db, event(3))
    assert first.time_ns < second.time_ns < third.time_ns


def test_rollback_gives_the_number_back(db: sqlite3.Connection) -> None:
    """A transaction that is undone leaves no hole in the numbers."""
    db.execute("BEGIN")
    journal.append(db, event(1))
    db.execute("ROLLBACK")
    assert journal.append(db, event(2)).seq == 1


def test_numbers_are_never_given_twice(db: sqlite3.Connection) -> None:
    """After pruning, numbers go on, and the oldest and the last are told."""
    assert (journal.oldest_seq(db), journal.last_seq(db)) == (1, 0)
    for number in range(5):
        journal.append(db, event(number))
    assert keep(db, 2) == 3
    assert keep(db, 2) == 0
    assert (journal.oldest_seq(db), journal.last_seq(db)) == (4, 5)
    assert keep(db, 0) == 1
    db.execute("DELETE FROM journal")
    assert (journal.oldest_seq(db), journal.last_seq(db)) == (6, 5)
    assert journal.append(db, event(6)).seq == 6


def test_a_rollback_gives_the_bytes_back(db: sqlite3.Connection) -> None:
    """What is undone counts for nothing in the size of the journal."""
    journal.append(db, event(1))
    size = journal.size(db)
    db.execute("BEGIN")
    journal.append(db, event(2))
    db.execute("ROLLBACK")
    assert journal.size(db) == size


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 200)), max_size=30),
    events=st.integers(1, 30),
    bytes_=st.integers(0, 6000),
    age=st.integers(0, 120),
    limit=st.integers(1, 30),
)
def test_prune_keeps_to_each_bound(
    steps: list[tuple[int, int]], events: int, bytes_: int, age: int, limit: int
) -> None:
    """The oldest go until number, size and age fit, never more than allowed at once, never the newest; size is true."""
    db = fresh()
    written = []
    clock = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: clock)
        for step, filler in steps:
            clock += step
            written.append(journal.append(db, event(1, attributes={"filler": "x" * filler})))

    def texts(seqs: list[int]) -> int:
        rows = dict(db.execute("SELECT seq, length(event) FROM journal"))
        return sum(rows[seq] for seq in seqs)

    left = [found.seq for found in written]
    assert journal.size(db) == (len(left), texts(left))
    times = {found.seq: found.time_ns for found in written}
    over = list(left)
    while len(over) > 1 and (len(over) > events or texts(over) > bytes_ or times[over[0]] < clock - age):
        over.pop(0)
    while gone := journal.prune(db, events=events, bytes_=bytes_, before_ns=clock - age, limit=limit):
        assert gone <= limit
        left = left[gone:]
        assert journal.size(db) == (len(left), texts(left))
    assert left == over == [found.seq for found in journal.after(db, 0, 100)]


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(-2, 60))
def test_number_at(steps: list[int], since: int) -> None:
    """What follows the number for a time is what happened then or later."""
    db = fresh()
    clock = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: clock)
        for step in steps:
            clock += step
            journal.append(db, event(step))
    later = journal.between(db, since_ns=since, limit=100)
    assert journal.after(db, journal.number_at(db, since), 100) == later


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 4), max_size=12),
    st.none() | st.integers(-2, 40),
    st.none() | st.integers(-2, 40),
    st.integers(-3, 15),
    st.integers(1, 15),
)
def test_between_is_the_plain_filter(
    steps: list[int], since: int | None, until: int | None, after: int, limit: int
) -> None:
    """Any mix of bounds, both times inclusive, gives what filtering the whole list gives."""
    db = fresh()
    everything = []
    clock = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: clock)
        for step in steps:
            clock += step
            everything.append(journal.append(db, event(step)))
    expected = [
        found
        for found in everything
        if found.seq > after and (since is None or found.time_ns >= since) and (until is None or found.time_ns <= until)
    ]
    assert journal.between(db, since_ns=since, until_ns=until, after_seq=after, limit=limit) == expected[:limit]


@pytest.mark.parametrize("huge", [2**63, 10**30, -(2**63) - 1, -(10**30)])
def test_absurd_bounds_are_bounds(db: sqlite3.Connection, huge: int) -> None:
    """Numbers that SQLite cannot hold are taken as far future or far past."""
    journal.append(db, event(1))
    assert len(journal.between(db, since_ns=huge, limit=5)) == (huge < 0)
    assert len(journal.between(db, until_ns=huge, limit=5)) == (huge > 0)
    assert len(journal.between(db, after_seq=huge, limit=5)) == (huge < 0)


def test_unreadable_rows_keep_their_numbers(db: sqlite3.Connection) -> None:
    """Of rows that cannot be decoded the number and the time are given, so that no reader looks for them in vain."""
    for number in range(6):
        journal.append(db, event(number))
    db.execute("UPDATE journal SET event = x'ff' WHERE seq BETWEEN 1 AND 4")
    with structlog.testing.capture_logs() as logs:
        found = journal.after(db, 0, 5)
    assert [each.seq for each in found] == [1, 2, 3, 4, 5]
    assert [each.action for each in found] == ["unreadable"] * 4 + ["enable"]
    assert found[0].time_ns > 0
    assert found[0].engine is None
    assert [line["seq"] for line in logs] == [1, 2, 3, 4]


def test_each_journal_has_an_id_of_its_own() -> None:
    """Two databases have different IDs, in the form of which UUIDs are made; one keeps its own."""
    first, second = fresh(), fresh()
    assert journal.identity(first) == journal.identity(first) != journal.identity(second)
    assert len(bytes.fromhex(journal.identity(first))) == 16


def test_since_is_found_by_index(db: sqlite3.Connection) -> None:
    """A late start does not read the events before it."""
    with db:
        db.executemany("INSERT INTO journal (time_ns, event) VALUES (?, x'ff')", [(n,) for n in range(1, 50_001)])
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    db.set_progress_handler(count, 100)
    assert journal.between(db, since_ns=50_001, limit=10) == []
    assert steps < 5


@pytest.mark.anyio
async def test_event_and_number_commit_together(database: Database) -> None:
    """Fifty writers at once get fifty consecutive numbers in the order of their commits."""
    import anyio  # noqa: PLC0415 - the other tests need no loop

    seen: list[int] = []

    async def write(number: int) -> None:
        seen.append((await database.write(lambda db: journal.append(db, event(number)))).seq)

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(write, number)
    assert seen == list(range(1, 51))

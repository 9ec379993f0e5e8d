"""Leases on plugins in the database."""

import sqlite3
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.model.lease import InvalidLease, holders
from pluginsvc.state import plugin_leases, plugins
from pluginsvc.state.database import Database
from pluginsvc.state.plugin_leases import acquire, expire, held, release
from pluginsvc.state.schema import migrate
from tests.support.records import plugin_id, record

ONE, TWO = plugin_id(1), plugin_id(2)


@pytest.fixture
def db() -> sqlite3.Connection:
    """Give a database with two plugins."""
    return opened()


def opened() -> sqlite3.Connection:
    found = sqlite3.connect(":memory:", isolation_level=None)
    found.execute("PRAGMA foreign_keys = ON")
    migrate(found)
    plugins.put(found, record(1))
    plugins.put(found, record(2))
    return found


def counts(db: sqlite3.Connection, plugin: str = ONE, *, now: int = 0) -> list[tuple[str, str, int]]:
    return [(lease.holder, lease.purpose, lease.count) for lease in held(db, plugin, now)]


_USES = st.tuples(st.sampled_from("ab"), st.sampled_from("xy"))
_STEPS = st.tuples(st.sampled_from(["acquire", "release", "release-any", "release-all"]), _USES)


@given(st.lists(_STEPS, max_size=40))
def test_any_order_counts_and_never_goes_below_zero(steps: list[tuple[str, tuple[str, str]]]) -> None:
    """Whatever is acquired and released in whatever order, each count is what was taken less what was given back."""
    db, model = opened(), Counter[tuple[str, str]]()
    for now, (step, (holder, purpose)) in enumerate(steps):
        mine = {key for key in model if key[0] == holder}
        if step == "acquire":
            model[holder, purpose] += 1
            lease = acquire(db, ONE, holder, purpose, now_ns=now, expires_ns=None)
            assert lease.count == model[holder, purpose]
        elif step == "release":
            model[holder, purpose] -= 1
            assert release(db, ONE, holder, purpose) == max(0, model[holder, purpose])
        elif step == "release-all":
            assert release(db, ONE, holder, everything=True) == 0
            model = Counter({key: count for key, count in model.items() if key not in mine})
        else:
            before = [lease for lease in held(db, ONE, 0) if lease.holder == holder]
            if before:
                model[holder, before[0].purpose] -= 1
            assert release(db, ONE, holder) == sum(model[key] for key in mine)
        model = +model
        assert {(a, b): count for a, b, count in counts(db)} == dict(model)
    assert counts(db, TWO) == []
    db.close()


def test_release_of_one_holder_and_purpose(db: sqlite3.Connection) -> None:
    """A release means its holder and its purpose, and neither another's lease nor another plugin's."""
    for plugin in (ONE, TWO):
        for holder in ("a", "b"):
            for purpose in ("x", "y"):
                acquire(db, plugin, holder, purpose, now_ns=1, expires_ns=None)
    assert release(db, ONE, "a", "x") == 0
    assert release(db, ONE, "b", everything=True) == 0
    assert counts(db) == [("a", "y", 1)]
    assert len(counts(db, TWO)) == 4
    assert release(db, TWO, "a", "x", everything=True) == 0
    assert ("a", "y", 1) in counts(db, TWO)


def test_nothing_to_release(db: sqlite3.Connection) -> None:
    """Releasing what nobody holds, or of a plugin that is not there, is fine."""
    assert release(db, ONE, "a") == 0
    assert release(db, plugin_id(9), "a", "x") == 0


@pytest.mark.parametrize(
    ("ends", "last"), [([5, 9], 9), ([9, 5], 9), ([5, None], None), ([None, 5], None), ([None, None], None)]
)
def test_the_later_end_counts(db: sqlite3.Connection, ends: list[int | None], last: int | None) -> None:
    """Of the ends that were named the latest counts, and never is the latest of all."""
    for end in ends:
        acquire(db, ONE, "a", "x", now_ns=1, expires_ns=end)
    (lease,) = held(db, ONE, 1)
    assert (lease.expires_ns, lease.since_ns, lease.count) == (last, 1, 2)


def test_expiry(db: sqlite3.Connection) -> None:
    """What is over does not count, from that moment on, and a lease taken after it starts again with one."""
    acquire(db, ONE, "a", "x", now_ns=1, expires_ns=10)
    acquire(db, ONE, "b", "x", now_ns=2, expires_ns=None)
    assert counts(db, now=9) == [("a", "x", 1), ("b", "x", 1)]
    assert counts(db, now=10) == [("b", "x", 1)]
    again = acquire(db, ONE, "a", "x", now_ns=11, expires_ns=20)
    assert (again.count, again.since_ns) == (1, 11)
    assert [expire(db, now) for now in (19, 20, 20)] == [0, 1, 0]


@pytest.mark.parametrize("text", ["", " ", "a\n", "x" * 257, "a\x1b[31m", "\u202eabc", "\ud800"])
@pytest.mark.parametrize("field", ["Holder", "Purpose"])
def test_names_that_cannot_be_shown(db: sqlite3.Connection, text: str, field: str) -> None:
    """A holder or purpose that is empty, too long or not printable is refused, and says which."""
    words = {"holder": "a", "purpose": "x"} | {field.lower(): text}
    with pytest.raises(InvalidLease, match=field):
        acquire(db, ONE, **words, now_ns=1, expires_ns=None)
    assert counts(db) == []


def test_names_at_their_bounds(db: sqlite3.Connection) -> None:
    """256 characters of any script are fine."""
    assert acquire(db, ONE, "ä" * 256, "容 器", now_ns=1, expires_ns=None).count == 1


def test_a_bound_on_leases(db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin has no more leases than the bound; one more of those it has is fine, and room is room again."""
    monkeypatch.setattr(plugin_leases, "MOST", 2)
    acquire(db, ONE, "a", "x", now_ns=1, expires_ns=None)
    acquire(db, ONE, "b", "x", now_ns=1, expires_ns=5)
    db.execute("BEGIN")
    with pytest.raises(plugin_leases.TooManyLeases, match="release"):
        acquire(db, ONE, "c", "x", now_ns=2, expires_ns=None)
    db.execute("ROLLBACK")
    assert acquire(db, ONE, "a", "x", now_ns=2, expires_ns=None).count == 2
    assert acquire(db, ONE, "c", "x", now_ns=5, expires_ns=None).count == 1


@pytest.mark.anyio
async def test_leases_go_with_their_plugin(database: Database) -> None:
    """A removed plugin has no leases, and one cannot be taken on a plugin that is not there."""

    def work(db: sqlite3.Connection) -> list[int]:
        plugins.put(db, record(1))
        acquire(db, ONE, "a", "x", now_ns=1, expires_ns=None)
        # a record that is saved again keeps them
        plugins.put(db, record(1, enabled=True))
        before = len(held(db, ONE, 0))
        plugins.delete(db, ONE)
        return [before, len(held(db, ONE, 0))]

    assert await database.write(work) == [1, 0]
    with pytest.raises(Exception, match="FOREIGN KEY"):
        await database.write(lambda db: acquire(db, ONE, "a", "x", now_ns=1, expires_ns=None))


def test_naming_the_holders(db: sqlite3.Connection) -> None:
    """A message names the five oldest and counts the others."""
    for number in range(7):
        acquire(db, ONE, f"h{number}", "p", now_ns=number, expires_ns=None)
    found = held(db, ONE, 0)
    assert holders(found) == "h0 (p), h1 (p), h2 (p), h3 (p), h4 (p) and 2 more"
    assert holders(found[:1]) == "h0 (p)"

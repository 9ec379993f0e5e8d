from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pluginsvc.model.lifecycle import (
    FIRST_DELAY,
    HEALTHY_AFTER,
    LONGEST_DELAY,
    NEXT,
    UP,
    WAITING,
    Ended,
    IllegalTransitionError,
    Retry,
    State,
    Status,
    after_life,
)

STATES: tuple[State, ...] = get_args(State)


def decide(policy: str = "always", **facts: object) -> Retry:
    given_facts: dict[str, object] = {"lived": 0.0, "failed": True, "failures": 0, "burst": 10, "spread": 1.0} | facts
    return after_life(policy, **given_facts)  # type: ignore[arg-type] # the values above have the right types


def test_every_state_can_be_reached_and_left() -> None:
    """From stopped every state can be reached, from every state stopped, and no state follows itself."""
    assert set(NEXT) == set(STATES)
    for start in STATES:
        seen, edge = {start}, {start}
        while edge:
            edge = {state for each in edge for state in NEXT[each]} - seen
            seen |= edge
        assert "stopped" in seen
        assert start not in NEXT[start]
    reached = {"stopped"}.union(*NEXT.values())
    assert reached == set(STATES)


@given(old=st.sampled_from(STATES), new=st.sampled_from(STATES), now=st.integers(1, 2**62))
def test_moves_are_legal_or_refused(old: State, new: State, now: int) -> None:
    """A move that is not in the table raises; one that is takes time and reason along and forgets the next try."""
    status = Status(state=old, next_ns=5, failures=3, restarts=2)
    if new not in NEXT[old]:
        with pytest.raises(IllegalTransitionError, match=f"from {old} to {new}"):
            status.to(new, now_ns=now, reason="why")
        return
    moved = status.to(new, now_ns=now, reason="why", failures=4)
    assert (moved.state, moved.since_ns, moved.reason, moved.next_ns) == (new, now, "why", None)
    assert (moved.failures, moved.restarts) == (4, 2)


def test_only_what_ran_or_waits_is_found_as_it_was() -> None:
    """A new daemon keeps what it finds as it was seen, and drops the next try of anything else."""
    status = Status(state="backing-off", next_ns=5, restarts=2)
    assert status.found("backing-off", reason="") is status
    assert status.found("running", reason="x") == Status(state="running", reason="x", restarts=2)


def test_delays_double_up_to_the_longest() -> None:
    """Tries come after 0.1 s, doubling to 60 s; from the burst on at the longest delay, under another name."""
    tries = [decide(failures=n) for n in range(12)]
    assert [round(each.delay, 3) for each in tries[:9]] == [FIRST_DELAY * 2**n for n in range(9)]
    assert {each.state for each in tries[:9]} == {"backing-off"}
    assert [(each.state, each.delay) for each in tries[9:]] == [("crash-loop", LONGEST_DELAY)] * 3
    assert [each.failures for each in tries] == list(range(1, 13))
    assert decide(failures=100, burst=1_000_000).delay == LONGEST_DELAY


def test_health_resets_the_failures() -> None:
    """A plugin that was up for 10 s starts from the shortest delay again."""
    assert decide(failures=50, lived=HEALTHY_AFTER) == Retry("backing-off", FIRST_DELAY, 1)
    assert decide(failures=50, lived=HEALTHY_AFTER - 0.001).state == "crash-loop"


@pytest.mark.parametrize(
    ("policy", "failed", "failures", "state"),
    [
        ("no", True, 0, "stopped"),
        ("always", False, 0, "backing-off"),
        ("on-failure", False, 0, "stopped"),
        ("on-failure", True, 8, "backing-off"),
        ("on-failure:2", True, 1, "backing-off"),
        ("on-failure:2", True, 2, "stopped"),
        ("on-failure:2", False, 0, "stopped"),
    ],
)
def test_policies(*, policy: str, failed: bool, failures: int, state: State) -> None:
    """`no` never starts again, `on-failure` only what failed and at most so many times in a row."""
    assert decide(policy, failed=failed, failures=failures).state == state


@given(
    policy=st.sampled_from(["always", "no", "on-failure", "on-failure:3"]),
    lived=st.floats(0, 1e6),
    failed=st.booleans(),
    failures=st.integers(0, 10**6),
    burst=st.integers(1, 10**6),
    spread=st.floats(0.9, 1.1),
)
def test_delays_are_bounded(
    *, policy: str, lived: float, failed: bool, failures: int, burst: int, spread: float
) -> None:
    """Whatever has happened, the next try is neither at once nor later than a spread longest delay."""
    found = after_life(policy, lived=lived, failed=failed, failures=failures, burst=burst, spread=spread)
    assert found.failures >= 1
    if found.state == "stopped":
        assert policy != "always"
    else:
        assert FIRST_DELAY * 0.9 <= found.delay <= LONGEST_DELAY * 1.1
        assert (found.state == "crash-loop") == (found.failures >= burst)


def test_ends_read_as_a_person_says_them() -> None:
    """The reason of a state is a sentence, with the kernel's part in it."""
    assert str(Ended(code=3, time_ns=1)) == "exited with code 3"
    oom = Ended(code=137, signal=9, oom=True, time_ns=1)
    assert str(oom) == "killed by signal 9, the kernel ran out of memory for it"


class Life(RuleBasedStateMachine):
    """A plugin lives through whatever order of events; only legal moves are ever needed."""

    def __init__(self) -> None:
        super().__init__()
        self.status = Status()
        self.now = 0

    def move(self, state: State) -> None:
        self.now += 1
        self.status = self.status.to(state, now_ns=self.now, reason="test")

    @precondition(lambda self: self.status.state in {"stopped", "stopping", *WAITING})
    @rule()
    def start(self) -> None:
        self.move("starting")

    @precondition(lambda self: self.status.state == "starting")
    @rule()
    def is_ready(self) -> None:
        self.move("running")

    @precondition(lambda self: self.status.state in UP)
    @rule(well=st.booleans())
    def is_asked(self, *, well: bool) -> None:
        state: State = "healthy" if well else "unhealthy"
        if state != self.status.state:
            self.move(state)

    @precondition(lambda self: self.status.state in UP | {"starting"})
    @rule(lived=st.floats(0, 20), failed=st.booleans(), policy=st.sampled_from(["always", "no", "on-failure:2"]))
    def ends(self, *, lived: float, failed: bool, policy: str) -> None:
        retry = decide(policy, lived=lived, failed=failed, failures=self.status.failures)
        self.move(retry.state)

    @precondition(lambda self: self.status.state != "stopping")
    @rule()
    def is_disabled(self) -> None:
        if self.status.state != "removing":
            self.move("stopping")
        self.move("stopped")

    @invariant()
    def knows_since_when(self) -> None:
        assert self.status.since_ns == self.now


TestLife = Life.TestCase

"""Ratios and verdicts of the bench."""

from pathlib import Path

from tests.bench.probes import Figure
from tests.bench.rows import FLOOR, OURS, PEER, Goal, Row, in_turn


def _row(unit: str, goal: Goal, **values: float) -> Row:
    row = Row("work", unit, goal)
    for side, value in values.items():
        row.add(side, Figure(value))
    return row


def test_of_times_the_smaller_is_better() -> None:
    """Half of dockerd's time is twice as good; a quarter more than the floor is 1.25 of it."""
    row = _row("s", Goal(peer=2, floor=1.2), dockerd=5.0, pluginsvc=2.5, floor=2.0)
    assert row.against_peer() == 2
    assert row.against_floor() == 1.25
    assert row.verdicts(memory_disk=True) == [("≥ 2× dockerd", True), ("≤ 1.2× floor", False)]


def test_of_rates_the_larger_is_better() -> None:
    """Half of dockerd's rate is half as good; the floor's rate is to be reached."""
    row = _row("req/CPU s", Goal(peer=1, floor=0.9), dockerd=100, pluginsvc=50, floor=55)
    assert row.verdicts(memory_disk=True) == [("≥ 1× dockerd", False), ("≥ 0.9× floor", True)]


def test_a_goal_for_memory_disks_is_none_on_disk() -> None:
    """On disk only the ratio to the floor counts for create and install."""
    row = _row("s", Goal(peer=10, floor=1.5, memory_only=True), dockerd=1, pluginsvc=1, floor=1)
    assert row.verdicts(memory_disk=False) == [("≤ 1.5× floor", True)]


def test_a_side_that_fails_makes_goals_unknown_and_stops_nobody(tmp_path: Path) -> None:
    """The failed side is asked once, says why, and the others are measured each round, in turn."""
    asked: list[tuple[str, int]] = []

    def work(side: str, number: int) -> Figure:
        asked.append((side, number))
        if side == PEER:
            raise OSError("no luck")
        return Figure(float(number))

    row = Row("work", "s", Goal(peer=1, limit=2))
    works = {side: lambda number, side=side: work(side, number) for side in (FLOOR, PEER, OURS)}
    in_turn(row, 3, tmp_path, works)
    assert asked == [(FLOOR, 1), (PEER, 1), (OURS, 1), (FLOOR, 2), (OURS, 2), (FLOOR, 3), (OURS, 3)]
    assert row.failed == {PEER: "OSError: no luck"}
    assert row.verdicts(memory_disk=True) == [("≥ 1× dockerd", None), ("≤ 2 s", True)]

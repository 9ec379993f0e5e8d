"""A row of the bench: who did what how fast, in turn, and whether that is good enough (design §7)."""

import http.client
import statistics
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import probes
from tests.bench.sides import NotDoneError
from tests.bench.wire import CallFailedError

FLOOR, PEER, OURS = "floor", "dockerd", "pluginsvc"
EXPECTED_FAILURES = (
    AssertionError,
    CallFailedError,
    NotDoneError,
    OSError,
    RuntimeError,
    http.client.HTTPException,
    subprocess.SubprocessError,
)
"""What may go wrong inside a measurement; such a row says so and the others are measured all the same."""

Work = Callable[[int], probes.Figure]


@dataclass(frozen=True)
class Goal:
    """What design §7 wants of a row; None asks for nothing.

    Attributes:
        peer: at least so many times as good as dockerd.
        floor: for times at most so many times the floor, for rates at least such a part of it.
        limit: at most this value.
        memory_only: the peer's part holds on a memory disk only.

    """

    peer: float | None = None
    floor: float | None = None
    limit: float | None = None
    memory_only: bool = False


@dataclass
class Row:
    """One kind of work.

    Attributes:
        name: in tables.
        unit: of the values: "s", "ms", "MB", or anything else for a rate.
        goal: what is wanted.
        note: what a reader of the table must know.
        figures: by side, one a round.
        failed: by side, why it could not be measured.

    """

    name: str
    unit: str
    goal: Goal = Goal()
    note: str = ""
    figures: dict[str, list[probes.Figure]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def less_is_better(self) -> bool:
        return self.unit in {"s", "ms", "MB"}

    def add(self, side: str, figure: probes.Figure) -> None:
        self.figures.setdefault(side, []).append(figure)

    def median(self, side: str) -> float | None:
        values = [figure.value for figure in self.figures.get(side, [])]
        return statistics.median(values) if values and side not in self.failed else None

    def against_peer(self) -> float | None:
        """Return how many times as good as dockerd we are."""
        ours, peer = self.median(OURS), self.median(PEER)
        if not ours or not peer:
            return None
        return peer / ours if self.less_is_better else ours / peer

    def against_floor(self) -> float | None:
        """Return our value over the floor's."""
        ours, floor = self.median(OURS), self.median(FLOOR)
        return ours / floor if ours and floor else None

    def verdicts(self, *, memory_disk: bool) -> list[tuple[str, bool | None]]:
        """Return each goal in words and whether it is met, None when that is not known."""
        found: list[tuple[str, bool | None]] = []
        goal = self.goal
        if goal.peer is not None and (memory_disk or not goal.memory_only):
            ratio = self.against_peer()
            found.append((f"≥ {goal.peer:g}× dockerd", None if ratio is None else ratio >= goal.peer))
        if goal.floor is not None:
            ratio = self.against_floor()
            fits = None if ratio is None else ratio <= goal.floor if self.less_is_better else ratio >= goal.floor
            found.append((f"{'≤' if self.less_is_better else '≥'} {goal.floor:g}× floor", fits))
        if goal.limit is not None:
            ours = self.median(OURS)
            found.append((f"≤ {goal.limit:g} {self.unit}", None if ours is None else ours <= goal.limit))
        return found


@dataclass
class Curve:
    """How the cost of one kind of work grows.

    Attributes:
        name: of the work.
        unit: as a row's.
        axis: what there is more and more of.
        note: as a row's.
        points: a row for each number of that.

    """

    name: str
    unit: str
    axis: str
    note: str = ""
    points: dict[int, Row] = field(default_factory=dict)

    def point(self, at: int) -> Row:
        """Return the row of a number, a new one at first."""
        return self.points.setdefault(at, Row(f"{self.name}, {at} {self.axis}", self.unit))


def in_turn(row: Row, rounds: int, folder: Path, works: Mapping[str, Work]) -> None:
    """Measure each side once a round, in the order given; a side that failed is not asked again.

    Args:
        row: takes the figures.
        rounds: how many.
        folder: on the file system that is synced before each measurement.
        works: by side; given the number of the round, from 1.

    """
    for number in range(1, rounds + 1):
        for side, work in works.items():
            if side in row.failed:
                continue
            probes.settle(folder)
            try:
                row.add(side, work(number))
            except EXPECTED_FAILURES as exc:
                row.failed[side] = f"{type(exc).__name__}: {exc}"

"""How long a small request takes while the daemon has much to do."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench import asker, bulk, probes
from tests.bench.rows import Goal, Row, Work, in_turn
from tests.bench.sides import NotDoneError, Side
from tests.bench.stage import Stage
from tests.support import parts

_P99 = 20
"""Milliseconds."""
_END = 60
"""Seconds until the asker must have ended."""


@dataclass(frozen=True)
class Answers:
    """Seconds that answers took, seconds that the asker was late by itself, and how it was scheduled."""

    answers: list[float]
    late: list[float]
    priority: str


def during_install(stage: Stage) -> None:
    """Measure `GET /_ping` every 5 ms during installs of eight layers."""
    eight = bulk.eight(stage)
    title = "GET /_ping during the 8-layer install"
    half, most = Row(f"{title}, p50", "ms"), Row(f"{title}, longest", "ms")
    row = Row(f"{title}, p99", "ms", Goal(limit=_P99))
    for one in (half, row, most):
        stage.row(one)
    installs = bulk.install_works(stage, eight)
    late: list[float] = []
    asked: list[int] = []

    def of(side: Side) -> Work:
        def work(number: int) -> probes.Figure:
            found = _asked_during(side, lambda: installs[side.name](number))
            half.add(side.name, probes.Figure(percentile(found.answers, 50) * 1000))
            most.add(side.name, probes.Figure(max(found.answers) * 1000))
            late.extend(found.late)
            asked.append(len(found.answers))
            own = f"{percentile(late, 99) * 1000:.2f} ms at p99, {max(late) * 1000:.2f} ms at most"
            row.note = (
                f"every {asker.EVERY * 1000:g} ms on one connection, {min(asked)} to {max(asked)} answers a round; "
                f"asked by a process of its own at {found.priority}, which was late by {own} (not counted)"
            )
            return probes.Figure(percentile(found.answers, 99) * 1000)

        return work

    in_turn(row, stage.size.rounds, stage.top, {side.name: of(side) for side in stage.sides})


def _asked_during(side: Side, work: Callable[[], object]) -> Answers:
    words = [sys.executable, "-m", "tests.bench.asker", str(side.engine.socket)]
    with subprocess.Popen(words, cwd=parts.PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()  # it asks now, or has ended
            work()
            said, _ = process.communicate(timeout=_END)
        finally:
            process.kill()  # nothing happens when it has ended
    if process.returncode:
        raise NotDoneError(f"nobody could ask {side.name}: exit {process.returncode}")
    found = Answers(**json.loads(said))
    if not found.answers:
        raise NotDoneError(f"{side.name} was done before it was asked")
    return found


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least so many percent of all are not above (the nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]

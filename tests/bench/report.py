"""What comes out of a run: tables in Markdown and a JSON document."""

import datetime as dt
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.rows import FLOOR, OURS, PEER, Curve, Row
from tests.bench.stage import MB

_SIDES = (FLOOR, PEER, OURS)
_HEADS = ["Work", "Side", "Median", "Min", "Max", "CPU s", "Peak MB", "Produced MB", "Compared", "Goal"]


def machine() -> str:
    """Return what the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpu if line.startswith("model name")), platform.machine())
    kernel = f"Linux {platform.release()}"
    return f"{os.cpu_count()} CPUs ({model}), {memory:.0f} GiB, {kernel}, Python {platform.python_version()}"


@dataclass(frozen=True)
class Result:
    """What came out of one place.

    Attributes:
        folder: where all of it lay.
        memory_disk: whether that is in memory.
        dockerd: its version.
        rows, curves: what was measured.
        failed: what could not even begin, and why.

    """

    folder: str
    memory_disk: bool
    dockerd: str
    rows: list[Row]
    curves: list[Curve]
    failed: list[str]

    def lacking(self) -> list[str]:
        """Return what was not measured, and why."""
        points = [row for curve in self.curves for row in curve.points.values()]
        found = {f"{row.name}, {side}: {why}" for row in (*self.rows, *points) for side, why in row.failed.items()}
        return self.failed + sorted(found)


def text(result: Result) -> str:
    """Return the tables of one place, followed by their notes and by what could not be measured."""
    lines = [_HEADS]
    for row in result.rows:
        sides = [side for side in _SIDES if side in row.figures or side in row.failed]
        lines += [_line(row, side, first=side == sides[0], memory_disk=result.memory_disk) for side in sides]
    blocks = [f"{'In memory' if result.memory_disk else 'On disk'}, {result.folder}; dockerd {result.dockerd}"]
    blocks += [_table(lines)] if len(lines) > 1 else []
    by_axis: dict[tuple[str, ...], list[Curve]] = {}
    for curve in result.curves:
        by_axis.setdefault((curve.axis, *map(str, sorted(curve.points))), []).append(curve)
    for (axis, *points), curves in by_axis.items():
        lines = [[f"Median by {axis}", "Side", *points]]
        for curve in curves:
            lines += _growth(curve)
        blocks.append(_table(lines))
    notes = [f"- {row.name}: {row.note}" for row in result.rows if row.note]
    notes += [f"- {curve.name}, by {curve.axis}: {curve.note}" for curve in result.curves if curve.note]
    notes += [f"- **not measured**: {why}" for why in result.lacking()]
    return "\n\n".join([*blocks, "\n".join(notes)]) + "\n"


def _table(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    whole = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in whole
    )


def _growth(curve: Curve) -> list[list[str]]:
    lines: list[list[str]] = []
    for side in _SIDES:
        medians = [curve.points[at].median(side) for at in sorted(curve.points)]
        if any(median is not None for median in medians):
            cells = ["–" if median is None else number(median) for median in medians]
            lines.append([f"{curve.name}, {curve.unit}" if not lines else "", side, *cells])
    return lines


def _line(row: Row, side: str, *, first: bool, memory_disk: bool) -> list[str]:
    figures = row.figures.get(side, [])
    if side in row.failed:
        return [row.name if first else "", side, "not measured", "", "", "", "", "", "", ""]
    values = [figure.value for figure in figures]
    median = row.median(side)
    assert median is not None
    name = row.name if first else ""
    cells = [name, side, f"{number(median)} {row.unit}", number(min(values)), number(max(values))]
    for kind, scale in (("cpu", 1), ("peak", MB), ("produced", MB)):
        found = sorted(value for figure in figures if (value := getattr(figure, kind)) is not None)
        cells.append(number(found[len(found) // 2] / scale) if found else "")
    if side != OURS:
        return [*cells, "", ""]
    compared = [
        f"{ratio(value)}× {other}"
        for other, value in ((PEER, row.against_peer()), (FLOOR, row.against_floor()))
        if value is not None
    ]
    return [*cells, ", ".join(compared), "; ".join(_verdict(*one) for one in row.verdicts(memory_disk=memory_disk))]


def _verdict(goal: str, met: bool | None) -> str:  # noqa: FBT001 - it is the value to show, no switch
    return f"{goal}: {'unknown' if met is None else 'met' if met else 'NOT met'}"


def number(value: float) -> str:
    """Return a figure in words: three digits after the point, one from 10 on, none from 100 on."""
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def ratio(value: float) -> str:
    """Return a ratio in words: two digits that say something, all of those before the point."""
    return f"{value:.2g}" if value < 9.95 else f"{value:.0f}"


def document(results: list[Result], *, about: dict[str, str]) -> str:
    """Return everything that was measured, as JSON."""
    places = [
        {
            "folder": result.folder,
            "memory_disk": result.memory_disk,
            "dockerd": result.dockerd,
            "rows": [_row(row, memory_disk=result.memory_disk) for row in result.rows],
            "curves": [
                {"name": curve.name, "unit": curve.unit, "axis": curve.axis, "note": curve.note}
                | {"points": {str(at): _row(curve.points[at], memory_disk=False) for at in sorted(curve.points)}}
                for curve in result.curves
            ],
            "not_measured": result.lacking(),
        }
        for result in results
    ]
    head = about | {"at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "machine": machine()}
    return json.dumps(head | {"places": places}, indent=2, ensure_ascii=False) + "\n"


def _row(row: Row, *, memory_disk: bool) -> dict[str, Any]:
    return {
        "name": row.name,
        "unit": row.unit,
        "less_is_better": row.less_is_better,
        "note": row.note,
        "figures": {side: [asdict(figure) for figure in figures] for side, figures in row.figures.items()},
        "failed": row.failed,
        "medians": {side: row.median(side) for side in row.figures},
        "times_as_good_as_dockerd": row.against_peer(),
        "of_floor": row.against_floor(),
        "goals": [{"goal": goal, "met": met} for goal, met in row.verdicts(memory_disk=memory_disk)],
        "wanted": {"of_dockerd": row.goal.peer if memory_disk or not row.goal.memory_only else None}
        | {"of_floor": row.goal.floor},
    }

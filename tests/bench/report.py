"""What comes out of a run: a table in Markdown and a JSON document."""

import datetime as dt
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

from tests.bench.rows import FLOOR, OURS, PEER, Row
from tests.bench.stage import MB

_HEADS = ["Work", "Side", "Median", "Min", "Max", "CPU s", "Peak MB", "Produced MB", "Compared", "Goal"]


def machine() -> str:
    """Return what the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpu if line.startswith("model name")), platform.machine())
    kernel = f"Linux {platform.release()}"
    return f"{os.cpu_count()} CPUs ({model}), {memory:.0f} GiB, {kernel}, Python {platform.python_version()}"


def table(rows: list[Row], failed: list[str], *, memory_disk: bool) -> str:
    """Return the table of all rows, followed by their notes and by what could not be measured."""
    lines = [_HEADS]
    for row in rows:
        sides = [side for side in (FLOOR, PEER, OURS) if side in row.figures or side in row.failed]
        lines += [_line(row, side, first=side == sides[0], memory_disk=memory_disk) for side in sides]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADS))]
    lines.insert(1, ["-" * width for width in widths])
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text += [""] + [f"- {row.name}: {row.note}" for row in rows if row.note]
    lacking = [*failed, *(f"{row.name}, {side}: {why}" for row in rows for side, why in row.failed.items())]
    return "\n".join(text + [f"- **not measured**: {why}" for why in lacking]) + "\n"


def _line(row: Row, side: str, *, first: bool, memory_disk: bool) -> list[str]:
    figures = row.figures.get(side, [])
    if side in row.failed:
        return [row.name if first else "", side, "not measured", "", "", "", "", "", "", ""]
    values = [figure.value for figure in figures]
    median = row.median(side)
    assert median is not None
    cells = [
        row.name if first else "",
        side,
        f"{_number(median)} {row.unit}",
        _number(min(values)),
        _number(max(values)),
    ]
    for kind, scale in (("cpu", 1), ("peak", MB), ("produced", MB)):
        found = sorted(value for figure in figures if (value := getattr(figure, kind)) is not None)
        cells.append(_number(found[len(found) // 2] / scale) if found else "")
    if side != OURS:
        return [*cells, "", ""]
    compared = [
        f"{ratio:.2g}× {other}" if ratio < 10 else f"{ratio:.0f}× {other}"
        for other, ratio in ((PEER, row.against_peer()), (FLOOR, row.against_floor()))
        if ratio is not None
    ]
    return [*cells, ", ".join(compared), "; ".join(_verdict(*one) for one in row.verdicts(memory_disk=memory_disk))]


def _verdict(goal: str, met: bool | None) -> str:  # noqa: FBT001 - it is the value to show, no switch
    return f"{goal}: {'unknown' if met is None else 'met' if met else 'NOT met'}"


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def document(rows: list[Row], *, about: dict[str, str], memory_disk: bool) -> str:
    """Return everything that was measured, as JSON."""
    found = [
        {
            "name": row.name,
            "unit": row.unit,
            "note": row.note,
            "figures": {side: [asdict(figure) for figure in figures] for side, figures in row.figures.items()},
            "failed": row.failed,
            "medians": {side: row.median(side) for side in row.figures},
            "times_as_good_as_dockerd": row.against_peer(),
            "of_floor": row.against_floor(),
            "goals": [{"goal": goal, "met": met} for goal, met in row.verdicts(memory_disk=memory_disk)],
        }
        for row in rows
    ]
    head = about | {"at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "machine": machine()}
    return json.dumps(head | {"rows": found}, indent=2, ensure_ascii=False) + "\n"

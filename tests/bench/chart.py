"""Draws what was measured: how we stand to dockerd and to the floor, row by row, and how cost grows.

Usage: python -m tests.bench.chart FILE.json FILE.png
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from tests.bench import report

_COLOURS = {"dockerd": "#2a6fbb", "floor": "#8a8f98", "pluginsvc": "#d9601a"}
_GOAL = "#111111"
_ROW = 0.45
"""Inches of height for one row of bars."""
_GROWTH = 3.2
_COLUMNS = 3
_STEEP = 8
"""From this ratio of highest to lowest on, an axis is logarithmic; others begin at 0."""


def draw(document: dict[str, Any], file: Path) -> None:
    """Write the chart of a document of the bench (`report.document`) as a PNG."""
    mpl.use("Agg")
    places = [place for place in document["places"] if any(_bars(row) for row in place["rows"])]
    curves = [curve for place in document["places"] for curve in place["curves"]]
    heights = [_ROW * sum(bool(_bars(row)) for row in place["rows"]) + 1.0 for place in places]
    lines = math.ceil(len(curves) / _COLUMNS)
    heights += [_GROWTH] * lines
    if not heights:
        return
    figure = Figure(figsize=(14, sum(heights) + 1.0), layout=ConstrainedLayoutEngine(w_pad=0.12), dpi=110)
    figure.suptitle(f"pluginsvc beside dockerd, size {document['size']}\n{document['machine']}", fontsize=11)
    # one part each: labels of one would narrow the others
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for place, part in zip(places, parts, strict=False):
        _ratios(part.subplots(), place)
    for number, curve in enumerate(curves):
        part = parts[len(places) + number // _COLUMNS]
        _growth(part.add_subplot(1, _COLUMNS, 1 + number % _COLUMNS), curve)
    figure.savefig(file)


def _bars(row: dict[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Return by side how many times as good as it we are, and how many we want to be; above 1 we are ahead."""
    found: dict[str, tuple[float, float | None]] = {}
    if ratio := row["times_as_good_as_dockerd"]:
        found["dockerd"] = ratio, row["wanted"]["of_dockerd"]
    if ratio := row["of_floor"]:
        wanted = row["wanted"]["of_floor"]
        turned = row["less_is_better"]
        found["floor"] = (1 / ratio if turned else ratio), (1 / wanted if turned and wanted else wanted)
    return found


def _ratios(axes: Axes, place: dict[str, Any]) -> None:
    rows = [(row["name"], bars) for row in place["rows"] if (bars := _bars(row))]
    reach = [value for _, bars in rows for pair in bars.values() for value in pair if value]
    axes.set_xscale("log")
    axes.set_xlim(min(0.5, *reach) / 1.3, max(2, *reach) * 1.3)
    for number, (_, bars) in enumerate(rows):
        for side, (value, wanted) in bars.items():
            at = number + (0 if len(bars) == 1 else -0.2 if side == "dockerd" else 0.2)
            axes.barh(at, value - 1, height=0.36, left=1, color=_COLOURS[side])
            # beside the end of the bar that is away from 1, and beside the goal where that is near
            ahead = value >= 1
            near = wanted and abs(math.log(wanted / value)) < 0.35
            end = (max if ahead else min)(value, wanted) if near and wanted else value
            axes.annotate(
                f"{report.ratio(value)}×",
                (end, at),
                xytext=(4 if ahead else -4, 0),
                textcoords="offset points",
                ha="left" if ahead else "right",
                va="center",
                fontsize=8,
            )
            if wanted:
                axes.plot([wanted, wanted], [at - 0.2, at + 0.2], color=_GOAL, linewidth=2)
    axes.axvline(1, color=_GOAL, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    where = "in memory" if place["memory_disk"] else "on disk"
    axes.set_title(f"{where} ({place['folder']}): how many times as good as …, right of 1 we are ahead", fontsize=10)
    for side in ("dockerd", "floor"):
        axes.barh([0], [0], color=_COLOURS[side], label=f"… {side}")
    axes.plot([], [], color=_GOAL, linewidth=2, label="goal")
    axes.legend(loc="lower right", fontsize=8)


def _growth(axes: Axes, curve: dict[str, Any]) -> None:
    for side, colour in _COLOURS.items():
        points = [(int(at), row) for at, row in curve["points"].items() if row["medians"].get(side)]
        if not points:
            continue
        values = [[figure["value"] for figure in row["figures"][side]] for _, row in points]
        places = [at for at, _ in points]
        medians = [row["medians"][side] for _, row in points]
        axes.plot(places, medians, color=colour, marker="o", markersize=4, label=side)
        axes.fill_between(places, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15)
    axes.set_xscale("log")
    axes.set_xticks([int(at) for at in curve["points"]], list(curve["points"]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(curve["axis"], fontsize=9)
    axes.set_title(f"{curve['name']}, {curve['unit']}", fontsize=10)
    low, high = axes.dataLim.intervaly
    if low > 0 and high / low > _STEEP:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}".replace(",", " ")))
    axes.tick_params(labelsize=8)
    axes.grid(color="#dddddd", linewidth=0.6)
    if axes.lines:
        axes.legend(fontsize=8)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))

"""Draws a run over time.

Usage: python -m tests.load.chart FILE.json FILE.png
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

_COLOURS = ("#d9601a", "#2a6fbb", "#8a8f98", "#3a8f4d", "#8a4fbf", "#111111")
_PARTS: dict[str, tuple[str, ...]] = {
    "memory of the daemon, MiB": ("memory (PSS), MiB", "memory (RSS), MiB"),
    "of the daemon": ("descriptors", "threads", "tasks"),
    "answers, ms": (
        "ping p50, ms",
        "ping p99, ms",
        "list p50, ms",
        "list p99, ms",
        "inspect p50, ms",
        "inspect p99, ms",
    ),
    "from a change to a fast consumer, ms": ("delivery p50, ms", "delivery p99, ms"),
    "changes a second": ("changes",),
    "deliveries a second": ("deliveries",),
    "CPU, share of one": ("daemon", "consumers"),
}
_LOGARITHMIC = {"answers, ms", "from a change to a fast consumer, ms"}


def draw(document: dict[str, Any], file: Path) -> None:
    """Write the chart of a document of `report.document` as a PNG."""
    mpl.use("Agg")
    figure = Figure(figsize=(12, 2.2 * len(_PARTS) + 1), layout=ConstrainedLayoutEngine(h_pad=0.08), dpi=100)
    plan, consumers = document["plan"], document["consumers"]
    many = sum(kind["consumers"] for kind in consumers.values())
    held = "all held" if document["held"] else "NOT all held"
    figure.suptitle(
        f"{many} consumers, {plan['mutators']} mutators, {plan['rate']:g} changes/s: {held}\n{document['machine']}",
        fontsize=11,
    )
    for axes, (title, names) in zip(figure.subplots(len(_PARTS), 1, sharex=True), _PARTS.items(), strict=True):
        for name, colour in zip(names, _COLOURS, strict=False):
            points = document["series"].get(name, [])
            axes.plot([at for at, _ in points], [value for _, value in points], color=colour, linewidth=1.2, label=name)
        axes.set_title(title, fontsize=9, loc="left")
        if title in _LOGARITHMIC:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.tick_params(labelsize=8)
        if len(names) > 1:
            axes.legend(fontsize=7, loc="upper right", ncols=3)
    figure.axes[-1].set_xlabel("seconds", fontsize=9)
    figure.savefig(file)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))

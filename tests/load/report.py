"""What a run proves: what did not hold, the figures as a table, and all of it as a JSON document."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.report import machine
from tests.load import histogram
from tests.load.mutators import CYCLE
from tests.load.press import ASKED, OWN, PREPARED, Outcome
from tests.load.watch import Look
from tests.support.fold import View

MIB = 1024 * 1024
_SHOWN = 5
_SPARE_FDS = 16
"""Descriptors that come and go: of children, blobs and the database."""


@dataclass(frozen=True)
class Bounds:
    """What has to hold besides that nothing is lost.

    Attributes:
        ping: p99 of `/_ping`, in seconds.
        growth: how much larger memory may be in the last fifth of the time than in the second one, as a share ...
        spare: ... and in bytes beside that.
        pace: share of the changes that were due that has to be done.
    """

    ping: float = 0.05
    growth: float = 0.05
    spare: int = 4 * MIB
    pace: float = 0.97


def memory(looks: Sequence[Look]) -> tuple[float, float]:
    """Return the median PSS of the second and of the last fifth of the time: of 5 minutes, the second and the last."""
    fifth = max(1, len(looks) // 5)
    return statistics.median(one.pss for one in looks[fifth : 2 * fifth] or looks), statistics.median(
        one.pss for one in looks[-fifth:]
    )


def failures(out: Outcome, bounds: Bounds) -> list[str]:
    """Say what did not hold."""
    found = list(out.problems)
    if not out.report:
        return found or ["the run did not come to its end"]
    behind = out.report["behind"]
    found += [*behind[:_SHOWN], f"and {len(behind) - _SHOWN} more are behind"] if len(behind) > _SHOWN else behind
    expected, seen = PREPARED + out.tally.actions(), Counter(out.report["actions"])
    del seen[OWN]
    if expected != seen:
        found.append(f"changes and events differ: {dict(expected - seen)} missing, {dict(seen - expected)} too many")
    if out.listed != out.snapshot:
        found.append(f"the list and a snapshot differ: {_odd(out.listed, out.snapshot)}")
    for number, views in enumerate([out.report["history"], *out.report["folds"]]):
        fold = {one["id"]: View(**one) for one in views}
        if fold != out.listed:
            found.append(f"list {number}, folded from events, and the daemon's differ: {_odd(fold, out.listed)}")
    if out.report["unchecked"]:
        found.append(f"{out.report['unchecked']} snapshots are of events that nobody got")
    due = out.plan.rate * (out.ended - out.began)
    if (done := out.tally.done.total()) < bounds.pace * due:
        found.append(f"{done} changes were done of {due:.0f} that were due: the daemon does not keep up")
    p99 = histogram.percentile(answers(out, "ping", out.began), 99)
    if not p99 <= bounds.ping:
        found.append(f"p99 of /_ping is {p99 * 1000:.1f} ms, and must be {bounds.ping * 1000:g} ms at most")
    early, late = memory(out.looks)
    if late > (limit := early * (1 + bounds.growth) + bounds.spare):
        found.append(f"memory grew from {early / MIB:.1f} to {late / MIB:.1f} MiB; the bound is {limit / MIB:.1f}")
    if out.before and out.after and out.after.fds > out.before.fds + _SPARE_FDS:
        found.append(f"{out.after.fds} descriptors are open when all have left, {out.before.fds} were before")
    highest = max(one.fds for one in out.looks)
    if (before := out.before) and highest > (most := before.fds + _clients(out) + 8 * _SPARE_FDS):
        found.append(f"{highest} descriptors were open, and {most} are the most that clients explain")
    return found


def _clients(out: Outcome) -> int:
    return out.plan.consumers.total + 1 + out.plan.mutators + len(ASKED)


def _odd(one: dict[str, View], other: dict[str, View]) -> list[str]:
    return sorted(map(repr, {*one.values()} ^ {*other.values()}))[:4]


def answers(out: Outcome, name: str, since: float = 0, until: float = float("inf")) -> dict[int, int]:
    """Return counts of what answers took, for the seconds that were told of in a span of time; see `histogram`."""
    return histogram.merged(histogram.count(one["answers"][name]) for one in out.askers if since < one["at"] <= until)


def delivery(out: Outcome, since: float = 0, until: float = float("inf")) -> dict[int, int]:
    """Return counts of what deliveries to fast consumers took."""
    parts = (one["delivery"] for one in out.consumers if since < one["at"] <= until)
    return histogram.merged({int(number): times for number, times in part.items()} for part in parts)


def series(out: Outcome) -> dict[str, list[tuple[float, float]]]:
    """Return what is drawn over time, as (seconds since the first change, value)."""
    found: dict[str, list[tuple[float, float]]] = {
        "memory (PSS), MiB": [(one.at, one.pss / MIB) for one in out.looks],
        "memory (RSS), MiB": [(one.at, one.rss / MIB) for one in out.looks],
        "descriptors": [(one.at, one.fds) for one in out.looks],
        "threads": [(one.at, one.threads) for one in out.looks],
        "tasks": [(one.at, one.tasks) for one in out.looks],
        "daemon": _rates([(one.at, one.cpu) for one in out.looks]),
        "consumers": _rates([(one["at"], one["cpu"]) for one in out.consumers]),
        "changes": _rates([(at, done) for at, done, _ in out.changes]),
        "deliveries": [(one["at"], one["events"]) for one in out.consumers],
    }
    for name in ASKED:
        for percent in (50, 99):
            points = [(one["at"], histogram.count(one["answers"][name])) for one in out.askers]
            found[f"{name} p{percent}, ms"] = _milliseconds(points, percent)
    for percent in (50, 99):
        points = [(one["at"], {int(key): times for key, times in one["delivery"].items()}) for one in out.consumers]
        found[f"delivery p{percent}, ms"] = _milliseconds(points, percent)
    return {
        name: [(round(at - out.began, 2), value) for at, value in points if out.began <= at <= out.ended + 1]
        for name, points in found.items()
    }


def _milliseconds(points: Sequence[tuple[float, dict[int, int]]], percent: float) -> list[tuple[float, float]]:
    return [(at, histogram.percentile(counts, percent) * 1000) for at, counts in points if counts]


def _rates(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return how fast a sum grows, in units a second."""
    pairs = itertools.pairwise(points)
    return [(at, (value - before) / (at - since)) for (since, before), (at, value) in pairs if at > since]


def document(out: Outcome, failed: Sequence[str], steps: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Return everything as plain values, for JSON.

    Args:
        out: of the run.
        failed: what did not hold.
        steps: of the search for the highest rate.
    """
    latencies = {name: histogram.summary(answers(out, name, out.began)) for name in ASKED}
    latencies["delivery"] = histogram.summary(delivery(out))
    latencies |= {f"change: {verb}": histogram.summary(counts) for verb, counts in sorted(out.tally.took.items())}
    late = [value for one in out.askers for value in one["late"]]
    early, last = memory(out.looks) if out.looks else (0.0, 0.0)
    seconds = max(out.ended - out.began, 1e-9)
    return {
        "machine": machine(),
        "held": not failed,
        "failed": list(failed),
        "plan": asdict(out.plan),
        "mix": dict(Counter(CYCLE)),
        "seconds": seconds,
        "changes": dict(out.tally.done),
        "changes_per_second": out.tally.done.total() / seconds,
        "events": out.last_seq,
        "deliveries": sum(one["events"] for one in out.consumers),
        "deliveries_per_second": sum(one["events"] for one in out.consumers if out.began < one["at"] <= out.ended + 1)
        / seconds,
        "consumers": out.report.get("kinds", {}),
        "latency_seconds": latencies,
        "asker_late_seconds": histogram.summary(histogram.count(late)),
        "memory_bytes": {"second_fifth": early, "last_fifth": last},
        "daemon": {name: asdict(one) if one else None for name, one in (("before", out.before), ("after", out.after))},
        "cpu_seconds": out.cpu,
        "steps": list(steps),
        "series": series(out),
    }


def text(found: dict[str, Any]) -> str:
    """Return the table for people, in Markdown."""
    rate = found["plan"]["rate"]
    kinds = ", ".join(f"{kind['consumers']} {name}" for name, kind in found["consumers"].items())
    again = sum(kind["connections"] - kind["consumers"] for kind in found["consumers"].values())
    lines = [
        found["machine"],
        "",
        f"{kinds}; {found['plan']['mutators']} mutators, {rate:g} changes/s due, {found['seconds']:.0f} s",
        "of 19 changes: " + ", ".join(f"{many} {verb}" for verb, many in found["mix"].items()),
        "",
        f"| {'ms':24} | {'p50':>9} | {'p95':>9} | {'p99':>9} | {'max':>9} |",
        f"|{'-' * 26}|{'|'.join(['-' * 11] * 4)}|",
    ]
    for name, values in found["latency_seconds"].items():
        cells = " | ".join(f"{values[key] * 1000:9.2f}" for key in ("p50", "p95", "p99", "max"))
        lines.append(f"| {name:24} | {cells} |")
    early, late = (value / MIB for value in found["memory_bytes"].values())
    cpu, spent = found["cpu_seconds"], found["seconds"]
    threads = [value for _, value in found["series"]["threads"]] or [0]
    tasks = [value for _, value in found["series"]["tasks"]] or [0]
    descriptors = [value for _, value in found["series"]["descriptors"]] or [0]
    left = after["fds"] if (after := found["daemon"]["after"]) else "unknown"
    lines += [
        "",
        f"changes: {sum(found['changes'].values())}, {found['changes_per_second']:.1f}/s; events: {found['events']}",
        f"deliveries: {found['deliveries']}, {found['deliveries_per_second']:.0f}/s; connections made again: {again}",
        f"memory (PSS) in the second and the last fifth, MiB: {early:.1f}, {late:.1f}",
        f"descriptors: {min(descriptors):.0f} to {max(descriptors):.0f}, {left} when all had left",
        f"threads: {min(threads):.0f} to {max(threads):.0f}; tasks: {min(tasks):.0f} to {max(tasks):.0f}",
        "CPU, share of one: " + ", ".join(f"{name} {seconds / spent:.2f}" for name, seconds in cpu.items()),
        f"the asker was late by itself: p99 {found['asker_late_seconds']['p99'] * 1000:.2f} ms",
    ]
    if found["steps"]:
        lines += [
            "",
            "| changes/s | done/s | deliveries/s | ping p99, ms | delivery p99, ms | holds |",
            "|--|--|--|--|--|--|",
        ]
        cell: Callable[[float], str] = lambda value: f"{value:.1f}"  # noqa: E731 - a format, used in one place
        for step in found["steps"]:
            values_ = (step["rate"], step["done"], step["deliveries"], step["ping"] * 1000, step["delivery"] * 1000)
            lines.append(f"| {' | '.join(map(cell, values_))} | {step['why'] or 'yes'} |")
        held = [step["rate"] for step in found["steps"] if not step["why"]]
        lines.append(f"highest rate that holds: {max(held, default=0):g} changes/s")
    lines += ["", "all held" if found["held"] else "NOT held:"]
    return "\n".join([*lines, *(f"- {why}" for why in found["failed"])])


def dumped(found: dict[str, Any]) -> str:
    """Return the document as JSON."""
    return json.dumps(found, indent=1) + "\n"

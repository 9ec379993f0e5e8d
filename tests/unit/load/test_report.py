"""What the load test says of a run: each thing that must hold is noticed when it does not."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.load import chart
from tests.load.consumers import Consumers
from tests.load.mutators import Tally
from tests.load.press import ASKED, PREPARED, Outcome, Plan
from tests.load.report import MIB, Bounds, document, dumped, failures, text
from tests.load.watch import Look
from tests.support.fold import View

VIEW = View("a", "load/kept:latest", "enabled", "load/kept:latest", "sha256:0")
LOOK = Look(at=0, fds=20, threads=5, rss=60 * MIB, pss=50 * MIB, cpu=0, tasks=30)
SECONDS = 50


@pytest.fixture
def out() -> Outcome:
    """Give a run in which all went well."""
    began = 1000.0
    done = Counter(create=100, set=280, enable=10, disable=10, remove=90, pull=10)
    tally = Tally(done=done, took={"set": Counter({64: 280})})
    ticks = [began + second for second in range(1, SECONDS + 1)]
    plan = Plan(Consumers(90, 5, 2, 2, 1, SECONDS), 4, 10, SECONDS)
    return Outcome(
        plan,
        began=began,
        ended=began + SECONDS,
        changes=[(at, 10 * number, 0.0) for number, at in enumerate(ticks, 1)],
        looks=[replace(LOOK, at=at, fds=120, cpu=number / 10) for number, at in enumerate(ticks)],
        before=LOOK,
        after=LOOK,
        consumers=[{"at": at, "events": 1000, "delivery": {"64": 1000}, "cpu": 1.0} for at in ticks],
        askers=[{"at": at, "answers": {name: [0.002] for name in ASKED}, "late": [0.0]} for at in ticks],
        tally=tally,
        report={
            "behind": [],
            "kinds": {"fast": {"consumers": 90, "connections": 90, "events": 50_000}},
            "history": [asdict(VIEW)],
            "folds": [[asdict(VIEW)]],
            "unchecked": 0,
            "actions": PREPARED + tally.actions() + Counter(health_status=1),
        },
        last_seq=518,
        listed={"a": VIEW},
        snapshot={"a": VIEW},
        cpu={"daemon": 10.0},
    )


def test_all_can_hold(out: Outcome) -> None:
    """A good run has no failures; events that the daemon makes by itself are none."""
    assert failures(out, Bounds()) == []


def _grow(out: Outcome) -> None:
    out.looks = [replace(one, pss=one.pss + number * MIB // 2) for number, one in enumerate(out.looks)]


def _slow(out: Outcome) -> None:
    for tick in out.askers[-2:]:
        tick["answers"]["ping"] = [0.2]


BAD: dict[str, Callable[[Outcome], Any]] = {
    "consumer 3 has event 1": lambda out: out.report["behind"].append("fast consumer 3 has event 1 of 2"),
    "'set': 1} missing": lambda out: out.report["actions"].subtract({"set": 1}),
    "'exit': 1} too many": lambda out: out.report["actions"].update({"exit": 1}),
    "a snapshot differ": lambda out: out.snapshot.clear(),
    "list 0, folded": lambda out: out.report["history"].clear(),
    "list 1, folded": lambda out: out.report["folds"][0][0].update(desired="disabled"),
    "that nobody got": lambda out: out.report.update(unchecked=1),
    "does not keep up": lambda out: setattr(out, "plan", replace(out.plan, rate=11)),
    "p99 of /_ping is 2": _slow,
    "memory grew": _grow,
    "when all have left": lambda out: setattr(out, "after", replace(LOOK, fds=60)),
    "clients explain": lambda out: out.looks.append(replace(LOOK, fds=900)),
    "answered 500": lambda out: out.problems.append("set x: answered 500"),
    "did not come to its end": lambda out: out.report.clear(),
}


@pytest.mark.parametrize("why", BAD)
def test_what_does_not_hold_is_said(out: Outcome, why: str) -> None:
    """One failure for each thing that is wrong, and no other."""
    BAD[why](out)
    (found,) = failures(out, Bounds())
    assert why in found


def test_the_document_holds_what_is_printed_and_drawn(out: Outcome, tmp_path: Path) -> None:
    """The table and the chart are made of it alone, after it has been through JSON."""
    step: dict[str, Any] = {"rate": 80.0, "done": 79.5, "deliveries": 80_000.0, "ping": 0.01, "delivery": 0.02}
    steps = [step | {"why": ""}, step | {"rate": 160.0, "why": "ping p99 70 ms"}]
    found = json.loads(dumped(document(out, ["it was too slow"], steps)))
    lines = text(found)
    assert "highest rate that holds: 80 changes/s" in lines
    assert "NOT held:\n- it was too slow" in lines
    assert found["changes_per_second"] == 10
    assert found["deliveries_per_second"] == 1000
    assert found["latency_seconds"]["ping"]["p99"] == pytest.approx(0.002, rel=0.04)
    assert found["series"]["daemon"][5][1] == pytest.approx(0.1)
    chart.draw(found, tmp_path / "load.png")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")

"""The load tests' 60 s form (`make load` has the long one): nothing is lost, whatever readers and changes do."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import pytest
import uvloop

from tests.load.consumers import Consumers
from tests.load.mutators import burst
from tests.load.press import Plan, Pressed, prepare, press
from tests.load.report import Bounds, document, failures
from tests.support.daemon import running_daemon
from tests.support.registry import Registry
from tests.support.wire import Api

pytestmark = [pytest.mark.root, pytest.mark.timeout(110)]

SECONDS = 45.0
BURST = 400
"""Changes that each of four clients makes as fast as it can while the stalled readers stall: more events than a
client's socket and the buffers before it hold."""
BOUNDS = Bounds(ping=5.0, growth=0.5, pace=0.5)
"""Generous: other tests, and whoever else uses the machine, must not make it fail."""


def test_two_hundred_readers_of_all_kinds_miss_nothing(registry: Registry, tmp_path: Path) -> None:
    """Every reader gets every event in order, every list folded from events is the daemon's, every answer is right."""
    # the stalled ones read nothing for a third of these seconds at least
    consumers = Consumers(fast=150, slow=20, stalled=10, reconnecting=16, folding=3, seconds=1.4 * SECONDS)
    plan = Plan(consumers, mutators=8, rate=10, seconds=SECONDS)

    async def drive(pressed: Pressed) -> None:
        until = time.monotonic() + SECONDS
        await pressed.last(SECONDS / 10)
        await burst(pressed.socket, 4, BURST, material, pressed.outcome.tally)
        await pressed.last(until - time.monotonic())
        metrics = await asyncio.to_thread(Api(pressed.socket).call, "GET", "/metrics")
        overflows.extend(re.findall(r"^pluginsvc_bus_overflows_total ([0-9]+)", metrics.body, re.MULTILINE))

    overflows: list[str] = []
    with running_daemon("--log-level", "warning") as daemon:
        material = prepare(daemon, registry, tmp_path)
        out = uvloop.run(press(daemon, material, plan, drive, print))
    found = document(out, failures(out, BOUNDS))
    print(found["changes"], found["consumers"], found["latency_seconds"])
    assert found["failed"] == []
    kinds = found["consumers"]
    assert {name: kind["consumers"] for name, kind in kinds.items()} == {
        "fast": 150,
        "slow": 20,
        "stalled": 10,
        "reconnecting": 16,
        "folding": 3,
        "historian": 1,
    }
    assert all(kinds[name]["connections"] > 2 * kinds[name]["consumers"] for name in ("reconnecting", "folding"))
    assert min(found["changes"].values()) > 0
    # what stalled readers have missed came from the journal; how many read again by then, the machine decides
    assert int(overflows[0]) >= 1

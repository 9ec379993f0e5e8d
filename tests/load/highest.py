"""The highest rate of changes that still holds: doubled until one does not, then halved between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tests.load import histogram
from tests.load.press import Pressed, snapshot
from tests.load.report import Bounds, answers, delivery

STEP = 20.0
"""Seconds a rate is tried for."""
LONGEST = 360.0
"""Seconds for all steps."""
_SETTLE = 10.0
"""Seconds in which those who read at once must have all that was made."""
_NEAR = 1.1
"""Rates that are this close are not told apart."""
_SLOWEST = 1.0


async def search(attempt: Callable[[float], Awaitable[bool]], start: float, *, time_is_up: Callable[[], bool]) -> float:
    """Return the highest rate that held; 0 when none did.

    Args:
        attempt: tries a rate and tells whether it held.
        start: the first.
        time_is_up: whether no more are to be tried.
    """
    holds, fails, rate = 0.0, float("inf"), start
    while not time_is_up():
        if await attempt(rate):
            holds = rate
        else:
            fails = rate
        if fails == float("inf"):
            rate = 2 * holds
        elif holds == 0:
            rate = fails / 2
        else:
            rate = (holds + fails) / 2
        if rate < _SLOWEST or fails <= holds * _NEAR:
            break
    return holds


async def drive(pressed: Pressed, steps: list[dict[str, Any]], bounds: Bounds, tell: Callable[[str], None]) -> None:
    """Search while changes are made; each step is added to `steps`, and at most six minutes pass."""
    out = pressed.outcome
    began = time.monotonic()

    async def attempt(rate: float) -> bool:
        done, since = out.tally.done.total(), time.time()
        pressed.pace.set(rate)
        went_well = await pressed.last(STEP)
        until, overdue = time.time(), pressed.pace.overdue
        done = out.tally.done.total() - done
        # next to nothing more while it is looked at
        pressed.pace.set(_SLOWEST)
        seq, _ = await asyncio.to_thread(snapshot, pressed.socket)
        behind = (await pressed.consumers.ask("settle", seq, _SETTLE))["behind"] if went_well else []
        # their ticks of the last second come within one
        await asyncio.sleep(1.1)
        out.consumers, out.askers = pressed.consumers.ticks, pressed.askers.ticks
        ping = histogram.percentile(answers(out, "ping", since, until + 1), 99)
        events = sum(one["events"] for one in out.consumers if since < one["at"] <= until + 1)
        why = ""
        if not went_well:
            why = pressed.problems()[0]
        elif behind:
            why = f"{len(behind)} consumers behind: {behind[0]}"
        elif done < bounds.pace * rate * STEP:
            why = f"done {done / STEP:.1f}/s, overdue {overdue:.1f} s"
        elif not ping <= bounds.ping:
            why = f"ping p99 {ping * 1000:.0f} ms"
        steps.append(
            {
                "rate": rate,
                "done": done / STEP,
                "deliveries": events / STEP,
                "ping": ping,
                "delivery": histogram.percentile(delivery(out, since, until + 1), 99),
                "why": why,
            }
        )
        tell(f"{rate:g} changes/s: {why or 'holds'}")
        return not why

    await search(
        attempt,
        out.plan.rate,
        time_is_up=lambda: bool(pressed.problems()) or time.monotonic() - began > LONGEST - STEP - _SETTLE,
    )

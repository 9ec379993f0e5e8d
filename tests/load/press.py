"""One run: a daemon and a registry of its own, consumers, askers and mutators on it, and what came of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import probes
from tests.load.consumers import Consumers
from tests.load.helper import Helper, helping
from tests.load.mutators import Material, Pace, Tally, mutating
from tests.load.watch import Look, look, watch
from tests.support.daemon import Daemon
from tests.support.fold import View, listed
from tests.support.registry import Registry
from tests.support.sample import build_sample_plugin
from tests.support.wire import Api, Connection, pack

KEPT = "load/kept:latest"
"""A plugin that runs all the time; its is the one that is inspected."""
ASKED = {"ping": ("/_ping", 50), "list": ("/plugins", 10), "inspect": (f"/plugins/{KEPT}/json", 10)}
"""What is asked for, and how often a second."""
PREPARED = Counter(create=3, push=2, remove=2, enable=1)
"""The events that `prepare` makes."""
OWN = "health_status"
"""The events that the daemon makes by itself, of the plugin that is kept."""
_CATCH_UP = 60.0
"""Seconds in which everybody has to come to the end."""
_LEFT = 10.0
"""Seconds in which what they held is let go; and in which they end when all is lost already."""


@dataclass(frozen=True)
class Plan:
    """What is done to the daemon.

    Attributes:
        consumers: who reads events.
        mutators: how many clients change plugins.
        rate: changes a second, by all of them together.
        seconds: for how long.
    """

    consumers: Consumers
    mutators: int
    rate: float
    seconds: float


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        plan: what was done.
        began, ended: of the changes, in seconds since the epoch.
        changes: done by when, as (seconds since the epoch, how many so far, seconds overdue).
        looks: at the daemon; `before` anybody came and `after` they had left.
        consumers, askers: what those processes said each second.
        tally: what the mutators did.
        report: what the consumers said at the end.
        last_seq: number of the last event.
        listed, snapshot: the plugins at the end, by both ways to ask.
        cpu: seconds used by the daemon with the children it has waited for, the consumers, the askers and the mutators.
        problems: what must not have happened.
    """

    plan: Plan
    began: float = 0
    ended: float = 0
    changes: list[tuple[float, int, float]] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    before: Look | None = None
    after: Look | None = None
    consumers: list[dict[str, Any]] = field(default_factory=list)
    askers: list[dict[str, Any]] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    report: dict[str, Any] = field(default_factory=dict)
    last_seq: int = 0
    listed: dict[str, View] = field(default_factory=dict)
    snapshot: dict[str, View] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Pressed:
    """A daemon under load.

    Attributes:
        socket: the daemon's.
        pace: of the changes.
        outcome: so far.
        consumers, askers: the processes.
    """

    def __init__(self, socket: Path, outcome: Outcome, consumers: Helper, askers: Helper) -> None:
        self.socket, self.outcome, self.consumers, self.askers = socket, outcome, consumers, askers
        self.pace = Pace()

    def problems(self) -> list[str]:
        """Return what has gone wrong so far."""
        return self.consumers.problems + self.askers.problems + self.outcome.tally.problems

    async def last(self, seconds: float) -> bool:
        """Let time pass; return early, and False, when something goes wrong."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.problems():
            await asyncio.sleep(min(1.0, left))
            done = self.outcome.tally.done.total()
            self.outcome.changes.append((time.time(), done, self.pace.overdue))
        return not self.problems()


async def press(
    daemon: Daemon, material: Material, plan: Plan, drive: Callable[[Pressed], Any], tell: Callable[[str], None]
) -> Outcome:
    """Put load on a daemon that nobody else uses.

    Args:
        daemon: it runs, and has never had a plugin but those of `prepare`.
        material: of `prepare`.
        plan: who and how many.
        drive: awaited while changes are made; ends the run by returning.
        tell: is told how far we are.
    """
    proc = daemon.proc
    assert proc
    out = Outcome(plan)
    path = str(daemon.socket)
    used = out.cpu["daemon"] = probes.cpu_seconds([proc.pid])
    own = time.process_time()
    out.before = look(proc.pid, daemon.socket)
    asked = [f"{name}={where}@{rate}" for name, (where, rate) in ASKED.items()]
    async with helping("tests.load.asker", path, *asked) as askers:
        words = json.dumps(asdict(plan.consumers))
        async with helping("tests.load.consumers", path, words) as consumers:
            pressed = Pressed(daemon.socket, out, consumers, askers)
            arrived = await consumers.answer()
            tell(f"{arrived['ready']} consumers are connected")
            async with _watched(proc.pid, daemon.socket, out.looks):
                pressed.pace.set(plan.rate)
                out.began = time.time()
                async with mutating(daemon.socket, plan.mutators, material, pressed.pace, out.tally):
                    await drive(pressed)
                    out.ended = time.time()
                out.last_seq, out.snapshot = await asyncio.to_thread(snapshot, daemon.socket)
                tell(f"{out.last_seq} events are made; everybody reads to the end")
                patience = _CATCH_UP if not pressed.problems() else _LEFT
                out.report = (await consumers.ask("finish", out.last_seq, patience))["finished"]
            plugins = await asyncio.to_thread(Api(daemon.socket).ok, "GET", "/pluginsvc/v1/plugins")
            out.listed = listed(plugins)
        out.consumers = consumers.ticks
    out.askers = askers.ticks
    # what is noticed of connections being closed comes a moment later
    deadline = time.monotonic() + _LEFT
    while (left := look(proc.pid, daemon.socket)).fds > out.before.fds and time.monotonic() < deadline:  # noqa: ASYNC110 - not ours
        await asyncio.sleep(0.1)
    out.after = left
    out.cpu = {
        "daemon": probes.cpu_seconds([proc.pid]) - used,
        "consumers": out.consumers[-1]["cpu"],
        "askers": out.askers[-1]["cpu"],
        "mutators": time.process_time() - own,
    }
    out.problems = pressed.problems()
    return out


@asynccontextmanager
async def _watched(pid: int, socket: Path, looks: list[Look]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(watch(pid, socket, looks))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def prepare(daemon: Daemon, registry: Registry, folder: Path) -> Material:
    """Enable the plugin that is kept, and put two versions of another into the registry.

    Args:
        daemon: without any plugin.
        registry: where to push to.
        folder: to build plugins in.
    """
    api = Api(daemon.socket)
    archives = [pack(build_sample_plugin(folder / f"v{version}", version=version)) for version in ("1", "2")]
    names = [f"{registry.host}/load/plugin:{version}" for version in ("1", "2")]
    for name, archive in zip(names, archives, strict=True):
        assert api.create(name, archive).status == 204
        pushed = api.act("push", name)
        assert pushed.status == 200, pushed
        assert not pushed.error, pushed
        api.ok("DELETE", f"/plugins/{name}")
    assert api.create(KEPT, archives[0]).status == 204
    enabled = api.act("enable", KEPT, timeout=30)
    assert enabled.status == 200, enabled
    return Material(archives[0], names[0], names[1], api.ok("GET", "/plugins/privileges", {"remote": names[0]}))


def snapshot(socket: Path) -> tuple[int, dict[str, View]]:
    """Return the list of plugins and the number of the last event that is in it."""
    connection = Connection(socket)
    try:
        connection.request("GET", "/pluginsvc/v1/events?snapshot=1")
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        lines = itertools.takewhile(lambda line: line != b"\n", iter(answer.readline, b""))
        data = next(line for line in lines if line.startswith(b"data: "))
        found = json.loads(data[6:])
        return found["seq"], listed(found["plugins"])
    finally:
        connection.close()

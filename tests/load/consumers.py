"""Readers of the event stream, a thousand in one process: fast, slow, stalled, reconnecting and folding ones.

Usage: python -m tests.load.consumers SOCKET CONSUMERS-AS-JSON

One JSON object a line comes out each second: `at`, `events` delivered, `delivery` (counts of latencies, `histogram`),
`cpu` seconds, `problems`. Commands come in, a line each: `settle SEQ SECONDS` waits until all who do not dawdle have
that event, `finish SEQ SECONDS` until everybody has, and ends. The end of the input ends it as well.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

from tests.load.folding import History
from tests.load.readers import Consumer, Fast, Folding, Historian, Reconnecting, Slow, Stalled
from tests.load.stream import Decoder

_AT_ONCE = 32
"""Connections that are being made at a time."""
_PATIENCE = 60.0
"""Seconds until all must be answered."""
_POLL = 0.02
_MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Consumers:
    """How many of each kind, and for how long.

    Attributes:
        fast: read at once; their deliveries are measured.
        slow: stop reading for seconds, again and again.
        stalled: read nothing until between a third and two thirds of the time have passed.
        reconnecting: cut their connection every few seconds and resume with `Last-Event-ID`.
        folding: keep a list of plugins, made anew from a snapshot every few seconds.
        seconds: how long the run takes.
    """

    fast: int
    slow: int
    stalled: int
    reconnecting: int
    folding: int
    seconds: float

    @property
    def total(self) -> int:
        """Return how many there are in all."""
        return self.fast + self.slow + self.stalled + self.reconnecting + self.folding


class Crowd:
    """All consumers of the process, and what they share.

    Attributes:
        decoder: takes their bytes apart.
        history: the list of plugins after each event, folded from the first on.
        random: chooses moments; the same in each run.
        leaving: whether everybody is to read to the end now.
        since: events that happened earlier are history, and say nothing of how long deliveries take.
    """

    def __init__(self, socket: str, plan: Consumers) -> None:
        self.socket, self.plan = socket, plan
        self.decoder, self.history, self.random = Decoder(), History(), random.Random(plan.total)
        self.leaving = False
        self.since = float("inf")
        self.delivery: Counter[int] = Counter()
        self.events = 0
        self.problems: list[str] = []
        self._told = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        kinds = (Fast, plan.fast), (Slow, plan.slow), (Stalled, plan.stalled), (Reconnecting, plan.reconnecting)
        self.everybody: list[Consumer] = [kind(self) for kind, many in kinds for _ in range(many)]
        self.everybody += [Historian(self), *(Folding(self) for _ in range(plan.folding))]

    def own(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a short piece of work; its failure is a problem."""

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (exc := task.exception()) is not None:
                self.problem(f"{type(exc).__name__}: {exc}")

        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(done)

    def problem(self, text: str) -> None:
        """Note what must not happen."""
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(text)

    async def connect(self, consumer: Consumer) -> None:
        """Connect a consumer, in its turn."""
        async with self._turns:
            await asyncio.get_running_loop().create_unix_connection(lambda: consumer, self.socket)

    async def arrive(self) -> None:
        """Connect everybody and wait for their answers."""
        for consumer in self.everybody:
            self.own(self.connect(consumer))
        await self._until(lambda: self.problems or all(one.connections for one in self.everybody), _PATIENCE)
        if missing := sum(not one.connections for one in self.everybody):
            self.problem(f"{missing} consumers were not answered within {_PATIENCE:g} s")

    def behind(self, seq: int, *, all_kinds: bool) -> list[str]:
        """Say who does not have an event yet."""
        return [
            f"{type(one).__name__.lower()} consumer {number} has event {one.follower.last} of {seq}"
            for number, one in enumerate(self.everybody)
            if one.follower.last < seq and (all_kinds or not one.dawdles)
        ]

    async def settle(self, seq: int, seconds: float, *, all_kinds: bool) -> list[str]:
        """Wait until they have an event; return who has not."""
        await self._until(lambda: not self.behind(seq, all_kinds=all_kinds), seconds)
        return self.behind(seq, all_kinds=all_kinds)

    async def finish(self, seq: int, seconds: float) -> dict[str, Any]:
        """Have everybody read to the end; return what they saw, and who has not come to the end."""
        self.leaving = True
        for consumer in self.everybody:
            consumer.leave()
        behind = await self.settle(seq, seconds, all_kinds=True)
        folds = [one.fold for one in self.everybody if isinstance(one, Folding)]
        report = {
            "behind": behind,
            "kinds": self._kinds(),
            "history": self.history.views(),
            "unchecked": self.history.unchecked(),
            "actions": self.history.actions,
            "folds": [[asdict(view) for view in fold.plugins.values()] for fold in folds],
        }
        for consumer in self.everybody:
            consumer.close()
        return report

    def _kinds(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for one in self.everybody:
            kind = found.setdefault(type(one).__name__.lower(), {"consumers": 0, "connections": 0, "events": 0})
            kind["consumers"] += 1
            kind["connections"] += one.connections
            kind["events"] += one.events
        return found

    def tick(self) -> dict[str, Any]:
        """Return what happened since the last tick."""
        found = {
            "at": time.time(),
            "events": self.events,
            "delivery": dict(self.delivery),
            "cpu": time.process_time(),
            "problems": self.problems[self._told :],
        }
        self.events, self._told = 0, len(self.problems)
        self.delivery.clear()
        return found

    @staticmethod
    async def _until(true: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not true() and time.monotonic() < deadline:  # noqa: ASYNC110 - each of a thousand would have to tell
            await asyncio.sleep(_POLL)


def _say(**found: Any) -> None:
    print(json.dumps(found), flush=True)


async def _main(socket: str, plan: Consumers) -> None:
    loop = asyncio.get_running_loop()
    crowd = Crowd(socket, plan)
    loop.set_exception_handler(lambda _, context: crowd.problem(f"in the load generator: {context}"))
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)

    async def tell() -> None:
        due = time.monotonic()
        while True:
            due += 1
            await asyncio.sleep(due - time.monotonic())
            _say(**crowd.tick())

    await crowd.arrive()
    crowd.since = time.time()
    telling = asyncio.ensure_future(tell())
    gc.collect()
    gc.freeze()
    _say(ready=sum(bool(one.connections) for one in crowd.everybody))
    while line := (await commands.readline()).decode():
        verb, seq, seconds = line.split()
        if verb == "finish":
            report = await crowd.finish(int(seq), float(seconds))
            telling.cancel()
            _say(**crowd.tick())
            _say(finished=report)
            return
        _say(behind=await crowd.settle(int(seq), float(seconds), all_kinds=False))


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1], Consumers(**json.loads(sys.argv[2]))))

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
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict, dataclass
from typing import Any, cast

import uvloop

from tests.load.folding import History
from tests.load.histogram import bucket
from tests.load.stream import Block, Decoder, Follower, StreamError, Wire
from tests.support.fold import Fold, FoldError

_PATH = "/pluginsvc/v1/events"
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


class Consumer(asyncio.Protocol):
    """One reader, over all its connections.

    Attributes:
        dawdles: whether it is behind on purpose.
        connections: how many were answered.
        events: how many it got, doubled ones as well.
    """

    dawdles = False

    def __init__(self, crowd: Crowd) -> None:
        self.crowd, self.follower = crowd, Follower()
        self.connections = self.events = 0
        self.transport: asyncio.Transport | None = None
        self._wire = Wire()
        self._timer: asyncio.TimerHandle | None = None
        self._again = self._closed = False

    def query(self) -> str:
        """Return the query of the next connection."""
        return "after=0"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # no isinstance: the transports of uvloop are no subclasses
        self.transport, self._wire = cast("asyncio.Transport", transport), Wire()
        resumed = f"Last-Event-ID: {self.follower.last}\r\n" if self.connections else ""
        self.transport.write(f"GET {_PATH}?{self.query()} HTTP/1.1\r\nHost: localhost\r\n{resumed}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        try:
            blocks = self.crowd.decoder.feed(self._wire, data)
            if blocks:
                self.blocks(blocks)
        except (StreamError, FoldError, ValueError, KeyError) as exc:
            self.crowd.problem(f"{type(self).__name__.lower()} consumer: {exc!r}"[:1000])
            self.close()

    def blocks(self, blocks: Iterable[Block]) -> None:
        """Take what has come."""
        before = self.follower.last
        for block in blocks:
            if not self.follower.take(block) and self.follower.last == before:
                self.answered()
        self.events += self.follower.last - before
        self.crowd.events += self.follower.last - before

    def answered(self) -> None:
        """Note where the stream goes on from: the first block of a connection, and each heartbeat."""
        if self._timer is None:
            self.connections += 1
            self._timer = asyncio.get_running_loop().call_later(self.moment(), self.act)

    def moment(self) -> float:
        """Return in how many seconds `act` is called."""
        return 3600

    def act(self) -> None:
        """Do what its kind does from time to time."""

    def later(self, seconds: float) -> None:
        """Have `act` called."""
        self._timer = asyncio.get_running_loop().call_later(seconds, self.act)

    def cut(self) -> None:
        """End the connection in the middle of whatever comes, and make another."""
        self._again = True
        assert self.transport
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._again and not self._closed:
            self._again = False
            self.crowd.own(self.crowd.connect(self))
        elif not self._closed:
            self.crowd.problem(
                f"{type(self).__name__.lower()} consumer: the daemon cut it off after {self.follower.last}"
            )
            self._closed = True

    def leave(self) -> None:
        """Read to the end from now on."""
        if self._timer:
            self._timer.cancel()

    def close(self) -> None:
        """End the connection for good."""
        self._closed = True
        if self.transport:
            self.transport.abort()


class Fast(Consumer):
    def blocks(self, blocks: Iterable[Block]) -> None:
        now, delivery = time.time(), self.crowd.delivery
        super().blocks(blocks)
        for block in blocks:
            if block.data and block.time >= self.crowd.since:
                delivery[bucket(max(0, int((now - block.time) * 1e6)))] += 1


class Slow(Consumer):
    dawdles = True
    _reads = True

    def moment(self) -> float:
        return self.crowd.random.uniform(0, 2)

    def act(self) -> None:
        assert self.transport
        self._reads = not self._reads
        if self._reads:
            self.transport.resume_reading()
            self.later(self.crowd.random.uniform(0.05, 0.5))
        else:
            self.transport.pause_reading()
            self.later(self.crowd.random.uniform(1, 6))

    def leave(self) -> None:
        super().leave()
        if not self._reads and self.transport:
            self._reads = True
            self.transport.resume_reading()


class Stalled(Slow):
    def moment(self) -> float:
        return 0

    def act(self) -> None:
        assert self.transport
        self._reads = not self._reads
        if self._reads:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()
            self.later(self.crowd.plan.seconds * self.crowd.random.uniform(1 / 3, 2 / 3))


class Reconnecting(Consumer):
    dawdles = True

    def moment(self) -> float:
        return self.crowd.random.uniform(0.2, 6)

    def act(self) -> None:
        if not self.crowd.leaving:
            self.cut()


class Historian(Consumer):
    """Decodes every event, for the others' lists to be compared with."""

    def blocks(self, blocks: Iterable[Block]) -> None:
        super().blocks(blocks)
        for block in blocks:
            if block.data:
                self.crowd.history.apply(block.document())


class Folding(Reconnecting):
    """Begins with a snapshot each time it connects."""

    def __init__(self, crowd: Crowd) -> None:
        super().__init__(crowd)
        self.fold = Fold()

    def query(self) -> str:
        return "snapshot=1"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # it forgets what it had, so it resumes from nothing
        counted, self.connections = self.connections, 0
        super().connection_made(transport)
        self.connections = counted

    def blocks(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            if block.kind == "snapshot":
                found = block.document()
                if found["seq"] != block.seq:
                    raise StreamError(f"a snapshot of event {found['seq']} came as number {block.seq}")
                self.fold = Fold()
                self.fold.snapshot(found["plugins"], found["seq"])
                self.follower.last = block.seq
                self.crowd.history.compare(self.fold)
                self.answered()
            else:
                super().blocks((block,))
                if block.data:
                    self.fold.apply(block.document())

    def act(self) -> None:
        self.crowd.history.compare(self.fold)
        super().act()


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

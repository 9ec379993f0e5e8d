"""The kinds of readers of the event stream, each over all its connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from tests.load.histogram import bucket
from tests.load.stream import Block, Follower, StreamError, Wire
from tests.support.fold import Fold, FoldError

if TYPE_CHECKING:
    from tests.load.consumers import Crowd

_PATH = "/pluginsvc/v1/events"


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

"""Many clients at once on one daemon's socket: requests one after another, and readers of `/events`.

Everything here runs on an event loop of the bench's own process; what is measured is the CPU time of the daemon.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.bench import probes
from tests.bench.sides import NotDoneError

CONNECTIONS = 32
SUBSCRIBERS = 200
_WARM_UP = 0.2
_LAST_CHUNK = b"0\r\n\r\n"


class _Asker(asyncio.Protocol):
    """Sends a request, waits for the whole answer, sends the next; counts."""

    def __init__(self, path: str) -> None:
        self._request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self._transport: asyncio.Transport | None = None
        self._got = 0
        self._whole = 0
        self.done = 0
        self.wrong = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._got:
            head, _, body = data.partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                self.wrong = data[:300]
                return
            length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            # 0 means chunked: such an answer ends with an empty chunk
            self._whole = len(data) - len(body) + int(length) if length else 0
        self._got += len(data)
        if self._got == self._whole or (not self._whole and data.endswith(_LAST_CHUNK)):
            self._got = 0
            self.done += 1
            assert self._transport
            self._transport.write(self._request)
        elif self._whole and self._got > self._whole:
            self.wrong = b"more than Content-Length says"

    def connection_lost(self, exc: Exception | None) -> None:
        self._got = -1

    def close(self) -> None:
        if self._transport:
            self._transport.abort()


def requests(socket: Path, path: str, *, seconds: float, roots: probes.Roots) -> probes.Figure:
    """Ask for `path` on 32 connections and return the requests answered per CPU second of the daemon.

    Args:
        socket: of the daemon.
        path: what to ask for.
        seconds: how long to count, after a fifth of a second that does not count.
        roots: the daemon's processes.

    """
    return asyncio.run(_requests(socket, path, seconds, roots))


async def _requests(socket: Path, path: str, seconds: float, roots: probes.Roots) -> probes.Figure:
    loop = asyncio.get_running_loop()
    askers = [_Asker(path) for _ in range(CONNECTIONS)]
    try:
        for asker in askers:
            await loop.create_unix_connection(lambda asker=asker: asker, str(socket))  # type: ignore[misc]  # mypy knows no type for a lambda's default
        await asyncio.sleep(_WARM_UP)
        before, cpu = sum(asker.done for asker in askers), probes.cpu_seconds(roots())
        await asyncio.sleep(seconds)
        count, cpu = sum(asker.done for asker in askers) - before, probes.cpu_seconds(roots()) - cpu
    finally:
        for asker in askers:
            asker.close()
    if wrong := next((asker.wrong for asker in askers if asker.wrong), b""):
        raise NotDoneError(f"GET {path} answered {wrong!r}")
    if not count or not cpu:
        raise NotDoneError(f"GET {path} was answered {count} times in {cpu} CPU seconds")
    return probes.Figure(count / cpu, cpu)


class _Reader(asyncio.Protocol):
    """Reads `/events`; counts the events by a mark that stands in each once."""

    def __init__(self, query: dict[str, str]) -> None:
        self._request = f"GET /events?{urlencode(query)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self._transport: asyncio.BaseTransport | None = None
        self.pieces: list[bytes] = []
        self.started = asyncio.Event()
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        self.started.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    def close(self) -> None:
        if self._transport:
            assert isinstance(self._transport, asyncio.Transport)
            self._transport.abort()

    def events(self) -> list[dict[str, Any]]:
        """Return what has come so far, the chunks' framing taken off."""
        _, _, rest = b"".join(self.pieces).partition(b"\r\n\r\n")
        body = b""
        found = []
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size or b"0", 16)
            body, rest = body + rest[:length], rest[length + 2 :]
        for line in body.splitlines():
            found.append(json.loads(line))
        return found


@dataclass(frozen=True)
class Delivered:
    """What came of one burst of events.

    Attributes:
        cpu: CPU seconds of the daemon, from the first change until the last event had arrived.
        seconds: by the clock.
        deliveries: events, over all readers.

    """

    cpu: float
    seconds: float
    deliveries: int


def fan_out(socket: Path, burst: Callable[[], int], *, readers: int, roots: probes.Roots) -> Delivered:
    """Make a burst of events under the eyes of so many readers, and wait until each has all of them.

    Args:
        socket: of the daemon.
        burst: makes the events, in a thread, and returns how many.
        readers: how many follow `/events`; may be 0.
        roots: the daemon's processes.

    Raises:
        NotDoneError: a reader did not get every event, in the same order as the others.

    """
    return asyncio.run(_fan_out(socket, burst, readers, roots))


async def _fan_out(socket: Path, burst: Callable[[], int], count: int, roots: probes.Roots) -> Delivered:
    filters = {"filters": json.dumps({"type": ["plugin"]})}
    readers = [_Reader(filters) for _ in range(count)]
    try:
        await _connect(socket, readers)
        cpu, began = probes.cpu_seconds(roots()), time.perf_counter()
        expected = await asyncio.to_thread(burst)
        deadline = time.perf_counter() + 20
        while any(_count(reader) < expected for reader in readers) and time.perf_counter() < deadline:
            await asyncio.sleep(0.01)
        cpu, seconds = probes.cpu_seconds(roots()) - cpu, time.perf_counter() - began
    finally:
        for reader in readers:
            reader.close()
    seen = [[(event["Action"], event["Actor"]["ID"]) for event in reader.events()] for reader in readers]
    for one in seen:
        if len(one) != expected or one != seen[0]:
            raise NotDoneError(f"a reader of /events got {len(one)} of {expected} events, or in another order")
    return Delivered(cpu, seconds, expected * count)


def _count(reader: _Reader) -> int:
    return sum(piece.count(b'"Action":"') for piece in reader.pieces)


async def _connect(socket: Path, readers: Iterable[_Reader]) -> None:
    """Connect readers and wait until each has its headers, so that each follows from here on."""
    loop = asyncio.get_running_loop()
    for reader in readers:
        await loop.create_unix_connection(lambda reader=reader: reader, str(socket))  # type: ignore[misc]  # as above
    async with asyncio.timeout(20):
        for reader in readers:
            await reader.started.wait()

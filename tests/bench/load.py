"""Many clients at once on one daemon's socket: requests one after another, and readers of `/events`.

Everything here runs on an event loop of the bench's own process; what is measured is the CPU time of the daemon.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from tests.bench import probes
from tests.bench.sides import NotDoneError

CONNECTIONS = 32
SUBSCRIBERS = 200
_WARM_UP = 0.1
_SUBSCRIBED = 0.3
"""Seconds after the headers: dockerd sends those before it subscribes."""
_PUBLISHED = 0.3
"""Seconds before readers connect: an event of earlier work may still be on its way."""
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
        seconds: how long to count, after a tenth of a second that does not count.
        roots: the daemon's processes.

    """
    return asyncio.run(_requests(socket, path, seconds, roots))


async def _requests(socket: Path, path: str, seconds: float, roots: probes.Roots) -> probes.Figure:
    loop = asyncio.get_running_loop()
    askers: list[_Asker] = []
    try:
        for _ in range(CONNECTIONS):
            _, asker = await loop.create_unix_connection(partial(_Asker, path), str(socket))
            askers.append(asker)
        await asyncio.sleep(_WARM_UP)
        before, cpu = sum(asker.done for asker in askers), probes.process_seconds(roots())
        await asyncio.sleep(seconds)
        count, cpu = sum(asker.done for asker in askers) - before, probes.process_seconds(roots()) - cpu
    finally:
        for asker in askers:
            asker.close()
    if wrong := next((asker.wrong for asker in askers if asker.wrong), b""):
        raise NotDoneError(f"GET {path} answered {wrong!r}")
    if not count or not cpu:
        raise NotDoneError(f"GET {path} was answered {count} times in {cpu} CPU seconds")
    return probes.Figure(count / cpu, cpu)


class _Reader(asyncio.Protocol):
    """Follows `/events` until it has so many; counts by a mark that stands in each event once."""

    def __init__(self, expected: int) -> None:
        query = urlencode({"filters": json.dumps({"type": ["plugin"]})})
        self._request = f"GET /events?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self._left = expected
        self.started, self.over = asyncio.Event(), asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        self.started.set()
        self._left -= data.count(b'"Action":"')
        if self._left <= 0:
            self.over.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.started.set()
        self.over.set()

    def close(self) -> None:
        if self._transport:
            self._transport.abort()

    def events(self) -> list[tuple[str, str]]:
        """Return action and plugin of what has come, the framing of the chunks taken off."""
        data = b"".join(self._pieces)
        at = data.find(b"\r\n\r\n") + 4
        lines = []
        while (end := data.find(b"\r\n", at)) > 0:
            length = int(data[at:end], 16)
            lines.append(data[end + 2 : end + 2 + length])
            at = end + 4 + length
        found = [json.loads(line) for line in b"".join(lines).splitlines()]
        return [(event["Action"], event["Actor"]["ID"]) for event in found]


def fan_out(
    socket: Path, burst: Callable[[], object], *, expected: int, readers: int, roots: probes.Roots
) -> probes.Figure:
    """Make events under the eyes of many readers, wait until each has all, and return what it cost the daemon.

    The figure's value is the seconds by the clock; both it and the CPU seconds run from the first change until the
    last event has arrived.

    Args:
        socket: of the daemon.
        burst: makes the events, in a thread.
        expected: how many it makes.
        readers: how many follow `/events`; may be 0.
        roots: the daemon's processes.

    Raises:
        NotDoneError: a reader did not get every event, in the same order as the others.

    """
    return asyncio.run(_fan_out(socket, burst, expected, readers, roots))


async def _fan_out(
    socket: Path, burst: Callable[[], object], expected: int, count: int, roots: probes.Roots
) -> probes.Figure:
    loop = asyncio.get_running_loop()
    readers: list[_Reader] = []
    await asyncio.sleep(_PUBLISHED if count else 0)
    try:
        for _ in range(count):
            _, reader = await loop.create_unix_connection(partial(_Reader, expected), str(socket))
            readers.append(reader)
        await asyncio.gather(*(asyncio.wait_for(reader.started.wait(), 20) for reader in readers))
        await asyncio.sleep(_SUBSCRIBED if readers else 0)
        cpu, began = probes.process_seconds(roots()), time.perf_counter()
        await asyncio.to_thread(burst)
        with contextlib.suppress(TimeoutError):  # the counts below say what is missing
            await asyncio.wait_for(asyncio.gather(*(reader.over.wait() for reader in readers)), 20)
        cpu, seconds = probes.process_seconds(roots()) - cpu, time.perf_counter() - began
    finally:
        for reader in readers:
            reader.close()
    seen = [reader.events() for reader in readers]
    for one in seen:
        if len(one) != expected or one != seen[0]:
            odd = next((pair for pair in zip(one, seen[0], strict=False) if pair[0] != pair[1]), one[-1:])
            raise NotDoneError(f"a reader of /events got {len(one)} of {expected} events; different or last: {odd}")
    return probes.Figure(seconds, cpu)

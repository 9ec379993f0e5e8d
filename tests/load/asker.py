"""Asks a daemon for `/_ping`, the list and one plugin, each at a pace of its own, whatever the answers take.

Usage: python -m tests.load.asker SOCKET NAME=PATH@RATE...      rates in requests a second

One JSON object a line comes out each second: `at`, `answers` (seconds they took, by name), `late` (seconds that we were
late ourselves), `problems`. It ends with its input. An answer counts from the moment its request was due, also when the
one before it had not come: another client would have waited as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sys
import time
from collections import deque
from functools import partial
from typing import cast

import uvloop

_GOOD = b"HTTP/1.1 200 "
_LAST_CHUNK = b"0\r\n\r\n"


class Asker(asyncio.Protocol):
    """One kind of request on one connection.

    Args:
        path: what to ask for.
        rate: how often, in requests a second.

    Attributes:
        answers: seconds each took, since somebody last looked.
        late: seconds that each was sent late though nothing was in the way.
        problems: answers that are no good.
    """

    def __init__(self, path: str, rate: float) -> None:
        self._request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self._path, self._every = path, 1 / rate
        self._transport: asyncio.Transport | None = None
        self._due: deque[float] = deque()
        self._raw = bytearray()
        self._whole = 0
        self.answers: list[float] = []
        self.late: list[float] = []
        self.problems: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # no isinstance: the transports of uvloop are no subclasses
        self._transport = cast("asyncio.Transport", transport)
        self._fall_due(time.monotonic())

    def _fall_due(self, at: float) -> None:
        now = time.monotonic()
        if not self._due:
            self.late.append(now - at)
            self._send()
        self._due.append(at)
        loop = asyncio.get_running_loop()
        loop.call_later(at + self._every - now, self._fall_due, at + self._every)

    def _send(self) -> None:
        assert self._transport
        self._raw.clear()
        self._whole = 0
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._raw += data
        if not self._whole:
            head, found, _ = self._raw.partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(_GOOD):
                self.problems.append(f"GET {self._path} answered {bytes(self._raw[:500])!r}")
            length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            # -1: an answer in chunks, which ends with an empty one
            self._whole = len(head) + 4 + int(length) if length else -1
        if len(self._raw) == self._whole or (self._whole < 0 and self._raw.endswith(_LAST_CHUNK)):
            self.answers.append(time.monotonic() - self._due.popleft())
            if self._due:
                self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self.problems.append(f"the daemon cut off who asked for {self._path}: {exc!r}")


async def _main(socket: str, words: list[str]) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(over), sys.stdin)
    askers: dict[str, Asker] = {}
    for word in words:
        name, _, rest = word.partition("=")
        path, _, rate = rest.rpartition("@")
        _, askers[name] = await loop.create_unix_connection(partial(Asker, path, float(rate)), socket)
    gc.collect()
    gc.freeze()
    due, waiting = time.monotonic(), asyncio.ensure_future(over.read())
    while not waiting.done():
        due += 1
        await asyncio.wait([waiting], timeout=due - time.monotonic())
        found = {
            "at": time.time(),
            "answers": {name: asker.answers for name, asker in askers.items()},
            "late": [late for asker in askers.values() for late in asker.late],
            "cpu": time.process_time(),
            "problems": [problem for asker in askers.values() for problem in asker.problems],
        }
        for asker in askers.values():
            asker.answers, asker.late, asker.problems = [], [], []
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    # so that we run the moment an answer is there, also when both CPUs are full; some containers do not allow it
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    uvloop.run(_main(sys.argv[1], sys.argv[2:]))

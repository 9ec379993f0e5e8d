"""Readers of our own event stream (Server-Sent Events), as a plain program would have them."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support.wire import Connection

_PATH = "/pluginsvc/v1/events"


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a stream.

    Attributes:
        id: the number it moves the reader to, None where it has none.
        kind: ``message``, ``gap`` or ``snapshot``; empty for one without data.
        data: decoded.
    """

    id: int | None
    kind: str
    data: Any


def blocks(answer: http.client.HTTPResponse) -> Iterator[Block]:
    """Yield the blocks of an answer until it ends; one that is cut in the middle is no block."""
    fields: dict[str, str] = {}
    while line := answer.readline():
        text = line.decode().rstrip("\n")
        if text:
            key, _, value = text.partition(":")
            fields[key] = value.removeprefix(" ")
        elif fields:
            number = int(fields["id"]) if "id" in fields else None
            data = json.loads(fields["data"]) if "data" in fields else None
            yield Block(number, fields.get("event", "message") if "data" in fields else "", data)
            fields = {}


@contextmanager
def opened(
    socket: Path, query: Mapping[str, object] | None = None, *, last: int | None = None, timeout: float = 30.0
) -> Iterator[http.client.HTTPResponse]:
    """Open the stream; ``last`` is sent as ``Last-Event-ID``."""
    connection = Connection(socket, timeout)
    try:
        headers = {} if last is None else {"Last-Event-ID": str(last)}
        connection.request("GET", f"{_PATH}?{urlencode(query)}" if query else _PATH, headers=headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        yield answer
    finally:
        connection.close()


def events(socket: Path, **query: object) -> list[dict[str, Any]]:
    """Return the events of a stream that has an end."""
    with opened(socket, query) as answer:
        return [block.data for block in blocks(answer) if block.kind == "message"]


class Consumer(threading.Thread):
    """Follows the stream over every loss of its connection, until it has seen a number.

    Attributes:
        seen: numbers of the events, in the order in which they came.
        connections: how many times it has connected.
        odd: what is neither event nor number, such as a gap.
    """

    def __init__(self, socket: Path) -> None:
        super().__init__(daemon=True)
        self.seen: list[int] = []
        self.events: list[dict[str, Any]] = []
        self.connections = 0
        self.odd: list[Block] = []
        self.attached = threading.Event()
        self._socket = socket
        self._last: int | None = None
        self._until = threading.Event()
        self._end = 2**63

    def finish(self, seq: int, timeout: float = 30.0) -> None:
        """Have it end after this number, and wait for that."""
        self._end = seq
        self._until.set()
        self.join(timeout)
        assert not self.is_alive(), f"at {self._last} after {self.connections} connections, wanted {seq}"

    def run(self) -> None:
        """Read."""
        while (self._last or 0) < self._end:
            with suppress(OSError, http.client.HTTPException), opened(self._socket, last=self._last, timeout=1) as got:
                self.connections += 1
                for block in blocks(got):
                    self._take(block)
                    if (self._last or 0) >= self._end:
                        return
            # the daemon is away: not to be asked all the time
            self._until.wait(0.02)

    def _take(self, block: Block) -> None:
        if block.kind == "message":
            self.seen.append(block.data["seq"])
            self.events.append(block.data)
            assert block.id == block.data["seq"]
        elif block.kind:
            self.odd.append(block)
        self._last = block.id
        self.attached.set()

"""The native event stream from a reader's side: bytes of an HTTP answer to blocks, and what may follow what.

Made for a thousand readers in one process: those that keep up get the same bytes, which are taken apart once.
"""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import Any

import msgspec

_HEAD_END = b"\r\n\r\n"
_GOOD = b"HTTP/1.1 200 "
_KEPT = 512
"""Pieces of the stream that are remembered for the readers who get them a moment later."""


class StreamError(AssertionError):
    """A stream is not what it has to be."""


class Block:
    """One block of a stream of Server-Sent Events.

    Attributes:
        kind: ``event`` of the block; empty for an event of ours, and for a block that only moves the position.
        seq: its ``id``; -1 without one.
        data: empty for a block that only moves the position.
    """

    def __init__(self, raw: bytes) -> None:
        self.kind, self.seq, self.data = "", -1, b""
        for line in raw.split(b"\n"):
            if line.startswith(b"id: "):
                self.seq = int(line[4:])
            elif line.startswith(b"data: "):
                self.data = line[6:]
            elif line.startswith(b"event: "):
                self.kind = line[7:].decode()
            elif line and not line.startswith(b":"):
                raise StreamError(f"no line of a stream: {line[:200]!r}")
        if self.seq < 0:
            raise StreamError(f"a block without a number: {raw[:200]!r}")

    def document(self) -> Any:
        """Return the decoded data."""
        return msgspec.json.decode(self.data)

    @cached_property
    def time(self) -> float:
        """When the event happened, in seconds since the epoch."""
        at = self.data.index(b'"time":"') + 8
        return datetime.fromisoformat(self.data[at : self.data.index(b'"', at)].decode()).timestamp()


class Wire:
    """Takes one answer apart, however it is cut into pieces: head, chunks (RFC 9112 section 7.1), blocks."""

    __slots__ = ("_body", "_headed", "_raw")

    def __init__(self) -> None:
        self._raw = self._body = b""
        self._headed = False

    @property
    def whole(self) -> bool:
        """Whether the next byte begins a chunk that begins a block."""
        return self._headed and not self._raw and not self._body

    def feed(self, data: bytes) -> list[Block]:
        """Return the blocks that are complete now.

        Raises:
            StreamError: the answer is no good one, or ends.
        """
        raw = self._raw + data
        if not self._headed:
            head, found, rest = raw.partition(_HEAD_END)
            if not found:
                self._raw = raw
                return []
            if not head.startswith(_GOOD) or b"text/event-stream" not in head:
                raise StreamError(f"answered {raw[:500]!r}")
            self._headed, raw = True, rest
        at, pieces = 0, [self._body]
        while (end := raw.find(b"\r\n", at)) > 0:
            size = int(raw[at:end], 16)
            if not size:
                raise StreamError("the stream ended")
            begin = end + 2
            if len(raw) < begin + size + 2:
                break
            pieces.append(raw[begin : begin + size])
            at = begin + size + 2
        self._raw = raw[at:]
        *whole, self._body = b"".join(pieces).split(b"\n\n")
        return [Block(one) for one in whole]


class Decoder:
    """Feeds wires, and remembers what whole pieces hold."""

    def __init__(self) -> None:
        self._known: dict[bytes, list[Block]] = {}

    def feed(self, wire: Wire, data: bytes) -> list[Block]:
        """Return the blocks that are complete now."""
        if not wire.whole:
            return wire.feed(data)
        blocks = self._known.get(data)
        if blocks is None:
            blocks = wire.feed(data)
            if wire.whole:
                if len(self._known) >= _KEPT:
                    self._known.clear()
                self._known[data] = blocks
        return blocks


class Follower:
    """What one reader has seen.

    Attributes:
        last: number of the last event it has, over all its connections.
    """

    __slots__ = ("last",)

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def take(self, block: Block) -> bool:
        """Check what comes next; tell whether it is an event.

        Raises:
            StreamError: something is missing, doubled or out of order.
        """
        if block.kind:
            raise StreamError(f"after event {self.last} came a {block.kind}: {block.data[:300]!r}")
        if not block.data:
            if block.seq != self.last:
                raise StreamError(f"after event {self.last} the stream gave its position as {block.seq}")
            return False
        if block.seq != self.last + 1:
            raise StreamError(f"after event {self.last} came event {block.seq}")
        self.last = block.seq
        return True

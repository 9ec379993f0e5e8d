"""One HTTP/1.1 exchange with a peer that is not trusted (RFC 9112).

aiohttp's client parses all that a peer sends before anybody else gets a turn: a flood of interim answers held up the
daemon for 2.2 s, and the time-out with it. Here bytes are asked for, a little at a time, and counted.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Final

import anyio
from anyio.abc import ByteStream

MAX_ANSWER: Final = 1 << 20
"""Most bytes of an answer's body, with the framing of its chunks."""

MAX_HEAD: Final = 64 * 1024
"""Most bytes before the body, interim answers included."""

_PIECE = 16 * 1024
_MAX_CHUNK_LINE = 256
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?")
_NAME = re.compile(rb"[!#-'*+.^_`|~0-9A-Za-z-]+")
_HEX = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")


class NoHTTP(Exception):
    """What came is no answer of HTTP, is too large, or is not whole; for ``rpc`` to convert."""


class Exchange:
    """A request that is sent and its answer.

    Args:
        stream: fresh, and closed by its owner.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._fields: dict[bytes, bytes] = {}
        self.status = 0

    async def post(self, host: str, path: str, headers: dict[str, str], body: bytes) -> None:
        """Send a request and wait for the head of its answer, whose ``status`` is then known.

        Raises:
            NoHTTP: that is none.
            EndOfStream, BrokenResourceError: the connection ended before.
        """
        fields = {"Host": host, **headers, "Connection": "close", "Content-Length": str(len(body))}
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        # who answers without reading to the end may have closed; the answer is there all the same
        with suppress(anyio.BrokenResourceError):
            await self._stream.send("\r\n".join(lines).encode() + body)
        spent = 0
        while not self.status or (self.status < 200 and self.status != 101):
            while (end := self._buffer.find(b"\r\n\r\n")) < 0:
                # what cannot become an answer is not waited for
                if not b"HTTP/1.".startswith(self._buffer[:7]):
                    raise NoHTTP("no HTTP")
                if spent + len(self._buffer) > MAX_HEAD:
                    raise NoHTTP(f"its header is larger than {MAX_HEAD} bytes")
                self._buffer += await self._stream.receive(_PIECE)
            self._read_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            spent += end + 4

    def _read_head(self, head: bytes) -> None:
        first, *rest = head.split(b"\r\n")
        found = _STATUS.fullmatch(first)
        if found is None:
            raise NoHTTP("no HTTP")
        self.status = int(found[1])
        self._fields = {}
        for line in rest:
            name, colon, value = line.partition(b":")
            name, value = name.lower(), value.strip(b" \t")
            if not colon or not _NAME.fullmatch(name):
                raise NoHTTP("no HTTP: a field without name")
            if name in {b"content-length", b"transfer-encoding"} and self._fields.get(name, value) != value:
                raise NoHTTP("no HTTP: two lengths")
            self._fields[name] = value

    async def read(self) -> bytearray:
        """Return the body.

        Raises:
            NoHTTP: it is too large, not whole, or broken.
        """
        if self.status in {101, 204, 304}:
            return bytearray()
        coding = self._fields.get(b"transfer-encoding", b"").lower()
        length = self._fields.get(b"content-length")
        if coding == b"chunked":
            return await self._chunks()
        if coding or (length is not None and not re.fullmatch(rb"[0-9]{1,18}", length)):
            raise NoHTTP("no HTTP: a length that is none")
        if length is None:
            while await self._more(len(self._buffer)):
                pass
            return self._buffer
        size = int(length)
        if size > MAX_ANSWER:
            raise _too_large()
        while len(self._buffer) < size:
            if not await self._more(len(self._buffer)):
                raise _cut()
        return self._buffer[:size]

    async def _chunks(self) -> bytearray:
        body = bytearray()
        received = len(self._buffer)
        while not self._take_chunks(body):
            before = len(self._buffer)
            if not await self._more(received):
                raise _cut()
            received += len(self._buffer) - before
        return body

    def _take_chunks(self, body: bytearray) -> bool:
        """Move whole chunks from the buffer to ``body``; tell whether the last one was there."""
        while (end := self._buffer.find(b"\r\n", 0, _MAX_CHUNK_LINE)) >= 0:
            found = _HEX.fullmatch(self._buffer, 0, end)
            if found is None:
                raise NoHTTP("no HTTP: a chunk without size")
            size = int(found[1], 16)
            start = end + 2
            if size == 0:
                # trailers say nothing to us, and the connection is not used again
                return True
            if len(self._buffer) < start + size + 2:
                return False
            body += self._buffer[start : start + size]
            if self._buffer[start + size : start + size + 2] != b"\r\n":
                raise NoHTTP("no HTTP: a chunk without end")
            del self._buffer[: start + size + 2]
        if len(self._buffer) >= _MAX_CHUNK_LINE:
            raise NoHTTP("no HTTP: a chunk without size")
        return False

    async def _more(self, received: int) -> bool:
        """Receive a piece unless it is too much; tell whether there was one."""
        if received > MAX_ANSWER:
            raise _too_large()
        try:
            self._buffer += await self._stream.receive(_PIECE)
        except anyio.EndOfStream:
            return False
        return True


def _too_large() -> NoHTTP:
    return NoHTTP(f"it is larger than {MAX_ANSWER} bytes")


def _cut() -> NoHTTP:
    return NoHTTP("it ends too early")

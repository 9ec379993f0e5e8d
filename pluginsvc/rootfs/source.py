"""The byte stream of an archive: read from a descriptor, decompressed by magic, handed out without copying twice.

Part of the confined child: standard library, isal, zstd and errors only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from backports import zstd
from isal import igzip_lib

from pluginsvc.errors import InvalidParameter

STEP = 1 << 20
"""Bytes asked for at a time."""

_INPUT_STEP = 1 << 18
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class InvalidArchive(InvalidParameter):
    """An archive is broken, cut off, or holds what must not be unpacked.

    Attributes:
        reason: what is wrong.
        entry: name of the entry at fault as its bytes, or None when no entry is.
        offset: where in the decompressed stream, in bytes.
    """

    def __init__(self, reason: str, *, entry: bytes | None = None, offset: int | None = None) -> None:
        self.reason, self.entry, self.offset = reason, entry, offset
        where = "" if entry is None else f"entry {printable(entry)}: "
        at = "" if offset is None else f" (at byte {offset} of the tar stream)"
        super().__init__(f"invalid archive: {where}{reason}{at}")


def printable(name: bytes) -> str:
    """Return ``name`` quoted, without control or undecodable characters, and not longer than a message bears."""
    text = repr(name[:200].decode("utf-8", "backslashreplace"))
    return text if len(name) <= 200 else f"{text}…"


class Source:
    """Hands out the decompressed bytes of ``fd`` from its start to its end.

    Views that it gives are good until the next call.

    Args:
        fd: where to read; a pipe or a file.
        on_read: gets the number of compressed bytes read so far, after each read.
    """

    __slots__ = ("_fd", "_on_read", "_pos", "_produce", "_raw", "_view", "consumed", "offset")

    def __init__(self, fd: int, on_read: Callable[[int], None] | None = None) -> None:
        self._fd = fd
        self._on_read = on_read
        self._raw = bytearray(STEP)
        self._view = memoryview(b"")
        self._pos = 0
        self.offset = 0
        self.consumed = 0
        first = b""
        while len(first) < 4 and (more := self._read(_INPUT_STEP)):
            first += more
        if first.startswith(_GZIP_MAGIC):
            self._produce = self._gzip(first)
        elif first.startswith(_ZSTD_MAGIC):
            self._produce = self._zstd(first)
        else:
            self._produce = self._plain(first)

    def _read(self, size: int) -> memoryview:
        """Read once; an empty view means the end. It is good until the next read."""
        view = memoryview(self._raw)[:size]
        got = os.readv(self._fd, [view])
        self.consumed += got
        if got and self._on_read is not None:
            self._on_read(self.consumed)
        return view[:got]

    def _plain(self, first: bytes) -> Iterator[memoryview]:
        if first:
            yield memoryview(first)
        while view := self._read(STEP):
            yield view

    def _gzip(self, data: bytes | memoryview) -> Iterator[memoryview]:
        """Decompress gzip members one after another (RFC 1952 §2.2); only zeros may follow the last."""
        while True:
            member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
            while not member.eof:
                try:
                    out = member.decompress(data, STEP)
                except igzip_lib.error as exc:
                    raise InvalidArchive(f"the gzip data is corrupt: {exc}", offset=self.offset) from exc
                if out:
                    yield memoryview(out)
                data = self._read(_INPUT_STEP) if member.needs_input and not member.eof else b""
                if member.needs_input and not member.eof and not data:
                    raise InvalidArchive("the gzip data is cut off", offset=self.offset)
            data = yield from self._behind_frame(member.unused_data, _GZIP_MAGIC, "gzip")
            if not data:
                return

    def _zstd(self, data: bytes | memoryview) -> Iterator[memoryview]:
        """Decompress zstd frames one after another (RFC 8878 §3.1)."""
        while True:
            frame = zstd.ZstdDecompressor()
            while not frame.eof:
                try:
                    out = frame.decompress(data, STEP)
                except zstd.ZstdError as exc:
                    raise InvalidArchive(f"the zstd data is corrupt: {exc}", offset=self.offset) from exc
                if out:
                    yield memoryview(out)
                data = self._read(_INPUT_STEP) if frame.needs_input and not frame.eof else b""
                if frame.needs_input and not frame.eof and not data:
                    raise InvalidArchive("the zstd data is cut off", offset=self.offset)
            data = yield from self._behind_frame(frame.unused_data, _ZSTD_MAGIC, "zstd")
            if not data:
                return

    def _behind_frame(self, data: bytes, magic: bytes, kind: str) -> Iterator[memoryview]:
        raise NotImplementedError

"""The byte stream of an archive: read from a descriptor, decompressed by magic, handed out without copying twice.

Part of the confined child: standard library, isal, zstd and errors only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Any, cast

from backports import zstd
from isal import igzip_lib

from pluginsvc.errors import InvalidParameter

STEP = 1 << 20
"""Bytes asked for at a time."""

_INPUT_STEP = 1 << 18
# isal's stubs call the class an instance
_CORRUPT = (cast("type[Exception]", igzip_lib.error), zstd.ZstdError)
_AHEAD = 4
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


def _gzip_member() -> Any:
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


def printable(name: bytes) -> str:
    """Return ``name`` quoted, without control or undecodable characters, and not longer than a message bears."""
    text = repr(name[:200].decode("utf-8", "backslashreplace"))
    return text if len(name) <= 200 else f"{text}…"


def ahead(items: Generator[bytes | memoryview, None, None]) -> Iterator[memoryview]:
    """Give ``items``, made by a thread that keeps a few ahead: what makes them lets go of the interpreter lock."""
    ready: SimpleQueue[bytes | memoryview | BaseException | None] = SimpleQueue()
    room = Semaphore(_AHEAD)
    stopped = False

    def make() -> None:
        try:
            with closing(items):
                for item in items:
                    room.acquire()
                    if stopped:
                        return
                    ready.put(item)
            ready.put(None)
        except BaseException as exc:  # noqa: BLE001 - it is raised where the items are taken
            ready.put(exc)

    Thread(target=make, daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield memoryview(item)
            room.release()
    finally:
        stopped = True
        room.release()


class Source:
    """Hands out the decompressed bytes of ``fd`` from its start to its end.

    Views that it gives are good until the next call.

    Args:
        fd: where to read; a pipe or a file.
        on_read: gets the number of compressed bytes read so far, after each read.
        hasher: of ``hashlib``; has seen every byte of ``fd`` once ``drain`` has returned.
        beyond: given the number of bytes read so far, waits until there are more and returns how many; 0 at the end.
            For a file that is still being written; None: what the file system gives is all.
    """

    __slots__ = ("_beyond", "_fd", "_hasher", "_on_read", "_pos", "_produce", "_raw", "_view", "consumed", "offset")

    def __init__(
        self,
        fd: int,
        on_read: Callable[[int], None] | None = None,
        hasher: Any = None,
        beyond: Callable[[int], int] | None = None,
    ) -> None:
        self._fd = fd
        self._on_read = on_read
        self._hasher = hasher
        self._beyond = beyond
        self._raw = bytearray(STEP)
        self._view = memoryview(b"")
        self._pos = 0
        self.offset = 0
        self.consumed = 0
        first = b""
        while len(first) < 4 and (more := self._read(_INPUT_STEP)):
            first += more
        if first.startswith(_GZIP_MAGIC):
            self._produce = ahead(self._framed(first, "gzip", _GZIP_MAGIC, _gzip_member))
        elif first.startswith(_ZSTD_MAGIC):
            self._produce = ahead(self._framed(first, "zstd", _ZSTD_MAGIC, zstd.ZstdDecompressor))
        else:
            self._produce = self._plain(first)

    def _read(self, size: int) -> memoryview:
        """Read once; an empty view means the end. It is good until the next read."""
        if self._beyond is not None:
            size = min(size, self._beyond(self.consumed))
        view = memoryview(self._raw)[:size]
        got = os.readv(self._fd, [view])
        self.consumed += got
        if self._hasher is not None:
            self._hasher.update(view[:got])
        if got and self._on_read is not None:
            self._on_read(self.consumed)
        return view[:got]

    def _plain(self, first: bytes) -> Iterator[memoryview]:
        if first:
            yield memoryview(first)
        while view := self._read(STEP):
            yield view

    def _framed(self, first: bytes, kind: str, magic: bytes, frame: Callable[[], Any]) -> Generator[bytes, None, None]:
        """Decompress gzip members (RFC 1952 §2.2) or zstd frames (RFC 8878 §3.1), one after another."""
        data: bytes | memoryview = first
        while data:
            decompressor = frame()
            while not decompressor.eof:
                try:
                    out = decompressor.decompress(data, STEP)
                except _CORRUPT as exc:
                    raise InvalidArchive(f"the {kind} data is corrupt: {exc}") from exc
                if out:
                    yield out
                data = b""
                if decompressor.needs_input and not decompressor.eof:
                    data = self._read(_INPUT_STEP)
                    if not data:
                        raise InvalidArchive(f"the {kind} data is cut off")
            data = self._behind_frame(decompressor.unused_data, kind, magic)

    def _behind_frame(self, data: bytes, kind: str, magic: bytes) -> bytes:
        """Return what starts with the next frame, or nothing at the end; only zeros may fill up the last block."""
        while True:
            while len(data) < len(magic) and (more := self._read(_INPUT_STEP)):
                data += more
            if not data or data.startswith(magic):
                return data
            if data.strip(b"\0"):
                raise InvalidArchive(f"there is something that is not {kind} behind the {kind} data")
            data = b""

    def _fill(self) -> bool:
        """Make the next view current; False at the end."""
        view = next(self._produce, None)
        if view is None:
            return False
        self._view, self._pos = view, 0
        return True

    def chunks(self, size: int) -> Iterable[memoryview]:
        """Give exactly ``size`` bytes in pieces; all of them must be taken.

        Raises:
            InvalidArchive: the stream ends before.
        """
        end = self._pos + size
        if end > len(self._view):
            return self._pieces(size)
        # most files are small and in one piece: a tuple costs a third of a generator
        piece = self._view[self._pos : end]
        self._pos = end
        self.offset += size
        return (piece,)

    def _pieces(self, size: int) -> Iterator[memoryview]:
        while size:
            left = len(self._view) - self._pos
            if not left:
                if not self._fill():
                    raise InvalidArchive("it is cut off", offset=self.offset)
                continue
            step = min(size, left)
            piece = self._view[self._pos : self._pos + step]
            self._pos += step
            self.offset += step
            size -= step
            yield piece

    def take(self, size: int) -> bytes:
        """Return exactly ``size`` bytes.

        Raises:
            InvalidArchive: the stream ends before.
        """
        end = self._pos + size
        if end <= len(self._view):
            data = bytes(self._view[self._pos : end])
            self._pos = end
            self.offset += size
            return data
        return b"".join(map(bytes, self._pieces(size)))

    def at_end(self) -> bool:
        """True when not one byte is left."""
        return self._pos == len(self._view) and not self._fill()

    def skip(self, size: int) -> None:
        """Read and forget ``size`` bytes.

        Raises:
            InvalidArchive: the stream ends before.
        """
        end = self._pos + size
        if end <= len(self._view):
            self._pos = end
            self.offset += size
            return
        for _ in self._pieces(size):
            pass

    def drain(self) -> None:
        """Read to the end, so that the sender is not stopped and a compressed stream is checked to its last byte."""
        self.offset += len(self._view) - self._pos
        while self._fill():
            self.offset += len(self._view)
        self._view, self._pos = memoryview(b""), 0

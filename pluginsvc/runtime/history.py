"""What a plugin has printed, from its log files: the past, and on request whatever comes after it.

Between two reads no file is held open: a reader who stalls must not keep deleted files on the disk. So a place in a
file is found again by the file's inode and its first bytes, which begin with a time; the inode alone would not do,
since it is given away again at the next rotation.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import anyio
from anyio import to_thread

from pluginsvc.model.output import Form, Stream, Wanted
from pluginsvc.runtime.logs import files

# the end that conmon puts to an open line, when the plugin is gone, has no space
_LINE = re.compile(rb"(\S{19})\.(\d{9})(\S*) (stdout|stderr) ([FP])(?: |$)(.*)", re.DOTALL)
_STREAMS: dict[bytes, Stream] = {b"stdout": "stdout", b"stderr": "stderr"}
_BLOCK = 64 * 1024
_HEAD = 64
_PAUSE = 1.0
_SECOND = 1_000_000_000
_LOST = b"pluginsvc: output may be missing here: its log file was dropped before it was read\n"


class Piece(NamedTuple):
    """What one line of a log file tells."""

    at_ns: int
    stream: Stream
    data: bytes

    @property
    def whole(self) -> bool:
        """Whether a line of output ends here."""
        return self.data.endswith(b"\n")


def piece_of(line: bytes) -> Piece | None:
    """Read a line of a log file, its end left off; ``None`` when it is none of conmon's."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    clock, nanoseconds, offset, stream, flag, data = found.groups()
    try:
        at_ns = _second(clock, offset) + int(nanoseconds)
    except ValueError:
        return None
    return Piece(at_ns, _STREAMS[stream], data if flag == b"P" else data + b"\n")


@lru_cache(maxsize=64)
def _second(clock: bytes, offset: bytes) -> int:
    return int(dt.datetime.fromisoformat((clock + offset).decode()).timestamp()) * _SECOND


class _File(NamedTuple):
    """A log file that is open."""

    fd: int
    inode: int
    size: int
    modified_ns: int
    head: bytes


class _Position(NamedTuple):
    """Where to read on: a file, by its inode and as much of its beginning as was there, and the offset in it."""

    inode: int
    head: bytes
    offset: int
    modified_ns: int

    @classmethod
    def in_file(cls, file: _File, offset: int) -> _Position:
        return cls(file.inode, file.head, offset, file.modified_ns)


class History:
    """Reads the output of a plugin once, a bounded amount at a time. All methods block; one thread at a time.

    Args:
        directory: of the plugin's logs.
        wanted: what to give.
        form: what to make of each piece.

    Attributes:
        more: whether there was more to read when ``read`` returned.
        ended: whether what comes now is later than what is wanted.
    """

    def __init__(self, directory: Path, wanted: Wanted, form: Form) -> None:
        self.more = True
        self.ended = False
        self._directory, self._wanted, self._form = directory, wanted, form
        self._tail = wanted.tail
        self._position: _Position | None = None
        self._last_ns = 0

    def read(self) -> bytes:
        """Return the form of what is wanted in the next 64 KiB; often empty where much is passed over."""
        with ExitStack() as opened:
            stack = _open(self._directory, opened)
            self.more = False
            if not stack:
                # whatever comes now is no past
                self._tail = None
                return b""
            if self._position is None:
                self._position = self._begin(stack)
            place, lost = self._locate(stack)
            data = os.pread(stack[place].fd, _BLOCK, self._position.offset)
            whole = data.rfind(b"\n") + 1
            if not whole and len(data) == _BLOCK:
                # nothing that conmon would write
                whole = _BLOCK
            self._position = _Position.in_file(stack[place], self._position.offset + whole)
            if not whole and place > 0:
                # a newer file was there before this one was read to its end: nobody writes to it any more
                self._position = _Position.in_file(stack[place - 1], 0)
            self.more = bool(whole) or place > 0
            return lost + b"".join(self._pieces(data[:whole]))

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        wanted, form = self._wanted, self._form
        if wanted.since_ns is not None and self._all_before(data, wanted.since_ns):
            return
        for line in data.split(b"\n"):
            piece = piece_of(line)
            if piece is None:
                continue
            self._last_ns = piece.at_ns
            if wanted.until_ns is not None and piece.at_ns > wanted.until_ns:
                self.ended = True
                return
            if _is_wanted(piece, wanted):
                yield form(*piece)

    def _all_before(self, data: bytes, since_ns: int) -> bool:
        """Tell whether a stretch ends before ``since``: to read each of its lines would take longer than all else."""
        piece = piece_of(data[data.rfind(b"\n", 0, -1) + 1 : -1])
        return piece is not None and piece.at_ns < since_ns

    def _locate(self, stack: list[_File]) -> tuple[int, bytes]:
        """Return where in the stack our file is, or else its successor, and then a word on what is lost."""
        position = self._position
        assert position is not None
        for place, file in enumerate(stack):
            if file.inode == position.inode and file.head.startswith(position.head):
                return place, b""
        # either all there is came later, or the monitor alone has begun anew and the older files are known
        place = max((i for i, file in enumerate(stack) if file.modified_ns > position.modified_ns), default=0)
        self._position = _Position.in_file(stack[place], 0)
        return place, self._form(self._last_ns, "stderr", _LOST)

    def _begin(self, stack: list[_File]) -> _Position:
        """Return where the wanted tail begins."""
        wanted, left = self._wanted, self._tail
        if left is None:
            return _Position.in_file(stack[-1], 0)
        for file in stack:
            for offset, line in _backwards(file):
                piece = piece_of(line)
                if piece is None or not piece.whole:
                    continue
                counts = _is_wanted(piece, wanted) and (wanted.until_ns is None or piece.at_ns <= wanted.until_ns)
                if (wanted.since_ns is not None and piece.at_ns < wanted.since_ns) or (counts and not left):
                    return _Position.in_file(file, offset + len(line) + 1)
                left -= counts
        return _Position.in_file(stack[-1], 0)


async def follow(
    directory: Path,
    wanted: Wanted,
    form: Form,
    *,
    printed: Callable[[], anyio.Event],
    going: Callable[[], bool],
) -> AsyncGenerator[bytes, None]:
    """Yield what a plugin has printed and, if wanted, prints, over its exits, its starts and the rotation of its files.

    What was dropped before it was read is not passed over in silence: a line on stderr says so.

    Args:
        directory: of the plugin's logs.
        wanted: what to yield.
        form: what to make of each piece; it is called in a thread.
        printed: returns an event that is set once the plugin has printed something after the call.
        going: tells whether the plugin may still print; when it may not, what it has printed is yielded, and no more.
    """
    history = History(directory, wanted, form)
    while not history.ended:
        # both before the read, so that nothing falls in between
        news, last = printed(), not (wanted.follow and going())
        expired = wanted.until_ns is not None and time.time_ns() > wanted.until_ns
        if data := await to_thread.run_sync(history.read):
            yield data
        if history.more:
            continue
        if last or expired:
            return
        while going() and not news.is_set():
            with anyio.move_on_after(_pause(wanted.until_ns)) as waited:
                await news.wait()
            if waited.cancelled_caught and wanted.until_ns is not None and time.time_ns() > wanted.until_ns:
                break


def _pause(until_ns: int | None) -> float:
    if until_ns is None:
        return _PAUSE
    return min(_PAUSE, max(0.0, (until_ns - time.time_ns()) / _SECOND) + 0.001)


def _is_wanted(piece: Piece, wanted: Wanted) -> bool:
    chosen = wanted.stdout if piece.stream == "stdout" else wanted.stderr
    return chosen and (wanted.since_ns is None or piece.at_ns >= wanted.since_ns)


def _open(directory: Path, opened: ExitStack) -> list[_File]:
    """Open the log files that hold anything, newest first: one that is renamed meanwhile is met twice, not missed."""
    stack: list[_File] = []
    for path in files(directory):
        with suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            facts = os.fstat(fd)
            head = os.pread(fd, _HEAD, 0)
            # one without a line yet could not be told from another one with its inode
            if (b"\n" in head or len(head) == _HEAD) and facts.st_ino not in {file.inode for file in stack}:
                stack.append(_File(fd, facts.st_ino, facts.st_size, facts.st_mtime_ns, head))
    return stack


def _backwards(file: _File) -> Iterator[tuple[int, bytes]]:
    """Yield the whole lines of a file, the last first, each with its offset and without its end."""
    end = max(0, file.size - _BLOCK)
    # what comes after the last line end is being written
    end += os.pread(file.fd, file.size - end, end).rfind(b"\n") + 1
    while end > 0:
        begin = max(0, end - _BLOCK)
        data = os.pread(file.fd, end - begin, begin)
        # the first line of a block may be cut: it is the last of the next
        cut = data.find(b"\n", 0, -1) + 1 if begin else 0
        offset = end
        for line in reversed(data[cut:-1].split(b"\n")):
            offset -= len(line) + 1
            yield offset, line
        end = begin + cut

"""A plugin's log files, as conmon writes them (its ``k8s-file`` format), read back. All functions block.

One line of a file: time, ``stdout`` or ``stderr``, ``F`` or (no end of line yet) ``P``, and the text.
The files are ``plugin.log``, ``plugin.log.1`` and so on, the newest first; starts of a plugin share them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec

from pluginsvc.model.output import Stream
from pluginsvc.runtime.bundle import LOG_NAME, Mark

_LINE = re.compile(rb"\S+ (stdout|stderr) ([FP]) (.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_MAX_LINE = 16 * 1024
_TAIL = 64 * 1024
_BACKLOG = 1024 * 1024


def clean(data: bytes) -> str:
    """Decode what a plugin or a tool printed, with control characters escaped: it may end up on a terminal."""
    text = data.strip(b"\r\n").decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda found: "\n" if found[0] == "\n" else f"\\x{ord(found[0]):02x}", text)


def parse(data: bytes) -> Iterator[tuple[Stream, str]]:
    """Yield the lines in a stretch of a log file; pieces of one line are joined, up to 16 KiB of them."""
    begun: dict[bytes, bytes] = {}
    for raw in data.split(b"\n"):
        found = _LINE.fullmatch(raw)
        if found is None:
            continue
        stream, flag, text = found.groups()
        line = begun.pop(stream, b"") + text
        if flag == b"P" and len(line) < _MAX_LINE:
            begun[stream] = line
        else:
            yield cast("Stream", stream.decode()), clean(line)
    for stream, line in begun.items():
        yield cast("Stream", stream.decode()), clean(line)


def now(directory: Path) -> Mark:
    """Return where the next line will be written."""
    try:
        facts = os.stat(directory / LOG_NAME)
    except FileNotFoundError:
        return Mark(0, 0)
    return Mark(facts.st_ino, facts.st_size)


def tail(directory: Path, since: Mark, count: int) -> list[str]:
    """Return the last lines that were written after ``since``.

    Args:
        directory: of the plugin's logs.
        since: where to begin at the earliest.
        count: most lines to return.
    """
    blocks: list[bytes] = []
    for path in files(directory):
        try:
            with path.open("rb") as file:
                facts = os.fstat(file.fileno())
                # a file that is too short is another one: inodes are given away again
                first = since.offset if facts.st_ino == since.inode and since.offset <= facts.st_size else 0
                begin = max(first, facts.st_size - _TAIL)
                file.seek(begin)
                data = file.read(_TAIL)
        except FileNotFoundError:
            continue
        if begin > first:
            # a cut line is no line
            data = data.partition(b"\n")[2]
        blocks.insert(0, data)
        if facts.st_ino == since.inode or sum(block.count(b"\n") for block in blocks) >= count:
            break
    return [line for _, line in parse(b"".join(blocks))][-count:]


def files(directory: Path) -> list[Path]:
    """Return the log files that exist, newest first."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    numbers = sorted(
        int(name.removeprefix(f"{LOG_NAME}.") if name != LOG_NAME else 0)
        for name in names
        if re.fullmatch(re.escape(LOG_NAME) + r"(\.\d{1,3})?", name)
    )
    return [directory / (f"{LOG_NAME}.{number}" if number else LOG_NAME) for number in numbers]


class Batch(msgspec.Struct):
    """What one look at a log gave.

    Attributes:
        lines: in order.
        skipped: bytes that were passed over, because they came faster than they are taken.
        more: whether there is more to read at once.
    """

    lines: list[tuple[Stream, str]]
    skipped: int = 0
    more: bool = False


class Reader:
    """Reads a plugin's log onwards from a mark, across renamed files, a bounded amount at a time.

    Args:
        directory: of the plugin's logs.
        position: where to begin; changes with each ``read``.
    """

    def __init__(self, directory: Path, position: Mark) -> None:
        self.directory = directory
        self.position = position

    def read(self, limit: int) -> Batch:
        """Return whole lines from at most ``limit`` bytes. A backlog above 1 MiB is skipped, save its end."""
        while True:
            # listed before the file is read to its end: what is renamed by then will not grow any more
            stack = files(self.directory)
            inodes = [_inode(path) for path in stack]
            if self.position.inode not in inodes:
                if not stack:
                    return Batch([])
                # never begun; or rotated away unread or replaced by the monitor, and then older files may be known
                self.position = Mark(inodes[0 if self.position.inode else -1], 0)
                continue
            place = inodes.index(self.position.inode)
            before = self.position
            batch = self._take(stack[place], limit)
            if self.position != before or batch.more or place == 0:
                batch.more = batch.more or place > 0
                return batch
            self.position = Mark(inodes[place - 1], 0)

    def _take(self, path: Path, limit: int) -> Batch:
        inode, offset = self.position.inode, self.position.offset
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            if facts.st_ino != inode:
                # renamed between the listing and now: the next look finds it
                return Batch([], more=True)
            skipped = 0
            if facts.st_size < offset:
                # another file: inodes are given away again
                offset = 0
            if facts.st_size - offset > _BACKLOG:
                file.seek(facts.st_size - limit)
                file.readline()
                skipped = file.tell() - offset
                offset += skipped
            file.seek(offset)
            data = file.read(limit)
        whole = data.rfind(b"\n") + 1
        if not whole and len(data) == limit:
            whole = limit
        self.position = Mark(inode, offset + whole)
        return Batch(list(parse(data[:whole])), skipped, more=facts.st_size > offset + whole > offset)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0

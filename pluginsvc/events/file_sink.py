"""Events as JSON lines in a file that is rotated: each once, whatever the daemon dies of."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from anyio import to_thread

from pluginsvc.events.delivery import SinkFailed
from pluginsvc.events.forms import native_message
from pluginsvc.fsutil import sync_dir
from pluginsvc.model.event import Event, Gap

_TAIL = 1024 * 1024
"""Bytes at the end of a file that are looked at: more than a batch has."""

_BEGINNINGS = (b'{"seq":', b'{"gap":')
"""Of lines; a file that ends otherwise is not ours to cut."""

# a FIFO nobody reads must not block; appended is to what logrotate's copytruncate leaves
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_ADVICE = {
    errno.ENOENT: "make its directory",
    errno.ENOSPC: "free some space on its disk",
    errno.EDQUOT: "free some space on its disk",
    errno.ELOOP: "it is a symbolic link, which is not followed: name the file itself",
    errno.EISDIR: "name a file",
}


class FileSink:
    """Appends events to a file, one line each (docs/events.md); the file is made with mode 0600 where there is none.

    A batch is one write, and safe on the disk when it is taken. What of it is in the file already, because the daemon
    died before it could note that, is not written again: the batch is searched for the file's last line. That line
    and no number decides, so that a file in which an older journal counted further swallows nothing.

    Between two batches nothing is open, so that others may move the file away.

    Args:
        path: the file; its directory exists.
        size: bytes after which it is renamed to ``PATH.1``.
        files: how many are kept, the one that is written included.
    """

    name = "file"

    def __init__(self, path: Path, *, size: int, files: int) -> None:
        self._path, self._size = path, size
        self._names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, files))]
        # the last line we wrote or found, with its end; None: the file has to be looked at
        self._last: bytes | None = None

    async def send(self, items: Sequence[Event | Gap]) -> None:
        """Append items that are not there yet.

        Raises:
            SinkFailed: the file cannot be written; it is as it was before.
        """
        await to_thread.run_sync(self._append, items)

    async def close(self) -> None:
        """Do nothing: nothing is held."""

    # What follows runs in a thread.

    def _append(self, items: Sequence[Event | Gap]) -> None:
        lines = [native_message(item) + b"\n" for item in items]
        with self._translated():
            with self._opened() as fd:
                if self._last is None:
                    self._last = self._recover(fd)
                if self._last in lines:
                    lines = lines[lines.index(self._last) + 1 :]
                end = os.fstat(fd).st_size
                if lines:
                    self._write(fd, end, b"".join(lines))
                    if end == 0:
                        sync_dir(self._path.parent)
                    self._last = lines[-1]
                end = os.fstat(fd).st_size
            if end > self._size:
                self._rotate()

    @contextmanager
    def _opened(self) -> Iterator[int]:
        fd = os.open(self._path, _FLAGS | os.O_CREAT, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise self._failed("is no regular file; name another")
            yield fd
        finally:
            os.close(fd)

    def _recover(self, fd: int) -> bytes:
        """Cut off what a crash left half written, and return the last line that was written whole; empty: none."""
        size = os.fstat(fd).st_size
        tail = os.pread(fd, _TAIL, max(0, size - _TAIL))
        # a crash of the machine may leave zeros for what never reached the disk
        whole = tail[: tail.find(b"\0")] if b"\0" in tail else tail
        torn = whole[whole.rfind(b"\n") + 1 :]
        last = _last_line(whole)
        if not _is_ours(torn) or not _is_ours(last) or (size > _TAIL and not last):
            raise self._failed("does not end with events, so it is another program's; name another, or move it away")
        kept = len(whole) - len(torn)
        if kept < len(tail):
            os.ftruncate(fd, size - len(tail) + kept)
        if size - len(tail) + kept:
            return last
        # rotated, and nothing written since
        with suppress(FileNotFoundError):
            older = os.open(self._names[1], _FLAGS)
            try:
                return _last_line(os.pread(older, _TAIL, max(0, os.fstat(older).st_size - _TAIL)))
            finally:
                os.close(older)
        return b""

    def _write(self, fd: int, end: int, data: bytes) -> None:
        """Write all of ``data`` at the end, or nothing."""
        try:
            done = 0
            while done < len(data):
                done += os.write(fd, data[done:])
            os.fdatasync(fd)
        except OSError:
            # until it is certain that the file ends where it did
            last, self._last = self._last, None
            os.ftruncate(fd, end)
            self._last = last
            raise

    def _rotate(self) -> None:
        """Rename each file to the next name, up to the first that is free; without a free one the oldest goes."""
        free = next((number for number, path in enumerate(self._names) if not os.path.lexists(path)), None)
        for number in range(len(self._names) - 1 if free is None else free, 0, -1):
            self._names[number - 1].rename(self._names[number])
        sync_dir(self._path.parent)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            number = exc.errno or 0
            advice = _ADVICE.get(number, "check that it, its directory and its file system may be written to")
            raise self._failed(f"{os.strerror(number)}; {advice}") from exc

    def _failed(self, reason: str) -> SinkFailed:
        return SinkFailed(self.name, f"{self._path}: {reason}")


def _last_line(data: bytes) -> bytes:
    """Return the last line that has an end, with it; empty: there is none."""
    end = data.rfind(b"\n") + 1
    return data[data.rfind(b"\n", 0, max(0, end - 1)) + 1 : end]


def _is_ours(line: bytes) -> bool:
    return any(beginning.startswith(line[: len(beginning)]) for beginning in _BEGINNINGS)

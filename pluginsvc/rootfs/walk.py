"""Moving about in a directory tree by open descriptors, never along a symbolic link.

Part of the confined child: standard library, isal, zstd and errors only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from pluginsvc.rootfs.source import InvalidArchive, printable

WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Walk:
    """Holds open the directories of one path below ``root``, so that a neighbour costs no look-up."""

    __slots__ = ("_fds", "_names", "path")

    def __init__(self, root: int) -> None:
        self._fds = [root]
        self._names: list[bytes] = []
        self.path = b""

    def to(self, path: bytes, missing: Callable[[int, bytes], None] | None) -> int | None:
        """Go to the directory ``path`` and return its descriptor, good until the next call.

        Args:
            path: clean, relative to the root.
            missing: makes a directory that is not there, given its parent and name; None: return None instead.

        Raises:
            InvalidArchive: a component is not a directory.
        """
        if path == self.path:
            return self._fds[-1]
        wanted = path.split(b"/") if path else []
        same = 0
        for have, want in zip(self._names, wanted, strict=False):
            if have != want:
                break
            same += 1
        self._cut(same)
        try:
            for name in wanted[same:]:
                self._names.append(name)
                try:
                    fd = os.open(name, WALK, dir_fd=self._fds[-1])
                except FileNotFoundError:
                    if missing is None:
                        return None
                    missing(self._fds[-1], b"/".join(self._names))
                    fd = os.open(name, WALK, dir_fd=self._fds[-1])
                self._fds.append(fd)
        except NotADirectoryError as exc:
            what = printable(b"/".join(self._names))
            raise InvalidArchive(f"{what} is not a directory, so nothing can be below it") from exc
        finally:
            # as far as we came
            del self._names[len(self._fds) - 1 :]
            self.path = b"/".join(self._names)
        return self._fds[-1]

    def _cut(self, depth: int) -> None:
        while len(self._names) > depth:
            os.close(self._fds.pop())
            self._names.pop()
        self.path = b"/".join(self._names)

    def reset(self) -> None:
        """Go back to the root."""
        self._cut(0)


def remove_directory(where: int, name: bytes) -> None:
    """Remove a directory with all below it, holding one descriptor per level."""
    try:
        os.rmdir(name, dir_fd=where)
    except OSError as exc:
        if exc.errno != errno.ENOTEMPTY:
            raise
    else:
        return

    def opened(parent: int, child: bytes) -> tuple[int, bytes, int, Iterator[str]]:
        fd = os.open(child, LIST, dir_fd=parent)
        return parent, child, fd, iter(os.listdir(fd))

    stack = [opened(where, name)]
    try:
        while stack:
            parent, name, fd, names = stack[-1]
            for child in names:
                try:
                    os.unlink(child, dir_fd=fd)
                except IsADirectoryError:
                    stack.append(opened(fd, os.fsencode(child)))
                    break
            else:
                os.rmdir(name, dir_fd=parent)
                os.close(fd)
                stack.pop()
    finally:
        for _, _, fd, _ in stack:
            os.close(fd)

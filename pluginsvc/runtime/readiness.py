"""Waiting for a plugin's socket to accept a connection, without sleeping for it (REF 3.6, 7.36)."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from anyio import to_thread
from asyncinotify import Mask

from pluginsvc.watches import Watches

_CHANGES = Mask.CREATE | Mask.MOVED_TO | Mask.DELETE | Mask.MOVED_FROM | Mask.ONESHOT
_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.1
_SAFETY_NET = 1.0
"""Seconds after which a socket is looked for without an event, should the watch have been refused."""


class SocketWatch:
    """Watches for one socket, inside a ``with`` block.

    Args:
        watches: tell of new names.
        directory: where it is to appear. What is in there was made by the plugin and is not trusted.
        name: plain file name.
    """

    def __init__(self, watches: Watches, directory: Path, name: str) -> None:
        self._watches = watches
        self._directory, self._name = directory, name
        self._appeared = anyio.Event()
        self.trouble = "no attempt was made"
        self.path = directory / name

    def __enter__(self) -> Self:
        self._watches.add(self._directory, _CHANGES, self._notice)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._watches.remove(self._directory)

    def _notice(self, _name: Path | None) -> None:
        self._appeared.set()

    def _forget(self) -> None:
        # fires once until it is set again: a plugin that fills its directory costs no more than our looks at it
        self._appeared = anyio.Event()
        self._watches.rearm(self._directory)

    async def changed(self) -> None:
        """Return when any name has come or gone in the socket's directory since this returned last."""
        await self._appeared.wait()
        self._forget()

    async def look(self) -> str:
        """Connect once; return why that did not work, or nothing."""
        error = await to_thread.run_sync(connect, self._directory, self._name)
        return "" if error is None else f"its socket {self._name}: {error.strerror or error}"

    async def accepted(self) -> None:
        """Return once a connection was accepted; meanwhile ``trouble`` says why the last one was not."""
        pause = _FIRST_PAUSE
        while True:
            self._forget()
            error = await to_thread.run_sync(connect, self._directory, self._name)
            if error is None:
                return
            self.trouble = error.strerror or str(error)
            # bound, but nobody listens yet: no event will tell of that, so the pause is short then
            missing = error.errno == errno.ENOENT
            with anyio.move_on_after(_SAFETY_NET if missing else pause):
                await self._appeared.wait()
            pause = _FIRST_PAUSE if missing else min(2 * pause, _LONGEST_PAUSE)


def connect(directory: Path, name: str) -> OSError | None:
    """Connect once to the socket and hang up. Blocks briefly.

    The socket is reached by a descriptor of its own inode: a path may be longer than the 107 bytes an address holds,
    and a symbolic link, by which the plugin could make us talk to another socket of the host, is not followed.

    Returns:
        Why it did not work, or ``None``.
    """
    try:
        folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            node = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            if not stat.S_ISSOCK(os.fstat(node).st_mode):
                return OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), name)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as end:
                end.connect(f"/proc/self/fd/{node}")
        finally:
            os.close(node)
    except BlockingIOError:
        # its queue is full: it listens
        return None
    except OSError as exc:
        return exc
    return None

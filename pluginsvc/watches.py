"""What happens in directories, by one inotify instance for a whole room.

Users have few instances (128 by default, for all that root runs), and closing one takes the kernel 10 to 20 ms, in
which the loop would stand still; adding and removing watches costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.abc
from asyncinotify import Inotify, Mask, Watch


class Watches:
    """Calls back when something happens in a directory, while ``serve`` runs; before that nothing is seen."""

    def __init__(self) -> None:
        self._wanted: dict[Path, tuple[Mask, Callable[[Path | None], None]]] = {}
        self._inotify: Inotify | None = None
        self._set: dict[Path, Watch] = {}

    def add(self, directory: Path, mask: Mask, call: Callable[[Path | None], None]) -> None:
        """Call ``call`` with the name (``None``: events were lost) for each event; one user per directory."""
        self._wanted[directory] = mask, call
        self.rearm(directory)

    def rearm(self, directory: Path) -> None:
        """Set a watch again that fires once; one that is still set stays as it is, and so it is without a directory."""
        if self._inotify is None or directory not in self._wanted:
            return
        with contextlib.suppress(OSError):
            watch = self._inotify.add_watch(directory, self._wanted[directory][0])
            # by another path to the same directory it is the watch of that one
            if watch.path == directory and self._set.get(directory) is not watch:
                self._unset(directory)
                self._set[directory] = watch

    def remove(self, directory: Path) -> None:
        """Call nobody any more for that directory; not watched is fine."""
        if self._wanted.pop(directory, None) is not None:
            self._unset(directory)

    def _unset(self, directory: Path) -> None:
        watch = self._set.pop(directory, None)
        if watch is not None and self._inotify is not None:
            # it may have gone with its directory, or have fired
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(watch)

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Deliver events until cancelled.

        Raises:
            OSError: the kernel has no inotify instance left for us (``fs.inotify.max_user_instances``).
        """
        with Inotify() as inotify:
            self._inotify = inotify
            try:
                for directory in self._wanted:
                    self.rearm(directory)
                task_status.started()
                async for event in inotify:
                    if Mask.Q_OVERFLOW in event.mask:
                        for _, call in list(self._wanted.values()):
                            call(None)
                        continue
                    watch = event.watch
                    if watch is None or watch.path not in self._wanted:
                        continue
                    # the end of a watch that another has replaced is no news
                    if Mask.IGNORED not in event.mask or self._set.get(watch.path) is watch:
                        self._wanted[watch.path][1](event.name)
            finally:
                self._inotify = None
                self._set.clear()

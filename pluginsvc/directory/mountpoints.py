"""Where on the host the mountpoints of a managed plugin lead, though what it has mounted there may hang for ever."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import anyio

from pluginsvc.directory.provider import Scope

_LOOK = 5.0
"""Seconds for one look; less than a list of all plugins' volumes waits for one of them."""


class Hangs(Exception):
    """A file system on the way does not answer; for ``volumes`` to convert.

    Attributes:
        path: where the look has got to, as the host calls it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(str(path))


class Place(NamedTuple):
    """Where a path of a plugin's is.

    Attributes:
        path: on the host; empty if there is none, or it cannot be used.
        directory: whether a directory is there.
        trouble: why it cannot be used, or empty.
    """

    path: str = ""
    directory: bool = False
    trouble: str = ""


async def look(scope: Scope, paths: Sequence[str]) -> list[Place]:
    """Return the host's places of a plugin's paths.

    One look at a plugin's paths goes on at a time; one that hangs is not followed by another until it has come back.

    Args:
        scope: the plugin's; its paths are looked at as long as ``_LOOK`` seconds.
        paths: as the plugin calls them; empty ones are no place.

    Raises:
        Hangs: a file system on the way does not answer.
    """
    key = scope.propagated
    while (other := _going.get(key)) is not None:
        await other.end()
    mine = _Look(scope, paths)
    # no worker of anyio's: the process waits for those before it ends
    threading.Thread(target=mine.run, name="mountpoints", daemon=True).start()
    _going[key] = mine
    await mine.end()
    return mine.found


class _Look:
    """One thread that looks."""

    def __init__(self, scope: Scope, paths: Sequence[str]) -> None:
        self.found: list[Place] = []
        self._scope, self._paths = scope, paths
        self._at = scope.rootfs
        self._until = anyio.current_time() + _LOOK
        self._loop = asyncio.get_running_loop()
        self._over = anyio.Event()

    async def end(self) -> None:
        """Wait for it, whoever has begun it, as long as it may take."""
        with anyio.move_on_at(self._until):
            await self._over.wait()
        if not self._over.is_set():
            raise Hangs(self._at)

    def run(self) -> None:
        """Look. Blocks."""
        try:
            self._look()
        except OSError as exc:
            self.found = [Place(trouble=f"the plugin's directory cannot be looked at: {exc.strerror}")] * len(
                self._paths
            )
        finally:
            # the loop may have ended meanwhile
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._done)

    def _done(self) -> None:
        del _going[self._scope.propagated]
        self._over.set()

    def _look(self) -> None:
        scope = self._scope
        bases = [self._real(base)[0] for base in (scope.rootfs, scope.propagated, *(path for _, path in scope.binds))]
        for path in self._paths:
            self.found.append(self._place(path, bases) if path else Place())

    def _place(self, path: str, bases: Sequence[Path]) -> Place:
        place = self._scope.host(path)
        try:
            real, directory = self._real(place)
        except OSError as exc:
            return Place(trouble=f"{place} cannot be looked at: {exc.strerror}"[:500])
        except ValueError as exc:
            return Place(trouble=str(exc))
        # the plugin can put symbolic links as it likes
        if not any(real.is_relative_to(base) for base in bases):
            return Place(trouble=f"{path[:200]!r} leads out of the plugin")
        return Place(str(place), directory)

    def _real(self, path: Path) -> tuple[Path, bool]:
        """Return a path without symbolic links, and whether a directory is there.

        What is mounted there is not asked, unlike by ``realpath`` and ``stat``; what is mounted on the way is.
        """
        self._at = path
        try:
            node = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return Path(os.path.realpath(path)), False
        try:
            return Path(f"/proc/self/fd/{node}").readlink(), True
        finally:
            os.close(node)


_going: dict[Path, _Look] = {}
"""By the plugin's propagated mount."""

"""Published sockets: links by plugins' names, in the directory where engines look for legacy plugins (REF §5)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.abc
import structlog
from anyio import to_thread

_log = structlog.get_logger()
_INTERVAL = 60.0
"""Seconds after which the links are looked at though nothing has happened."""
_DASHES = str.maketrans("/:@", "---")


class Wish(NamedTuple):
    """A plugin that is to have a link.

    Attributes:
        name: familiar local name with tag.
        plugin_id: 64 hex digits.
        socket: file name of its socket.
        up: whether it listens; where it does not, a link that is there stays, and none is put.
    """

    name: str
    plugin_id: str
    socket: str
    up: bool


class Trouble(NamedTuple):
    """What is not as it should be.

    Attributes:
        path: of the link or the directory.
        why: and what to do next.
    """

    path: str
    why: str


def alias(name: str) -> str:
    """Return what engines call a plugin: its name without ``:latest``, with ``-`` for each ``/``, ``:`` and ``@``.

    Args:
        name: familiar local name.
    """
    return name.removesuffix(":latest").translate(_DASHES)


class Published:
    """Keeps the links: a plugin gets its own when it is up, and has it until it is disabled or removed.

    Args:
        sockets: RUN/plugins, absolute; links that lead to a socket there are ours, and nothing else is touched.
        directory: where engines look; ``None``: nothing is published.
        wished: gives the enabled plugins, in the order in which they may claim an alias that several have.
    """

    def __init__(self, sockets: Path, directory: Path | None, wished: Callable[[], list[Wish]]) -> None:
        self._sockets, self._directory, self._wished = sockets, directory, wished
        self._wanted = anyio.Event()
        self._working = anyio.Lock()
        self._told = frozenset[Trouble]()
        self._serving = False

    def trigger(self) -> None:
        """Ask for the links to be brought up to date soon; many requests before that begins are one."""
        self._wanted.set()

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Bring the links up to date at once, then whenever triggered and every 60 s, until cancelled.

        Begin this when all plugins are known: what nobody wishes goes.
        """
        self._serving = True
        await self.settle()
        task_status.started()
        while True:
            with anyio.move_on_after(_INTERVAL):
                await self._wanted.wait()
            self._wanted = anyio.Event()
            await self.settle()

    async def settle(self) -> None:
        """Bring the links up to date with what is wished now; before ``serve`` has begun this does nothing.

        Trouble is logged when it begins, ends nothing, and is tried again whenever this is called.
        """
        if self._directory is None or not self._serving:
            return
        async with self._working:
            try:
                troubles = await to_thread.run_sync(reconcile, self._sockets, self._directory, self._wished())
            except Exception:  # noqa: BLE001 - no plugin, and no daemon, is to end for want of a link or a thread
                _log.exception("published.failed", directory=str(self._directory))
                return
            for trouble in sorted(troubles - self._told):
                _log.warning("published.trouble", path=trouble.path, why=trouble.why)
            self._told = troubles

    async def withdraw(self) -> None:
        """Take all links away, for good: the plugins are being stopped."""
        self._wished = list
        await self.settle()


def reconcile(sockets: Path, directory: Path, wishes: Iterable[Wish]) -> frozenset[Trouble]:
    """Make the links of a directory those that are wished. Blocks; one call at a time.

    Of several plugins with one alias that one has it whose link is there, else the first of them.

    Args:
        sockets: RUN/plugins, absolute.
        directory: of the links; made when the first is put.
        wishes: the enabled plugins.

    Returns:
        What could not be done.
    """
    wanted = {f"{sockets}/{wish.plugin_id}/{wish.socket}": wish for wish in wishes}
    try:
        folder = _open(directory, make=any(wish.up for wish in wanted.values()))
        if folder is None:
            return frozenset()
        try:
            troubles = _reconcile(folder, sockets, wanted)
            return frozenset(Trouble(str(directory / name), why) for name, why in troubles)
        finally:
            os.close(folder)
    except OSError as exc:
        why = f"no plugin is published there: {exc.strerror}; mend that, or set another publish-dir"
        return frozenset([Trouble(str(directory), why)])


def _reconcile(folder: int, sockets: Path, wanted: dict[str, Wish]) -> Iterator[tuple[str, str]]:
    """Do it in an open directory, for plugins by their sockets; yield which name is not as it should be, and why."""
    held = _held(folder, sockets)
    chosen: dict[str, str] = {}
    for target, wish in wanted.items():
        name = f"{alias(wish.name)}.sock"
        if held.get(name) == target:
            chosen[name] = target
        else:
            chosen.setdefault(name, target)
    for name, target in held.items():
        # looked at once more: it may have been replaced by what is not ours
        if chosen.get(name) != target and _target(folder, name) == target:
            try:
                os.unlink(name, dir_fd=folder)
            except OSError as exc:
                yield name, f"it leads to no plugin any more, and cannot be deleted: {exc.strerror}"
    for target, wish in wanted.items():
        name = f"{alias(wish.name)}.sock"
        if not wish.up or held.get(name) == target:
            continue
        if chosen[name] == target:
            reason = _put(folder, name, target)
        else:
            reason = f"{wanted[chosen[name]].name} has that name; install one of them with another --alias"
        if reason:
            yield name, f"plugin {wish.name} is not published: {reason}; its own socket is {target}"


def _put(folder: int, name: str, target: str) -> str:
    """Put a link where nothing is; return why that cannot be, or nothing."""
    try:
        os.symlink(target, name, dir_fd=folder)
    except FileExistsError:
        return "what is there is not ours, move it away"
    except OSError as exc:
        return str(exc.strerror)
    return ""


def _held(folder: int, sockets: Path) -> dict[str, str]:
    """Return our links in a directory: name → where it leads."""
    ours = re.compile(rf"{re.escape(str(sockets))}/[0-9a-f]{{64}}/[^/]+")
    targets = {name: _target(folder, name) for name in os.listdir(folder) if name.endswith(".sock")}
    return {name: target for name, target in targets.items() if ours.fullmatch(target)}


def _target(folder: int, name: str) -> str:
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        # no link, or gone
        return ""


def _open(directory: Path, *, make: bool) -> int | None:
    """Open the directory of the links; ``None`` where there is none and none is to be made."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(directory, flags)
    except FileNotFoundError:
        if not make:
            return None
    for folder in reversed([directory, *directory.parents]):
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        # engines and people pass it; our umask lets nobody in
        folder.chmod(0o755)
    return os.open(directory, flags)

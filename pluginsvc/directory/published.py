"""Published sockets: links by plugins' names, in the directory where engines look for legacy plugins (REF §5)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.abc
import structlog
from anyio import to_thread

from pluginsvc.directory.links import Claim, Trouble, keep, open_directory, target_of

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
        volumes: whether it is a volume plugin.
        mount: its propagated mount, as it calls it; empty: it has none.
    """

    name: str
    plugin_id: str
    socket: str
    up: bool
    volumes: bool = False
    mount: str = ""


class Link(NamedTuple):
    """A plugin that is published.

    Attributes:
        alias: what engines call it.
        path: where they find its socket.
        volumes: whether it is a volume plugin.
        plugin_id: 64 hex digits.
        mount: its propagated mount, as it calls it; empty: it has none.
    """

    alias: str
    path: str
    volumes: bool
    plugin_id: str = ""
    mount: str = ""


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
        files: each brings files that tell engines of the links up to date with those there are, in a thread.
    """

    def __init__(
        self,
        sockets: Path,
        directory: Path | None,
        wished: Callable[[], list[Wish]],
        files: Iterable[Callable[[list[Link]], Iterable[Trouble]]] = (),
    ) -> None:
        self._sockets, self._directory, self._wished, self._files = sockets, directory, wished, tuple(files)
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
                troubles = await to_thread.run_sync(self._settle, self._directory, self._wished())
            except Exception:  # noqa: BLE001 - no plugin, and no daemon, is to end for want of a link or a thread
                _log.exception("published.failed", directory=str(self._directory))
                return
            for trouble in sorted(troubles - self._told):
                _log.warning("published.trouble", path=trouble.path, why=trouble.why)
            self._told = troubles

    def _settle(self, directory: Path, wishes: list[Wish]) -> frozenset[Trouble]:
        # what an engine reads is true at any time: told of a link after it came, and not any more before it goes
        self._tell(directory, wishes)
        return reconcile(self._sockets, directory, wishes) | self._tell(directory, wishes)

    def _tell(self, directory: Path, wishes: list[Wish]) -> frozenset[Trouble]:
        links = linked(self._sockets, directory, wishes)
        return frozenset(trouble for file in self._files for trouble in file(links))

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
    claims = [
        Claim(f"{alias(wish.name)}.sock", f"{sockets}/{wish.plugin_id}/{wish.socket}", wish.name, put=wish.up)
        for wish in wishes
    ]
    ours = re.compile(rf"{re.escape(str(sockets))}/[0-9a-f]{{64}}/[^/]+")
    advice = "install one of them with another --alias"
    try:
        folder = open_directory(directory, make=any(claim.put for claim in claims))
        if folder is None:
            return frozenset()
        try:
            troubles = keep(folder, claims, ours=ours, suffix=".sock", advice=advice)
            return frozenset(Trouble(str(directory / name), why) for name, why in troubles)
        finally:
            os.close(folder)
    except OSError as exc:
        why = f"no plugin is published there: {exc.strerror}; mend that, or set another publish-dir"
        return frozenset([Trouble(str(directory), why)])


def linked(sockets: Path, directory: Path, wishes: Iterable[Wish]) -> list[Link]:
    """Return those that have their link in a directory, up or not. Blocks.

    Args:
        sockets: RUN/plugins, absolute.
        directory: of the links.
        wishes: the enabled plugins.
    """
    found = []
    for wish in wishes:
        path = f"{directory}/{alias(wish.name)}.sock"
        if target_of(path) == f"{sockets}/{wish.plugin_id}/{wish.socket}":
            found.append(Link(alias(wish.name), path, wish.volumes, wish.plugin_id, wish.mount))
    return found

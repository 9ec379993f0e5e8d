"""What the daemon owns to have tars unpacked: confined children, one ready ahead (design D4)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import anyio
import structlog

from pluginsvc.errors import Internal
from pluginsvc.rootfs.child import Child, UnpackFailed, open_directory
from pluginsvc.rootfs.ingest import Archive, ingest
from pluginsvc.rootfs.layers import Unpacker

_log = structlog.get_logger()


class NeedsRoot(Internal):
    """Unpacking a rootfs takes root: owners, device nodes, namespaces."""

    def __init__(self) -> None:
        super().__init__("cannot unpack a rootfs: the daemon does not run as root; start it as root")


class Confinement:
    """Gives each job a fresh confined child, and keeps one spare that has started already.

    Open it with ``async with``; leaving ends the spare.

    Args:
        limit: most children at work at the same time; further jobs wait.
    """

    _starter: ThreadPoolExecutor

    def __init__(self, *, limit: int = 8) -> None:
        self._limit = anyio.CapacityLimiter(limit)
        self._spare: Child | None = None
        self._open = False

    async def __aenter__(self) -> Self:
        self._starter = ThreadPoolExecutor(1, "start-child")
        self._open = True
        await self._refill()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open = False
        if self._spare is not None:
            spare, self._spare = self._spare, None
            await spare.kill()
        self._starter.shutdown(wait=False)

    async def ingest(self, body: AsyncIterator[bytes], staging: Path, blob: int, *, level: int) -> Archive:
        """Unpack a plugin's archive into ``staging`` and make its layer, in one pass (REF 3.2).

        The last ``config.json`` counts, before or after ``rootfs/``; other entries outside ``rootfs`` are dropped.

        Args:
            body: the archive, plain, gzip or zstd by its magic. When it raises, so does this.
            staging: an existing empty directory; on error it is left as it is, for the caller to remove.
            blob: descriptor of a file that gets the layer as gzip, from where it stands. Equal archives give equal
                bytes.
            level: of compression, isal's 0 (fastest) to 3 (smallest).

        Raises:
            InvalidArchive: the archive is broken or holds what must not be unpacked.
            NeedsRoot, ConfinementFailed, DiskFull, UnpackFailed, ChildFailed: the machine is at fault.
        """
        async with self._child() as child:
            return await ingest(child, body, staging, blob, level=level)

    @asynccontextmanager
    async def unpack(self, staging: Path) -> AsyncIterator[Unpacker]:
        """Give the block an ``Unpacker`` onto ``staging``; the rootfs is whole only when the block has been left well.

        Args:
            staging: an existing empty directory; on error it is left as it is, for the caller to remove.

        Raises:
            NeedsRoot, ConfinementFailed, UnpackFailed, ChildFailed: the machine is at fault.
        """
        async with self._child() as child:
            root = await open_directory(staging)
            try:
                child.send({"job": "unpack"}, (root,))
            finally:
                os.close(root)
            unpacker = Unpacker(child)
            yield unpacker
            await unpacker.finish()

    @asynccontextmanager
    async def _child(self) -> AsyncIterator[Child]:
        """Own a child for one job; on the way out it is dead and gone."""
        if os.geteuid() != 0:
            raise NeedsRoot
        async with self._limit:
            child, self._spare = self._spare, None
            if child is not None and not child.alive:
                await child.kill()
                child = None
            if child is None:
                child = await Child.start(self._starter)
            try:
                await self._refill()
                yield child
            finally:
                await child.kill()

    async def _refill(self) -> None:
        """Start the next spare; it gets ready while others work."""
        if not self._wants_spare():
            return
        try:
            child = await Child.start(self._starter)
        except UnpackFailed as exc:
            # no reason to fail a job that has its child: the next job tries again
            _log.warning("rootfs.no_spare", error=str(exc))
            return
        # another job, or the end, may have come in between
        if self._wants_spare():
            self._spare = child
        else:
            await child.kill()

    def _wants_spare(self) -> bool:
        return self._open and self._spare is None and os.geteuid() == 0

"""Mark and sweep over the content store (design D9): what no root names goes, the world is not stopped for it.

A pull leases a digest before it looks for the blob; whoever deletes asks once more, in one transaction with the
deletion, whether the digest is leased or recorded. So a pull either finds the blob and keeps it, or finds it gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import anyio
import anyio.abc
import structlog

from pluginsvc import metrics
from pluginsvc.content.ingest import StorageError
from pluginsvc.content.store import ContentStore
from pluginsvc.errors import PluginsvcError
from pluginsvc.model.digest import Digest

Roots = Callable[[], Awaitable[set[Digest]]]
Remove = Callable[[Digest], Awaitable[int | None]]
INTERVAL: Final = 3600.0
"""Seconds between two collections that nobody asked for."""
_log = structlog.get_logger()


@dataclass(slots=True)
class Report:
    """What a collection did, or in a dry run would do.

    Attributes:
        removed: the digests that went.
        bytes: what they took.
        kept: how many blobs stayed because something names them.
        failed: digests that could not be deleted; the next collection tries again.
    """

    removed: list[Digest] = field(default_factory=list)
    bytes: int = 0
    kept: int = 0
    failed: list[Digest] = field(default_factory=list)


async def collect(store: ContentStore, *, roots: Roots, remove: Remove, dry_run: bool = False) -> Report:
    """Delete every blob that no root names.

    Args:
        store: what to sweep.
        roots: gives the digests that are needed, leased ones included.
        remove: deletes one blob unless it has become needed meanwhile; bytes freed, or None for "needed".
        dry_run: only say what would go.

    Raises:
        StorageError: the store cannot be listed.
        PluginsvcError: what ``roots`` or ``remove`` raise; a blob that merely cannot be deleted is reported instead.
    """
    report = Report()
    # listed before marked: what arrives in between is not even looked at
    blobs = await store.digests()
    marked = await roots()
    for digest, size in blobs:
        freed: int | None = None
        if digest not in marked:
            try:
                freed = size if dry_run else await remove(digest)
            except StorageError as exc:
                _log.warning("content.blob_not_removed", digest=digest, error=str(exc))
                report.failed.append(digest)
                continue
        if freed is None:
            report.kept += 1
        else:
            report.removed.append(digest)
            report.bytes += freed
    if not dry_run:
        await store.sweep_ingests()
    return report


class Collector:
    """Runs collections one at a time: at start, when triggered, on a timer, on demand.

    Args:
        store: what to sweep.
        roots, remove: see ``collect``.
        interval: seconds between two collections that nobody asked for.
    """

    def __init__(self, store: ContentStore, *, roots: Roots, remove: Remove, interval: float = INTERVAL) -> None:
        self._store, self._roots, self._remove, self._interval = store, roots, remove, interval
        self._wanted = anyio.Event()
        self._running = anyio.Lock()

    def trigger(self) -> None:
        """Ask for a collection soon; many requests before it begins are one."""
        self._wanted.set()

    async def run_once(self, *, dry_run: bool = False) -> Report:
        """Collect now, after a collection that is under way.

        Raises:
            PluginsvcError: see ``collect``.
        """
        async with self._running:
            if dry_run:
                return await collect(self._store, roots=self._roots, remove=self._remove, dry_run=True)
            with metrics.operation("gc"):
                report = await collect(self._store, roots=self._roots, remove=self._remove)
        metrics.GC_BLOBS.inc(len(report.removed))
        metrics.GC_BYTES.inc(report.bytes)
        if report.removed:
            _log.info("content.collected", blobs=len(report.removed), bytes=report.bytes, kept=report.kept)
        return report

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Collect at once, then whenever triggered and at least every ``interval`` seconds, until cancelled."""
        task_status.started()
        while True:
            self._wanted = anyio.Event()
            try:
                await self.run_once()
            except PluginsvcError as exc:
                _log.warning("content.collection_failed", error=str(exc))
            with anyio.move_on_after(self._interval):
                await self._wanted.wait()

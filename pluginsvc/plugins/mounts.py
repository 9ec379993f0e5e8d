"""The ledger of mounts: what the daemon has mounted on the host, and how it goes again (issue 4).

There is one kind: a plugin's propagated mount, bound onto itself. What the plugin mounts below it goes with it.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Collection
from pathlib import Path

import anyio
import msgspec
import structlog
from anyio import to_thread

from pluginsvc.errors import PluginsvcError
from pluginsvc.fsutil import Mount, boot_id
from pluginsvc.model.lease import PluginLease, holders
from pluginsvc.plugins.disk import Disk, DiskTrouble
from pluginsvc.rootfs import mounts
from pluginsvc.state import mounts as rows
from pluginsvc.state import plugin_leases, plugins
from pluginsvc.state.database import Database
from pluginsvc.state.mounts import MountRow
from pluginsvc.tasks import KeyedLock

_log = structlog.get_logger()
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0


class Ledger:
    """Makes mounts, and unmounts them for as long as it takes.

    A row is written before its mount is made, so that a crash in between is found at the next start. A row with trouble
    is a mount that should be gone: held by leases, or refused by the kernel. Each row means the mount with its number,
    and never another that is at its place by now.

    Args:
        database: has the rows, and the leases.
        disk: knows the places.
    """

    def __init__(self, database: Database, disk: Disk) -> None:
        self._database = database
        self._disk = disk
        self._locks = KeyedLock()
        self._wake = anyio.Event()

    def wake(self) -> None:
        """Try at once what is still to be unmounted: a lease was released."""
        self._wake.set()

    async def rows(self) -> list[MountRow]:
        """Return all that is mounted, or should not be any more."""
        return await self._database.read(rows.load)

    async def make(self, plugin_id: str) -> Path:
        """Make a plugin's propagated mount; one that is still there is taken over as it is.

        What cannot be written down is made all the same, for a full disk is no reason to keep a plugin from its
        volumes: ``clear`` asks the mount table too, and the next start takes the mount over.

        Raises:
            DiskTrouble, MountFailed: see ``Disk.make_propagated``.
        """
        async with self._locks(plugin_id):
            point, base = await to_thread.run_sync(self._look, plugin_id)
            known = await self._database.read(lambda db: rows.load(db, plugin_id))
            row = next((row for row in known if base is not None and _means(row, base)), None)
            if row is None:
                row = _row(plugin_id, point, None)
                await self._put(row)
            try:
                path = await self._disk.make_propagated(plugin_id)
            except PluginsvcError:
                if not row.mount_id:
                    await self._database.write(lambda db: rows.delete(db, row.path))
                raise
            if not row.mount_id or row.trouble:
                _, base = await to_thread.run_sync(self._look, plugin_id)
                await self._put(_row(plugin_id, point, base, row.since_ns))
        return path

    async def _put(self, row: MountRow) -> None:
        try:
            await self._database.write(lambda db: rows.put(db, row))
        except PluginsvcError as exc:
            _log.error("mounts.not_written", path=row.path, error=str(exc))

    async def clear(self, plugin_id: str, *, force: bool = False) -> None:
        """Unmount all that is mounted in a plugin's directory, lazily where it is in use.

        What cannot be unmounted is kept in mind and tried again; trouble is logged, never raised.

        Args:
            plugin_id: 64 hex digits.
            force: even if there are leases on the plugin; without, all of it stays until the last of them is gone.
        """
        async with self._locks(plugin_id):
            try:
                leases = [] if force else await self._leases(plugin_id)
                if await self._clear(plugin_id, leases):
                    self.wake()
            except PluginsvcError as exc:
                _log.error("mounts.not_cleared", plugin=plugin_id, error=str(exc))

    async def bury(self, plugin_id: str) -> Path | None:
        """Unmount all of a plugin that was removed, then take its directory out of the way; see ``Disk.bury``."""
        await self.clear(plugin_id, force=True)
        return await self._disk.bury(plugin_id)

    async def restore(self, known: Collection[str]) -> None:
        """At start: forget what is gone, take over what no row knows of, unmount what plugins that are gone have left.

        Args:
            known: IDs of all plugins there are.

        Raises:
            StateError: the database failed.
        """
        old = await self.rows()
        current = [row for row in old if row.boot == boot_id()]

        def look() -> list[MountRow]:
            kept = []
            for plugin_id in known:
                found = mounts.below(self._disk.plugin(plugin_id))
                kept += [row for row in current if any(_means(row, mount) for mount in found)]
                point, base = self._look(plugin_id)
                if base is not None and not any(_means(row, base) for row in kept):
                    kept.append(_row(plugin_id, point, base))
            return kept

        new = await to_thread.run_sync(look)

        def work(db: sqlite3.Connection) -> None:
            plugin_leases.expire(db, time.time_ns())
            rows.replace(db, old, new)

        await self._database.write(work)
        for plugin_id in {row.plugin_id for row in old}.difference(known):
            await self.clear(plugin_id, force=True)

    async def serve(self) -> None:
        """Retry what is still to be unmounted, in growing pauses, until cancelled; ``restore`` comes first."""
        pause = _FIRST_PAUSE
        while True:
            with anyio.move_on_after(await self._retry(pause)) as waited:
                await self._wake.wait()
            pause = min(pause * 2, _LONGEST_PAUSE) if waited.cancelled_caught else _FIRST_PAUSE
            self._wake = anyio.Event()

    async def _retry(self, pause: float) -> float:
        """Try all that has trouble once, and return for how many seconds to wait: ``pause``, or less, or for ever."""
        try:
            doomed = {row.plugin_id for row in await self.rows() if row.trouble}
            return min([await self._retry_one(plugin_id, pause) for plugin_id in doomed], default=math.inf)
        except PluginsvcError as exc:
            _log.warning("mounts.retry_failed", error=str(exc))
            return pause

    async def _retry_one(self, plugin_id: str, pause: float) -> float:
        async with self._locks(plugin_id):
            known = await self._database.read(lambda db: rows.load(db, plugin_id))
            doomed = [row for row in known if row.trouble]
            leases = await self._leases(plugin_id)
            if doomed and await self._clear(plugin_id, leases, doomed):
                ends = [lease.expires_ns for lease in leases if lease.expires_ns is not None]
                return min([pause, *(max(0.0, (end - time.time_ns()) / 1e9) for end in ends)])
            if not await self._database.read(lambda db: plugins.exists(db, plugin_id)):
                # its removal had to leave the directory as it was
                tombstone = await self._disk.bury(plugin_id)
                if tombstone is not None:
                    await self._disk.discard(tombstone)
            return math.inf

    async def _leases(self, plugin_id: str) -> list[PluginLease]:
        return await self._database.read(lambda db: plugin_leases.held(db, plugin_id, time.time_ns()))

    async def _clear(
        self, plugin_id: str, leases: list[PluginLease], doomed: list[MountRow] | None = None
    ) -> list[MountRow]:
        """Unmount, unless there are leases, and write down what is left.

        Args:
            plugin_id: 64 hex digits.
            leases: those that count.
            doomed: only these mounts, and what lies on them; ``None``: all in the plugin's directory.

        Returns:
            What is left of it.
        """
        place = self._disk.plugin(plugin_id)

        def look() -> list[Mount]:
            found = mounts.below(place)
            if doomed is None:
                return found
            return mounts.family(found, {mount.id for mount in found if any(_means(row, mount) for row in doomed)})

        def unmount() -> tuple[list[Mount], dict[int, str]]:
            found, troubles = look(), dict[int, str]()
            while found and not leases:
                troubles.clear()
                for mount in found:
                    try:
                        if mounts.take_off(mount):
                            _log.warning("mounts.unmounted_lazily", path=mount.point)
                    except mounts.MountFailed as exc:
                        troubles[mount.id] = str(exc)
                before, found = found, look()
                # again for as long as it helps: one that is gone may have hidden another
                if len(found) >= len(before):
                    _log.error("mounts.unmount_failed", errors=sorted(troubles.values()))
                    break
            return found, troubles

        try:
            found, troubles = await to_thread.run_sync(unmount)
        except OSError as exc:
            raise DiskTrouble(f"unmount what is mounted for {plugin_id[:12]}", exc) from exc
        numbers = {mount.id for mount in found}
        held = f"held by {holders(leases)}" if leases else "still mounted"

        def work(db: sqlite3.Connection) -> list[MountRow]:
            old = {row.path: row for row in rows.load(db, plugin_id) if doomed is None or row.trouble}
            left = {}
            for mount in found:
                if mount.parent not in numbers:
                    row = old.get(_text(mount.point))
                    if row is None or not _means(row, mount):
                        row = _row(plugin_id, mount.point, mount)
                    left[row.path] = msgspec.structs.replace(row, trouble=troubles.get(mount.id, held))
            if left != old:
                rows.replace(db, old.values(), left.values())
            return list(left.values())

        return await self._database.write(work)

    def _look(self, plugin_id: str) -> tuple[str, Mount | None]:
        """Return where a plugin's propagated mount belongs, and the lowest mount that is there."""
        path = self._disk.propagated(plugin_id)
        point = os.path.realpath(path)
        return point, next((mount for mount in reversed(mounts.below(path)) if mount.point == point), None)


def _row(plugin_id: str, point: str, mount: Mount | None, since_ns: int = 0) -> MountRow:
    """Return the row of a mount, or of the intent to make one."""
    return MountRow(
        path=_text(point),
        plugin_id=plugin_id,
        mount_id=mount.id if mount else 0,
        source=_text(mount.source) if mount else "",
        boot=boot_id(),
        since_ns=since_ns or time.time_ns(),
    )


def _means(row: MountRow, mount: Mount) -> bool:
    """Tell whether a row of this boot is about this mount, and not one that came to its place or its number."""
    return (row.path, row.mount_id, row.source) == (_text(mount.point), mount.id, _text(mount.source))


def _text(name: str) -> str:
    """Return a name as the database can hold it: plugins may use bytes that are not UTF-8."""
    return name.encode(errors="backslashreplace").decode()

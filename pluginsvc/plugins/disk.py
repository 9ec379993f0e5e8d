"""The plugins' directories under ROOT: generations, staging, tombstones (design D14, D15)."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import structlog
from anyio import to_thread

from pluginsvc.errors import Internal
from pluginsvc.fsutil import StillMounted, mounts_below, remove_tree, sync_dir
from pluginsvc.rootfs import mounts

_log = structlog.get_logger()


class DiskTrouble(Internal):
    """A directory of a plugin could not be made, moved or deleted."""

    def __init__(self, what: str, error: OSError) -> None:
        self.what, self.error = what, error
        super().__init__(f"cannot {what}: {error.strerror or error}; check the disk and try again")


class Disk:
    """``ROOT/plugins/<id>/{gen-<n>/rootfs,propagated-mount}`` and ``ROOT/staging/…``; names only, no knowledge.

    Args:
        root: the daemon's ROOT.

    Attributes:
        logs: ``ROOT/logs``, with a directory for each plugin that was ever started; the runtime fills it.
    """

    def __init__(self, root: Path) -> None:
        self._plugins = root / "plugins"
        self._staging = root / "staging"
        self.logs = root / "logs"

    async def open(self) -> None:
        """Make the directories that are missing, closed to all but root."""

        def work() -> None:
            for path in (self._plugins, self._staging, self.logs):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)

        await to_thread.run_sync(work)

    def plugin(self, plugin_id: str) -> Path:
        """Return the directory of a plugin."""
        return self._plugins / plugin_id

    def rootfs(self, plugin_id: str, generation: int) -> Path:
        """Return where a generation of the rootfs is."""
        return self._plugins / plugin_id / f"gen-{generation}" / "rootfs"

    def propagated(self, plugin_id: str) -> Path:
        """Return the directory whose mounts the host sees."""
        return self._plugins / plugin_id / "propagated-mount"

    async def make_staging(self) -> Path:
        """Make ``ROOT/staging/<random>/rootfs`` and return its parent."""
        path = self._staging / uuid4().hex

        def work() -> None:
            (path / "rootfs").mkdir(parents=True)
            path.chmod(0o700)
            (path / "rootfs").chmod(0o755)

        try:
            await to_thread.run_sync(work)
        except OSError as exc:
            raise DiskTrouble("make a staging directory", exc) from exc
        return path

    async def adopt(self, staging: Path, plugin_id: str, generation: int) -> None:
        """Move a staging directory to its place as a generation and make the names durable."""
        target = self._plugins / plugin_id / f"gen-{generation}"

        def work() -> None:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            # left by a crash between this rename and the transaction that would have named it
            remove_tree(target)
            staging.rename(target)
            sync_dir(target.parent)
            sync_dir(self._plugins)

        try:
            await to_thread.run_sync(work)
        except OSError as exc:
            raise DiskTrouble(f"move the rootfs of {plugin_id[:12]} into place", exc) from exc

    async def retract(self, plugin_id: str, generation: int) -> None:
        """Undo ``adopt``, and delete the plugin's directory if there is nothing else in it."""
        target = self._plugins / plugin_id / f"gen-{generation}"
        await self.discard(target)
        with suppress(OSError):
            await to_thread.run_sync(target.parent.rmdir)

    async def make_propagated(self, plugin_id: str) -> Path:
        """Make the propagated-mount directory and a shared mount of it onto itself; done already is fine."""
        path = self.propagated(plugin_id)

        def work() -> None:
            try:
                path.mkdir()
                # whatever the umask: a plugin may go down to another user and still has to get in (REF 3.6)
                path.chmod(0o755)
            except FileExistsError:
                pass
            mounts.make_shared(path)

        try:
            await to_thread.run_sync(work)
        except OSError as exc:
            raise DiskTrouble(f"make the propagated mount of {plugin_id[:12]}", exc) from exc
        return path

    async def unmount(self, path: Path) -> None:
        """Unmount all below ``path``; what is in use is detached, and gone when its last user is."""

        def work() -> None:
            try:
                mounts.unmount_below(path)
            except mounts.MountFailed as exc:
                _log.warning("disk.unmounted_lazily", path=str(path), error=str(exc))
                mounts.unmount_below(path, lazy=True)

        try:
            await to_thread.run_sync(work)
        except (OSError, Internal) as exc:
            # the caller goes on in any case: whoever deletes looks for mounts again and refuses
            _log.error("disk.unmount_failed", path=str(path), error=str(exc))

    async def bury(self, plugin_id: str) -> Path | None:
        """Take a plugin's directory out of the way, ready to be discarded; ``None`` where there is none."""
        path = self.plugin(plugin_id)
        # a name of its own: who removes and who retries may both bury, and delete what they have got
        tombstone = path.with_name(f"{plugin_id}-removing-{uuid4().hex[:8]}")

        def work() -> Path | None:
            # the ledger knows mounts by their places: what is still mounted stays where it is
            if left := mounts_below(path):
                raise StillMounted(path, left)
            try:
                path.rename(tombstone)
            except FileNotFoundError:
                return None
            return tombstone

        try:
            return await to_thread.run_sync(work)
        except (OSError, Internal) as exc:
            _log.warning("disk.bury_failed", path=str(path), error=str(exc))
            return None

    async def discard(self, path: Path) -> None:
        """Delete a tree; trouble is logged and the sweep of the next start tries again."""
        await self.unmount(path)
        try:
            await to_thread.run_sync(remove_tree, path)
        except (OSError, Internal) as exc:
            _log.warning("disk.discard_failed", path=str(path), error=str(exc))

    async def sweep(self, generations: dict[str, int | None]) -> None:
        """At start: delete staging, tombstones, unknown plugins, their logs, and generations that no record names.

        Args:
            generations: plugin ID → the generation its record names; ``None`` spares the directory whole.
        """

        def doomed() -> list[Path]:
            found = [*self._staging.iterdir(), *(p for p in self.logs.iterdir() if p.name not in generations)]
            for path in self._plugins.iterdir():
                if path.name not in generations:
                    found.append(path)
                    continue
                number = generations[path.name]
                if number is not None:
                    found += [p for p in path.iterdir() if p.name.startswith("gen-") and p.name != f"gen-{number}"]
            return found

        for path in await to_thread.run_sync(doomed):
            _log.info("disk.swept", path=str(path))
            await self.discard(path)

    async def sync(self, path: Path) -> None:
        """Write the file system that holds ``path`` to the disk (syncfs(2))."""

        def work() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if libc.syncfs(fd) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), str(path))
            finally:
                os.close(fd)

        await to_thread.run_sync(work)

    async def usage(self) -> int:
        """Return the bytes that all plugins' directories take on the disk, without what is mounted in them."""

        def work() -> int:
            seen: set[int] = set()
            total = 0
            device = self._plugins.stat().st_dev
            for _, folders, files, fd in os.fwalk(self._plugins, follow_symlinks=False):
                if os.fstat(fd).st_dev != device:
                    folders.clear()
                    continue
                for name in files:
                    # a plugin may change its files, or be removed, while we look
                    with suppress(FileNotFoundError):
                        facts = os.stat(name, dir_fd=fd, follow_symlinks=False)
                        if facts.st_ino not in seen:
                            seen.add(facts.st_ino)
                            total += facts.st_blocks * 512
            return total

        return await to_thread.run_sync(work)

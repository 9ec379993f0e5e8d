"""Mounts of rootfs and propagated-mount directories. All functions block: call them in a thread."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pluginsvc.errors import Internal
from pluginsvc.fsutil import mounts_below
from pluginsvc.rootfs import syscalls


class MountFailed(Internal):
    """A directory could not be mounted or unmounted."""

    def __init__(self, action: str, path: Path | str, error: OSError) -> None:
        self.action, self.path, self.errno = action, path, error.errno
        hint = "; the daemon needs CAP_SYS_ADMIN" if error.errno == errno.EPERM else ""
        hint = "; stop what uses it, or unmount it lazily" if error.errno == errno.EBUSY else hint
        super().__init__(f"cannot {action} {path}: {error.strerror}{hint}")


def make_shared(path: Path) -> None:
    """Make ``path`` a mount point whose mounts propagate both ways (rshared), as propagated mounts need.

    It is bound onto itself unless it is a mount point already, so that calling twice stacks nothing.

    Raises:
        MountFailed: the kernel refused; nothing stays mounted that was not before.
    """
    target = os.fsencode(path)
    already = os.path.realpath(path) in mounts_below(path)
    try:
        if not already:
            syscalls.mount(target, target, syscalls.MS_BIND | syscalls.MS_REC)
        try:
            syscalls.mount(None, target, syscalls.MS_SHARED | syscalls.MS_REC)
        except OSError:
            if not already:
                syscalls.umount2(target, syscalls.MNT_DETACH)
            raise
    except OSError as exc:
        raise MountFailed("make a shared mount of", path, exc) from exc


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Unmount what is mounted at ``path``, all of it when mounts are stacked there; nothing mounted is fine.

    Args:
        path: the mount point.
        lazy: detach at once, though it is in use, and let the kernel clean up when its last user is gone.

    Raises:
        MountFailed: it is busy (and not ``lazy``), or the kernel refused.
    """
    flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
    while True:
        try:
            syscalls.umount2(os.fsencode(path), flags)
        except OSError as exc:
            # EINVAL: no mount point (any more)
            if exc.errno in {errno.EINVAL, errno.ENOENT}:
                return
            raise MountFailed("unmount", path, exc) from exc


def unmount_below(path: Path, *, lazy: bool = False) -> None:
    """Unmount everything at or below ``path``, deepest first; siblings that only share a prefix are left alone.

    Raises:
        MountFailed: as ``unmount``; mounts deeper than the one that failed are gone.
    """
    for point in mounts_below(path):
        unmount(Path(point), lazy=lazy)

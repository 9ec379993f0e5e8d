"""Mounts of rootfs and propagated-mount directories. All functions block: call them in a thread."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from pathlib import Path

from pluginsvc.errors import Internal
from pluginsvc.fsutil import Mount, mount_table, mounts_below
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


def below(path: Path) -> list[Mount]:
    """Return the mounts at or below ``path``, each before the one it lies on."""
    table, top = mount_table(), os.path.realpath(path)

    depths: dict[int, int] = {}

    def depth(mount: Mount) -> int:
        # no recursion: plugins may stack thousands
        chain = [mount]
        while (last := chain[-1]).id not in depths and last.parent in table and last.parent != last.id:
            chain.append(table[last.parent])
        top = depths.get(chain[-1].id, 0)
        depths.update((each.id, top + number) for number, each in enumerate(reversed(chain)))
        return depths[mount.id]

    found = [mount for mount in table.values() if f"{mount.point}/".startswith(f"{top}/")]
    return sorted(found, key=depth, reverse=True)


def family(found: list[Mount], numbers: Collection[int]) -> list[Mount]:
    """Return those of ``found``, in their order as ``below`` gave it, with these numbers, and what lies on them."""
    chosen = set(numbers)
    for mount in reversed(found):
        if mount.parent in chosen:
            chosen.add(mount.id)
    return [mount for mount in found if mount.id in chosen]


def take_off(mount: Mount) -> bool:
    """Unmount one mount, and no other that is at its place by now; lazily where it is in use. One that is gone is fine.

    The mount table alone is asked what is where: a file system whose server is dead would not answer.

    Returns:
        Whether it is still in use, and goes with its last user.

    Raises:
        MountFailed: the kernel refused, or another mount hides it.
    """
    try:
        _umount(mount, 0)
    except OSError:
        try:
            return _umount(mount, syscalls.MNT_DETACH)
        except OSError as exc:
            raise MountFailed("unmount", mount.point, exc) from exc
    return False


def _umount(mount: Mount, flag: int) -> bool:
    """Unmount; return whether there was anything to unmount."""
    table = mount_table()
    if table.get(mount.id) != mount:
        return False
    if _reached(table, mount.point) != mount.id:
        raise OSError(errno.EINVAL, "another mount hides it")
    syscalls.umount2(os.fsencode(mount.point), syscalls.UMOUNT_NOFOLLOW | flag)
    return True


def _reached(table: dict[int, Mount], point: str) -> int | None:
    """Return the number of the mount that a lookup of a path without links ends in."""
    on = {(mount.parent if mount.parent != mount.id else 0, mount.point): mount.id for mount in table.values()}
    # the root's own parent is out of sight; in a chroot so is the root
    current = {parent for parent, _ in on if parent not in table}
    for place in ("/", *(point[:end] for end in range(1, len(point) + 1) if f"{point}/"[end] == "/")):
        while above := {on[number, place] for number in current if (number, place) in on}:
            current = above
    return current.pop() if len(current) == 1 else None

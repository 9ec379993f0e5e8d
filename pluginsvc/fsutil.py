"""Durable writes and safe removal. All functions block: call them in a thread."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pluginsvc.errors import Conflict, Internal


class StillMounted(Internal):
    """A tree to be removed has a mount in it; removing it would delete what is mounted."""

    def __init__(self, path: Path, mounts: list[str]) -> None:
        self.path, self.mounts = path, mounts
        super().__init__(f"cannot remove {path}: {', '.join(mounts[:3])} is still mounted below it; unmount it first")


class AlreadyRunning(Conflict):
    """Another daemon works on these directories."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"another pluginsvc uses {path}: stop it, or give this one a --root and --run-root of its own")


class NoDirectory(Internal):
    """ROOT or RUN cannot be made."""

    def __init__(self, path: Path, error: OSError) -> None:
        self.path, self.error = path, error
        super().__init__(f"cannot use {path}: {error.strerror}; choose another directory")


def sync_dir(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_regular(path: str | Path, limit: int) -> tuple[bytes, os.stat_result]:
    """Return the content and the state of a regular file; a pipe or a device, which may hang, is not read.

    Args:
        path: the file; links are followed.
        limit: most bytes that it may have.

    Raises:
        OSError: it cannot be read, is no regular file or is larger; ``strerror`` says why.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "its name has a NUL in it", str(path))
    # before it is opened as well: that alone does something to some devices
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    # it may be a pipe by now, into which nobody writes
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", str(path))
    return data, status


def atomic_write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace ``path`` so that after a crash it holds all of the old bytes or all of ``data``.

    Args:
        path: the file; its directory exists.
        data: the whole content.
        mode: permission bits of the new file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            # the daemon's umask lets nobody in
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


class Mount(NamedTuple):
    """A line of the mount table.

    Attributes:
        id: the kernel's number, given again as soon as it is free.
        parent: number of the mount it lies on.
        point: where.
        source: what is mounted: the device, and which directory of it.
    """

    id: int
    parent: int
    point: str
    source: str


def mount_table() -> dict[int, Mount]:
    """Return every mount of this namespace by its number (proc(5), mountinfo)."""
    found = {}
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            number, parent, device, root, point = line.split(b" ", 5)[:5]
            # \040 and its like stand for the characters that would break the table
            place = point.decode("unicode_escape").encode("latin-1")
            source = f"{device.decode()} {os.fsdecode(root)}"
            found[int(number)] = Mount(int(number), int(parent), os.fsdecode(place), source)
    return found


def mounts_below(path: Path) -> list[str]:
    """Return the mount points at or below ``path``, deepest first."""
    top = os.path.realpath(path)
    found = [mount.point for mount in mount_table().values() if f"{mount.point}/".startswith(f"{top}/")]
    return sorted(found, key=len, reverse=True)


def remove_tree(path: Path) -> None:
    """Delete a directory and all below it; a missing one is fine.

    Directories are first moved up to the top one, so that depth costs neither descriptors nor recursion, and every
    name is used relative to an open directory, so that a symbolic link is deleted and never followed.

    Raises:
        StillMounted: something is mounted at or below ``path``; nothing was deleted.
    """
    if not path.is_symlink() and (mounts := mounts_below(path)):
        raise StillMounted(path, mounts)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        top = os.open(path, flags)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        path.unlink()
        return
    try:
        moved = 0
        tag = f".rm-{os.urandom(4).hex()}-"
        queue = ["."]
        while queue:
            name = queue.pop()
            fd = os.open(name, flags, dir_fd=top)
            try:
                # the names are read before the first one changes
                for entry in os.listdir(fd):
                    if stat.S_ISDIR(os.stat(entry, dir_fd=fd, follow_symlinks=False).st_mode):
                        moved += 1
                        os.rename(entry, f"{tag}{moved}", src_dir_fd=fd, dst_dir_fd=top)
                        queue.append(f"{tag}{moved}")
                    else:
                        os.unlink(entry, dir_fd=fd)
            finally:
                os.close(fd)
            if name != ".":
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    path.rmdir()


@cache
def boot_id() -> str:
    """Return the kernel's random ID of this boot; read once."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


_LOCK_SECONDS = 2.0


@contextmanager
def locked_directory(path: Path, mode: int) -> Iterator[None]:
    """Hold the exclusive lock of a directory, made with ``mode`` where it is missing; no child inherits it."""
    try:
        if not path.is_dir():
            path.mkdir(parents=True)
            path.chmod(mode)
        fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise NoDirectory(path, exc) from exc
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                # a child of a daemon that was killed has it until it has become its program: whoever
                # clears up before that does not see it
                if time.monotonic() > deadline:
                    raise AlreadyRunning(path) from exc
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)

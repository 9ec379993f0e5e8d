"""Files that every container's rootfs has before a start (REF 3.11).

The rootfs holds whatever the plugin's author and the plugin itself put there, so each name is used relative to an
open directory and no symbolic link is ever followed. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

_DIRECTORIES = ("dev/pts", "dev/shm", "proc", "sys")
_FILES = (".dockerenv", "etc/resolv.conf", "etc/hosts", "etc/hostname", "dev/console")
_LINKS = (("etc/mtab", "/proc/mounts"),)
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o755


def write_init_layer(rootfs: Path) -> None:
    """Make the mount points and the empty files, owned by root; what else has their names is replaced.

    Directories stay, with all that is in them.

    Raises:
        OSError: the rootfs is not a directory, or cannot be written.
    """
    root = os.open(rootfs, _OPEN_DIRECTORY)
    try:
        for path in _DIRECTORIES:
            os.close(_enter(root, path.split("/")))
        for path in _FILES:
            _leaf(root, path, None)
        for path, target in _LINKS:
            _leaf(root, path, target)
    finally:
        os.close(root)


def _leaf(root: int, path: str, target: str | None) -> None:
    """Make an empty file, or a symbolic link to ``target``, unless a directory has that name."""
    *parents, name = path.split("/")
    parent = _enter(root, parents)
    try:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(name, dir_fd=parent)
        with contextlib.suppress(FileExistsError):
            if target is not None:
                os.symlink(target, name, dir_fd=parent)
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, _MODE, dir_fd=parent)
            try:
                _own(fd)
            finally:
                os.close(fd)
    finally:
        os.close(parent)


def _enter(root: int, names: list[str]) -> int:
    """Return a descriptor of the directory below ``root``, with each part made where it is missing or no directory."""
    current = os.dup(root)
    try:
        for name in names:
            following = _step(current, name)
            os.close(current)
            current = following
    except BaseException:
        os.close(current)
        raise
    return current


def _step(parent: int, name: str) -> int:
    try:
        return os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        pass
    except OSError as exc:
        # a link, or a file of any kind
        if exc.errno not in {errno.ENOTDIR, errno.ELOOP}:
            raise
        os.unlink(name, dir_fd=parent)
    os.mkdir(name, _MODE, dir_fd=parent)
    fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
    _own(fd)
    return fd


def _own(fd: int) -> None:
    """Take away what umask and a setgid parent did."""
    os.fchown(fd, 0, 0)
    os.fchmod(fd, _MODE)

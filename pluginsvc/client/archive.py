"""A plugin's folder as a tar stream, made while it is sent (REF 3.2)."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from pathlib import Path

from pluginsvc.errors import InvalidParameter

_BUFFER = 1024 * 1024


class UnreadableFolder(InvalidParameter):
    """A file of the plugin's folder cannot be read, or changed while it was."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"cannot read {path}: {reason}: nothing was created")


def write_plugin(folder: Path, out: io.RawIOBase) -> None:
    """Write ``config.json`` and ``rootfs/`` of ``folder`` as a tar.

    Owners are numbers, times are whole seconds and the only extended attribute is the file capability, as in what the
    docker CLI sends. Sockets are left out: tar has no word for them.

    Args:
        folder: has both; either may be a symbolic link.
        out: takes the bytes as they come.

    Raises:
        UnreadableFolder: names the file.
    """
    with tarfile.TarFile(
        mode="w", fileobj=out, format=tarfile.PAX_FORMAT, encoding="utf-8", copybufsize=_BUFFER
    ) as tar:
        pending = [(os.path.realpath(folder / name), name) for name in ("rootfs", "config.json")]
        while pending:
            path, name = pending.pop()
            try:
                children = _add(tar, path, name)
            except OSError as exc:
                raise UnreadableFolder(path, exc.strerror or str(exc)) from exc
            pending += [(f"{path}/{child}", f"{name}/{child}") for child in children]


def _add(tar: tarfile.TarFile, path: str, name: str) -> list[str]:
    """Add one entry and return the names of what is in it."""
    # None for a socket, which the stubs do not say
    entry: tarfile.TarInfo | None = tar.gettarinfo(path, name)
    if entry is None:
        return []
    entry.uname = entry.gname = ""
    entry.mtime = int(entry.mtime)
    if not entry.isreg():
        tar.addfile(entry)
        return sorted(os.listdir(path), reverse=True) if entry.isdir() else []
    with open(path, "rb") as file:
        if capability := _capability(file.fileno()):
            entry.pax_headers = {"SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape")}
        tar.addfile(entry, file)
    return []


def _capability(descriptor: int) -> bytes:
    try:
        return os.getxattr(descriptor, "security.capability")
    except OSError as exc:
        if exc.errno in {errno.ENODATA, errno.ENOTSUP}:
            return b""
        raise

"""Device nodes of the host that a plugin is given (REF 3.10). Everything here blocks: call it in a thread."""

from __future__ import annotations

import os
import stat
from typing import Any

import msgspec


class NotADevice(OSError):
    """A path is neither a device nor a directory with devices in it; the caller turns it into its own error."""


class DeviceNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node as it shall appear in the container, with the owner and mode it has on the host."""

    path: str
    type: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int

    def spec(self) -> dict[str, Any]:
        """Return the node the way the OCI runtime spec has it (config-linux, devices)."""
        return {
            "path": self.path,
            "type": self.type,
            "major": self.major,
            "minor": self.minor,
            "fileMode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
        }


def nodes_at(path: str) -> list[DeviceNode]:
    """Return the node at ``path``, links resolved, or all nodes below it when it is a directory, sorted.

    Nodes keep the path that was asked for, not the one a link leads to.

    Raises:
        NotADevice: nothing there is a device.
        OSError: the path cannot be looked at.
    """
    facts = os.stat(path)
    if node := _node(path, facts):
        return [node]
    found = []
    if stat.S_ISDIR(facts.st_mode):
        real = os.path.realpath(path)
        for folder, _, names, fd in os.fwalk(real):
            inside = os.path.normpath(os.path.join(path, os.path.relpath(folder, real)))
            for name in names:
                # a link below the directory is not followed, as upstream
                node = _node(os.path.join(inside, name), os.stat(name, dir_fd=fd, follow_symlinks=False))
                if node:
                    found.append(node)
    if not found:
        raise NotADevice(f"{path} is no device, nor a directory with devices in it")
    return sorted(found, key=lambda node: node.path)


def _node(path: str, facts: os.stat_result) -> DeviceNode | None:
    if not (stat.S_ISCHR(facts.st_mode) or stat.S_ISBLK(facts.st_mode)):
        return None
    return DeviceNode(
        path=path,
        type="c" if stat.S_ISCHR(facts.st_mode) else "b",
        major=os.major(facts.st_rdev),
        minor=os.minor(facts.st_rdev),
        mode=stat.S_IMODE(facts.st_mode),
        uid=facts.st_uid,
        gid=facts.st_gid,
    )

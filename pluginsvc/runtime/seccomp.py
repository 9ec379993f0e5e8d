"""Seccomp profiles that operators keep on the host (runtime-spec, "Linux Container Configuration", ``seccomp``)."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import msgspec

from pluginsvc.runtime.spec import UnusableSettings

_MOST = 1 << 20
_DOCKER_ONLY = ("includes", "excludes")


def read(plugin: str, path: Path) -> dict[str, Any]:
    """Return the profile in a file; what is in it is the runtime's to judge. Blocks.

    Docker's own form is refused, not converted: a runtime would pass over its conditions and so allow more than
    the file says.

    Args:
        plugin: its name, for messages.
        path: of a regular file of at most 1 MiB.

    Raises:
        UnusableSettings: the file cannot be read or holds no profile of this form.
    """
    try:
        # not to wait for the other end of a FIFO
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            data = file.read(_MOST + 1) if regular else b""
    except OSError as exc:
        raise _unusable(plugin, path, exc.strerror or str(exc)) from exc
    if not regular:
        raise _unusable(plugin, path, "is not a regular file")
    if len(data) > _MOST:
        raise _unusable(plugin, path, "is larger than 1 MiB")
    try:
        profile = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise _unusable(plugin, path, f"is not a JSON object: {exc}") from exc
    if "archMap" in profile or any(key in rule for rule in _rules(profile) for key in _DOCKER_ONLY):
        raise _unusable(plugin, path, "is in Docker's format (archMap, includes, excludes)")
    if not isinstance(profile.get("defaultAction"), str):
        raise _unusable(plugin, path, "has no defaultAction")
    return profile


def _rules(profile: dict[str, Any]) -> list[dict[str, Any]]:
    rules = profile.get("syscalls")
    return [rule for rule in rules if isinstance(rule, dict)] if isinstance(rules, list) else []


def _unusable(plugin: str, path: Path, problem: str) -> UnusableSettings:
    hint = f"`pluginctl update {plugin} --seccomp FILE`, or '' for none; a FILE holds the object of linux.seccomp"
    return UnusableSettings(plugin, f"seccomp profile {path}: {problem}; use {hint} in the OCI runtime-spec")

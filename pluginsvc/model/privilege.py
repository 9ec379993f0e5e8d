"""Privileges: what a plugin's published config asks of the host (REF 3.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from pluginsvc.errors import InvalidParameter
from pluginsvc.model.plugin import PluginConfig

_NO_NETWORK = frozenset({"", "null", "bridge"})


class Privilege(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One thing the operator must consent to; the texts are Docker's and visible to people."""

    name: str
    description: str = ""
    value: list[str] | None = None


class IncorrectPrivileges(InvalidParameter):
    """What was granted is not exactly what the plugin asks for."""

    def __init__(self, granted: list[Privilege], required: list[Privilege]) -> None:
        self.granted, self.required = granted, required
        super().__init__("incorrect privileges")


def required_privileges(config: PluginConfig) -> list[Privilege]:
    """Return what ``config`` asks for, in the order Docker shows it; settings play no part."""
    found = []
    if config.network.type not in _NO_NETWORK:
        found.append(("network", "permissions to access a network", [config.network.type]))
    if config.ipc_host:
        found.append(("host ipc namespace", "allow access to host ipc namespace", ["true"]))
    if config.pid_host:
        found.append(("host pid namespace", "allow access to host pid namespace", ["true"]))
    found += [
        ("mount", "host path to mount", [mount.source]) for mount in config.mounts or () if mount.source is not None
    ]
    found += [
        ("device", "host device to access", [device.path])
        for device in config.linux.devices or ()
        if device.path is not None
    ]
    if config.linux.allow_all_devices:
        found.append(("allow-all-devices", "allow 'rwm' access to all devices", ["true"]))
    if config.linux.capabilities:
        found.append(("capabilities", "list of additional capabilities required", list(config.linux.capabilities)))
    return [Privilege(name=name, description=text, value=value) for name, text, value in found]


def check_privileges(granted: list[Privilege], required: list[Privilege]) -> None:
    """Compare as multisets of name and sorted values; descriptions do not count (REF 3.3, 7.29).

    Raises:
        IncorrectPrivileges: one is missing, one is too many, or a value differs.
    """
    if _multiset(granted) != _multiset(required):
        raise IncorrectPrivileges(granted, required)


def _multiset(privileges: Iterable[Privilege]) -> Counter[tuple[str, tuple[str, ...]]]:
    return Counter((privilege.name, tuple(sorted(privilege.value or ()))) for privilege in privileges)

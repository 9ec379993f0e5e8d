"""Leases on plugins for their volumes: one for each volume, and one for each mount of one (REF 3.13, 7.38)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol

from pluginsvc.directory.directory import Directory
from pluginsvc.directory.provider import Provider
from pluginsvc.directory.volumes import CAPABILITY
from pluginsvc.errors import Conflict, InvalidParameter
from pluginsvc.model.lease import PluginLease

HOLDER: Final = "volumes"
"""Holder of the leases."""

_LONGEST_NAME, _LONGEST_FOREIGN = 160, 4096
"""Characters of the name of a volume that is made here, and of one that its plugin has from elsewhere."""

_USER = re.compile(r"\S{1,64}")


class InvalidVolume(InvalidParameter):
    """A volume cannot have this name, or be used by somebody of this name."""


class VolumeMounted(Conflict):
    """A volume that somebody has mounted is removed by force only."""

    def __init__(self, plugin: str, name: str, users: Sequence[str]) -> None:
        self.plugin, self.name, self.users = plugin, name, users
        super().__init__(
            f"volume {name} of plugin {plugin} is mounted by {', '.join(users)}: unmount it, or use --force"
        )


class NotMounted(Conflict):
    """A volume is unmounted by somebody who has not mounted it."""

    def __init__(self, plugin: str, name: str, user: str, users: Sequence[str]) -> None:
        self.plugin, self.name, self.user, self.users = plugin, name, user, users
        others = f"{', '.join(users)} mounted it: use that ID" if users else "nobody has mounted it here"
        super().__init__(f"volume {name!r} of plugin {plugin} is not mounted by {user}: {others}")


class Leases(Protocol):
    """What is asked of the manager."""

    async def leases(self, name: str) -> Sequence[PluginLease]:
        """Return who uses a plugin."""
        ...


class VolumeLeases:
    """Takes and gives back the leases of volumes; on a legacy plugin, which others run, there are none.

    Args:
        directory: finds plugins.
        leases: knows who uses them.
    """

    def __init__(self, directory: Directory, leases: Leases) -> None:
        self._directory, self._leases = directory, leases

    async def acquire(self, plugin: str, purpose: str) -> tuple[Provider, int]:
        """Take a lease; return its plugin and how often it is held now."""
        provider, lease = await self._directory.acquire(plugin, CAPABILITY, holder=HOLDER, purpose=purpose)
        return provider, 1 if lease is None else lease.count

    async def release(self, provider: Provider, purpose: str, *, everything: bool = False) -> None:
        """Give back a lease, or all of a purpose."""
        if provider.plugin_id:
            await self._directory.release(provider.plugin_id, holder=HOLDER, purpose=purpose, everything=everything)

    async def _purposes(self, provider: Provider) -> list[str]:
        """Return what a plugin is held for; a legacy one never is."""
        leases = await self._leases.leases(provider.plugin_id) if provider.plugin_id else []
        return [lease.purpose for lease in leases if lease.holder == HOLDER]

    async def users(self, provider: Provider, name: str) -> list[str]:
        """Return who has mounted a volume."""
        # who mounts has no blanks in it, volumes may
        parts = [purpose.rpartition(" by ") for purpose in await self._purposes(provider)]
        return [user for mount, _, user in parts if mount == f"mount of {name}"]

    async def require_mounted(self, provider: Provider, name: str, user: str) -> None:
        """Raise ``NotMounted`` if somebody has not mounted a volume of a managed plugin."""
        users = await self.users(provider, name)
        if provider.plugin_id and user not in users:
            raise NotMounted(provider.name, name, user, users)

    async def forget(self, provider: Provider, name: str) -> None:
        """Give back the leases of a volume that is gone: its own, and those of mounts that were never undone."""
        for purpose in await self._purposes(provider):
            if purpose == f"volume {name}" or purpose.rpartition(" by ")[0] == f"mount of {name}":
                await self.release(provider, purpose, everything=True)


def check_name(name: str) -> None:
    """Check the name of a volume that is made or mounted: it is shown in errors, tables and leases.

    Raises:
        InvalidVolume: it is empty, too long, or could not be printed on a line.
    """
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable() or not name.strip():
        raise InvalidVolume(f"invalid volume name: it has to be 1 to {_LONGEST_NAME} printable characters")


def check_length(name: str) -> None:
    """Check the name of a volume that its plugin has, though check_name might not like it."""
    if not 0 < len(name) <= _LONGEST_FOREIGN:
        raise InvalidVolume(f"invalid volume name: it has to be 1 to {_LONGEST_FOREIGN} characters")


def mount_of(name: str, user: str) -> str:
    """Return the purpose of a lease for a mount."""
    if not _USER.fullmatch(user) or not user.isprintable():
        raise InvalidVolume("invalid ID of who mounts: it has to be 1 to 64 printable characters without blanks")
    return f"mount of {name} by {user}"

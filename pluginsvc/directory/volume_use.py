"""Volumes as operators use them: each, and each mount of one, is a lease on its plugin (REF 3.13, 7.38).

A plugin that is called may have done its work though nobody waits for it any more. So a change goes on without its
caller, and a lease is given back only when the plugin has said how it went. If the daemon ends before, it stays: a
volume that is used must not lose its plugin, and to remove the volume takes away what is left.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeVar

import anyio
import msgspec

from pluginsvc.directory.directory import Directory
from pluginsvc.directory.provider import PluginDisabled, Provider
from pluginsvc.directory.rpc import PluginFault, PluginRefused
from pluginsvc.directory.volumes import CAPABILITY, NoSuchVolume, Volume, VolumeDriver
from pluginsvc.errors import InvalidParameter, PluginsvcError
from pluginsvc.model.lease import PluginLease

HOLDER: Final = "volumes"
"""Holder of the leases."""

_LONGEST_NAME = 160
_USER = re.compile(r"\S{1,64}")
T = TypeVar("T")


class InvalidVolume(InvalidParameter):
    """A volume cannot have this name, or be used by somebody of this name."""


class VolumeView(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A volume and where it comes from.

    Attributes:
        name: whatever the plugin calls it.
        plugin: its name.
        scope: ``local`` or ``global``.
        mountpoint: on the host; empty while it has none.
        created_at: as the plugin says it.
        status: what else it says.
    """

    name: str
    plugin: str
    scope: str
    mountpoint: str
    created_at: str
    status: dict[str, Any] | None

    @classmethod
    def of(cls, provider: Provider, scope: str, volume: Volume) -> VolumeView:
        """Say whose volume it is."""
        return cls(plugin=provider.name, scope=scope, **msgspec.structs.asdict(volume))


class Failure(msgspec.Struct, frozen=True, rename="pascal"):
    """A plugin that did not list its volumes, and why."""

    plugin: str
    error: str


class Everything(msgspec.Struct, frozen=True, rename="pascal"):
    """The volumes of all plugins, but for those that failed."""

    volumes: list[VolumeView]
    failed: list[Failure]


class Owner(Protocol):
    """What is asked of the manager."""

    async def finish(self, name: str, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Run ``work`` by itself, one at a time for a key; once begun it goes on without its caller."""
        ...

    async def leases(self, name: str) -> Sequence[PluginLease]:
        """Return who uses a plugin."""
        ...


class Volumes:
    """Volumes of any plugin.

    A plugin is given by its name, its ID or a prefix of that. Every method raises what ``Directory.lookup`` raises, and
    ``PluginFault``.

    Args:
        directory: finds plugins.
        owner: owns the changes.
        patience: seconds that each plugin gets to list its volumes, where all are asked.
    """

    def __init__(self, directory: Directory, owner: Owner, *, patience: float = 10.0) -> None:
        self._directory, self._owner = directory, owner
        self._patience = patience

    async def all(self) -> Everything:
        """Return the volumes of all enabled plugins, those of one plugin by name."""
        asked = await self._directory.providers(CAPABILITY)
        found: dict[int, list[VolumeView]] = {}
        failed: dict[int, Failure] = {}

        async def ask(number: int, provider: Provider) -> None:
            try:
                with anyio.fail_after(self._patience):
                    found[number] = await _views(provider)
            except TimeoutError:
                text = f"no list of volumes within {self._patience:g} s: see `pluginctl logs {provider.name}`"
                failed[number] = Failure(provider.name, text)
            except PluginsvcError as exc:
                failed[number] = Failure(provider.name, str(exc))

        async with anyio.create_task_group() as group:
            for number, provider in enumerate(asked):
                group.start_soon(ask, number, provider)
        volumes = [view for number in sorted(found) for view in found[number]]
        return Everything(volumes, [failed[number] for number in sorted(failed)])

    async def of(self, plugin: str) -> list[VolumeView]:
        """Return the volumes of one plugin, by name."""
        return await _views(await self._directory.lookup(plugin, CAPABILITY))

    async def inspect(self, plugin: str, name: str) -> VolumeView:
        """Return one volume.

        Raises:
            NoSuchVolume: the plugin does not have it.
        """
        check_name(name)
        provider = await self._directory.lookup(plugin, CAPABILITY)
        driver = VolumeDriver(provider)
        volume = await driver.get(name)
        return VolumeView.of(provider, await driver.scope(), volume)

    async def create(self, plugin: str, name: str, options: Mapping[str, str]) -> str:
        """Make a volume, and hold its plugin for as long as there is the volume; return the plugin's name."""
        check_name(name)
        purpose = f"volume {name}"

        async def work(plugin: str) -> str:
            async with self._leased(plugin, purpose) as (provider, count):
                await VolumeDriver(provider).create(name, options)
            if count > 1:
                # it was there before, and is one volume still
                await self._release(provider, purpose)
            return provider.name

        return await self._change("create", plugin, name, work)

    async def remove(self, plugin: str, name: str) -> None:
        """Remove a volume, and all leases that were for it.

        Raises:
            NoSuchVolume: the plugin does not have it any more; the leases are gone now.
        """
        check_name(name)

        async def work(plugin: str) -> None:
            provider = await self._directory.lookup(plugin, CAPABILITY)
            driver = VolumeDriver(provider)
            try:
                await driver.remove(name)
            except PluginRefused as exc:
                if await _has(driver, name):
                    raise
                await self._forget(provider, name)
                raise NoSuchVolume(provider.name, name) from exc
            await self._forget(provider, name)

        await self._change("remove", plugin, name, work)

    async def mount(self, plugin: str, name: str, user: str) -> str:
        """Mount a volume, which has to be there, for somebody, and return where on the host it is."""
        purpose = _mount_of(name, user)

        async def work(plugin: str) -> str:
            async with self._leased(plugin, purpose) as (provider, _):
                return await VolumeDriver(provider).mount(name, user)

        return await self._change("mount", plugin, name, work)

    async def unmount(self, plugin: str, name: str, user: str) -> None:
        """Undo one mount; of a plugin that was disabled by force only the lease is left to be given back."""
        purpose = _mount_of(name, user)

        async def work(plugin: str) -> None:
            provider = await self._directory.lookup(plugin, CAPABILITY)
            await VolumeDriver(provider).unmount(name, user)
            await self._release(provider, purpose)

        try:
            await self._change("unmount", plugin, name, work)
        except PluginDisabled:
            # the host's side of the mount goes with the last lease
            await self._directory.release(plugin, holder=HOLDER, purpose=purpose)

    async def _change(self, verb: str, plugin: str, name: str, work: Callable[[str], Awaitable[T]]) -> T:
        """Do something to a volume, not at the same time as something else to it."""
        provider = await self._directory.lookup(plugin, CAPABILITY)
        found = provider.plugin_id or provider.name
        return await self._owner.finish(f"{verb} volume {name}", ("volume", found, name), lambda: work(found))

    @asynccontextmanager
    async def _leased(self, plugin: str, purpose: str) -> AsyncIterator[tuple[Provider, int]]:
        """Take a lease, give it back if the block fails, and give the block its plugin and how often it is held now."""
        provider, lease = await self._directory.acquire(plugin, CAPABILITY, holder=HOLDER, purpose=purpose)
        try:
            yield provider, 1 if lease is None else lease.count
        except Exception:
            await self._release(provider, purpose)
            raise

    async def _release(self, provider: Provider, purpose: str, *, everything: bool = False) -> None:
        if provider.plugin_id:
            await self._directory.release(provider.plugin_id, holder=HOLDER, purpose=purpose, everything=everything)

    async def _forget(self, provider: Provider, name: str) -> None:
        """Give back the leases of a volume that is gone: its own, and those of mounts that were never undone."""
        if not provider.plugin_id:
            return
        for lease in await self._owner.leases(provider.plugin_id):
            # who mounts has no blanks in it, volumes may
            if lease.purpose == f"volume {name}" or lease.purpose.rpartition(" by ")[0] == f"mount of {name}":
                await self._release(provider, lease.purpose, everything=True)


def check_name(name: str) -> None:
    """Check the name of a volume: it is shown in errors, tables and leases.

    Raises:
        InvalidVolume: it is empty, too long, or could not be printed on a line.
    """
    if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable() or not name.strip():
        raise InvalidVolume(f"invalid volume name: it has to be 1 to {_LONGEST_NAME} printable characters")


def _mount_of(name: str, user: str) -> str:
    """Return the purpose of a lease for a mount."""
    check_name(name)
    if not _USER.fullmatch(user) or not user.isprintable():
        raise InvalidVolume("invalid ID of who mounts: it has to be 1 to 64 printable characters without blanks")
    return f"mount of {name} by {user}"


async def _views(provider: Provider) -> list[VolumeView]:
    driver = VolumeDriver(provider)
    volumes = sorted(await driver.list(), key=lambda volume: volume.name)
    # asked once for all of them, and not where there are none
    scope = await driver.scope() if volumes else "local"
    return [VolumeView.of(provider, scope, volume) for volume in volumes]


async def _has(driver: VolumeDriver, name: str) -> bool:
    """Tell whether a plugin still has a volume; one that does not say has it."""
    try:
        return any(volume.name == name for volume in await driver.list())
    except PluginFault:
        return True

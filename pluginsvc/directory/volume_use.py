"""Volumes as operators use them: each, and each mount of one, is a lease on its plugin (REF 3.13, 7.38).

A plugin that is called may have done its work though nobody waits for it any more, or nobody understands its answer. So
a change goes on without its caller, and a lease is given back only when the plugin has refused or was never reached.
Otherwise, also if the daemon ends before, it stays: a volume that is used must not lose its plugin, and to remove the
volume takes away what is left.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, Protocol, TypeVar

import anyio
import msgspec

from pluginsvc.directory.directory import Directory
from pluginsvc.directory.provider import PluginDisabled, Provider
from pluginsvc.directory.rpc import PluginFault, PluginRefused, PluginUnreachable, PluginUntrusted
from pluginsvc.directory.volume_leases import (
    HOLDER,
    Leases,
    VolumeLeases,
    VolumeMounted,
    check_length,
    check_name,
    mount_of,
)
from pluginsvc.directory.volumes import (
    CAPABILITY,
    BadMountpoint,
    FileSystemHangs,
    NoSuchVolume,
    Volume,
    VolumeDriver,
)
from pluginsvc.errors import PluginsvcError, Unavailable

T = TypeVar("T")


class MayBeDone(PluginFault, Unavailable):
    """A plugin was asked to make or mount a volume, and nobody knows whether it has; it stays in use."""

    def __init__(self, fault: PluginFault, undo: str) -> None:
        text = f"{fault}: it may have been done all the same: `pluginctl volume {undo}` takes away what is left"
        super().__init__(text, plugin=fault.plugin, method=fault.method, reason=fault.reason)


class VolumeView(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A volume and where it comes from.

    Attributes:
        name: whatever the plugin calls it.
        plugin: its name.
        scope: ``local`` or ``global``.
        mountpoint: on the host; empty while it has none, in lists also if it is of no use.
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


class Owner(Leases, Protocol):
    """What is asked of the manager."""

    async def finish(self, name: str, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Run ``work`` by itself, one at a time for a key; once begun it goes on without its caller."""
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
        self._leases = VolumeLeases(directory, owner)
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
        check_length(name)
        provider = await self._directory.lookup(plugin, CAPABILITY)
        driver = VolumeDriver(provider)
        volume = await driver.get(name)
        return VolumeView.of(provider, await driver.scope(), volume)

    async def create(self, plugin: str, name: str, options: Mapping[str, str]) -> str:
        """Make a volume, and hold its plugin for as long as there is the volume; return the plugin's name."""
        check_name(name)
        purpose = f"volume {name}"

        async def work(plugin: str) -> str:
            provider, count = await self._leases.acquire(plugin, purpose)
            try:
                await VolumeDriver(provider).create(name, options)
            except PluginFault as exc:
                if _may_be_done(exc) and count == 1:
                    raise MayBeDone(exc, f"rm {_words(provider, name)}") from exc
                await self._leases.release(provider, purpose)
                raise
            if count > 1:
                # it was there before, and is one volume still
                await self._leases.release(provider, purpose)
            return provider.name

        return await self._change("create", plugin, name, work)

    async def remove(self, plugin: str, name: str, *, force: bool = False) -> None:
        """Remove a volume, and all leases that were for it.

        Args:
            plugin: has it.
            name: whatever the plugin calls it.
            force: also if it is mounted.

        Raises:
            VolumeMounted: somebody has mounted it.
            NoSuchVolume: the plugin does not have it any more; the leases are gone now.
        """
        check_length(name)

        async def work(plugin: str) -> None:
            provider = await self._directory.lookup(plugin, CAPABILITY)
            if not force and (users := await self._leases.users(provider, name)):
                raise VolumeMounted(provider.name, name, users)
            driver = VolumeDriver(provider)
            try:
                await driver.remove(name)
            except PluginRefused as exc:
                if await _has(driver, name):
                    raise
                await self._leases.forget(provider, name)
                raise NoSuchVolume(provider.name, name) from exc
            await self._leases.forget(provider, name)

        await self._change("remove", plugin, name, work)

    async def mount(self, plugin: str, name: str, user: str) -> str:
        """Mount a volume, which has to be there, for somebody, and return where on the host it is."""
        check_name(name)
        purpose = mount_of(name, user)

        async def work(plugin: str) -> str:
            provider, _ = await self._leases.acquire(plugin, purpose)
            driver = VolumeDriver(provider)
            undo = f"unmount {_words(provider, name, user)}"
            try:
                return await driver.mount(name, user)
            except (BadMountpoint, FileSystemHangs) as exc:
                try:
                    await driver.unmount(name, user)
                except PluginFault:
                    raise MayBeDone(exc, undo) from exc
                await self._leases.release(provider, purpose)
                raise
            except PluginFault as exc:
                if _may_be_done(exc):
                    raise MayBeDone(exc, undo) from exc
                await self._leases.release(provider, purpose)
                raise

        return await self._change("mount", plugin, name, work)

    async def unmount(self, plugin: str, name: str, user: str) -> None:
        """Undo one mount; of a plugin that was disabled by force only the lease is left to be given back.

        Raises:
            NotMounted: the plugin is managed, and was not called by ``mount`` for this volume and user.
        """
        check_length(name)
        purpose = mount_of(name, user)

        async def work(plugin: str) -> None:
            provider = await self._directory.lookup(plugin, CAPABILITY)
            await self._leases.require_mounted(provider, name, user)
            try:
                await VolumeDriver(provider).unmount(name, user)
            except PluginRefused as exc:
                if not provider.plugin_id:
                    raise
                end = shlex.join(["pluginctl", "release", provider.name, "--holder", HOLDER, "--purpose", purpose])
                text = f"{exc.reason}: if it is not mounted any more, say so with `{end}`"
                raise PluginRefused(
                    plugin=exc.plugin, method=exc.method, reason=text, http_status=exc.http_status
                ) from exc
            await self._leases.release(provider, purpose)

        try:
            await self._change("unmount", plugin, name, work)
        except PluginDisabled:
            # the host's side of the mount goes with the last lease
            provider = await self._directory.find(plugin)
            await self._leases.require_mounted(provider, name, user)
            await self._leases.release(provider, purpose)

    async def _change(self, verb: str, plugin: str, name: str, work: Callable[[str], Awaitable[T]]) -> T:
        """Do something to a volume, not at the same time as something else to it."""
        provider = await self._directory.lookup(plugin, CAPABILITY)
        found = provider.plugin_id or provider.name
        return await self._owner.finish(f"{verb} volume {name}", ("volume", found, name), lambda: work(found))


def _may_be_done(fault: PluginFault) -> bool:
    """Tell whether a plugin may have done what it was asked to, though the call failed."""
    if isinstance(fault, PluginUnreachable):
        return fault.sent
    return not isinstance(fault, PluginRefused | PluginUntrusted)


def _words(provider: Provider, name: str, user: str | None = None) -> str:
    """Return what follows a command about a volume."""
    words = ["-d", provider.name, *([] if user is None else ["--id", user])]
    return shlex.join([*words, *(["--"] if name.startswith("-") else []), name])


async def _views(provider: Provider) -> list[VolumeView]:
    driver = VolumeDriver(provider)
    volumes = sorted(await driver.list(), key=lambda volume: volume.name)
    # asked once for all of them, and not where there are none
    scope = await driver.scope() if volumes else "local"
    return [VolumeView.of(provider, scope, volume) for volume in volumes]


async def _has(driver: VolumeDriver, name: str) -> bool:
    """Tell whether a plugin still has a volume; one that does not say has it."""
    try:
        return name in await driver.names()
    except PluginFault:
        return True

"""Volume plugins, called with types: ``VolumeDriver.*`` (REF 3.13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from pluginsvc.directory import mountpoints
from pluginsvc.directory.mountpoints import Hangs, Place
from pluginsvc.directory.provider import Provider
from pluginsvc.directory.rpc import BadAnswer, PluginFault, PluginRefused, printable
from pluginsvc.errors import Internal, NotFound, Unavailable

CAPABILITY: Final = "volumedriver/1.0"

_LONG, _SHORT = 120.0, 60.0
"""Seconds for Create and Mount, and for the rest."""


class NoSuchVolume(NotFound):
    """A plugin does not have the volume."""

    def __init__(self, plugin: str, name: str) -> None:
        self.plugin, self.name = plugin, name
        super().__init__(f"no such volume {name!r} of plugin {plugin}: create it, or look for it with `volume ls`")


class BadMountpoint(PluginFault, Internal):
    """A plugin has answered, and nobody can use the path that it says."""

    def __init__(self, *, plugin: str, method: str, reason: str) -> None:
        text = f"{method}: the Mountpoint of plugin {plugin} is of no use: {reason}"
        super().__init__(text, plugin=plugin, method=method, reason=reason)


class FileSystemHangs(PluginFault, Unavailable):
    """What a plugin has mounted does not answer, so that its Mountpoint cannot be looked at."""

    def __init__(self, *, plugin: str, method: str, reason: str) -> None:
        text = f"{method}: {reason}: see `pluginctl logs {plugin}`, or unmount it with `umount -l`"
        super().__init__(text, plugin=plugin, method=method, reason=reason)


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as its plugin describes it.

    Attributes:
        name: whatever the plugin calls it; may be any text.
        mountpoint: on the host; empty while it has none, in lists also if it is of no use.
        created_at: as the plugin says it, empty if it does not.
        status: what else it says.
    """

    name: str
    mountpoint: str
    created_at: str
    status: dict[str, Any] | None


# Keys of answers are read in any case, as Go does; null is as good as nothing there.


class _Answer(msgspec.Struct, frozen=True):
    err: str | None = None


class _Mounted(msgspec.Struct, frozen=True):
    mountpoint: str | None = None


class _Found(msgspec.Struct, frozen=True):
    volume: dict[str, Any] | None = None


class _Listed(msgspec.Struct, frozen=True):
    volumes: list[dict[str, Any]] | None = None


class _Able(msgspec.Struct, frozen=True):
    capabilities: dict[str, Any] | None = None


class _Scoped(msgspec.Struct, frozen=True):
    scope: str | None = None


class _Named(msgspec.Struct, frozen=True):
    name: str | None = None


class _Volume(msgspec.Struct, frozen=True):
    name: str | None = None
    mountpoint: str | None = None
    createdat: str | None = None
    status: dict[str, Any] | None = None


T = TypeVar("T")


class VolumeDriver:
    """Calls one volume plugin.

    Every method raises ``PluginFault``: with the plugin's own text if it says ``Err``, ``BadAnswer`` for an answer that
    is not what it has to be. Paths in answers are the host's, and not outside of a managed plugin's own directories and
    of what its operator has bound into it: ``BadMountpoint``, or ``FileSystemHangs``.

    Args:
        provider: provides ``CAPABILITY``.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def create(self, name: str, options: Mapping[str, str]) -> None:
        """Make a volume; to many plugins one that there is already is fine."""
        await self._call("Create", _LONG, {"Name": name, "Opts": options}, _Answer)

    async def remove(self, name: str) -> None:
        """Remove a volume with what is in it."""
        await self._call("Remove", _SHORT, {"Name": name}, _Answer)

    async def mount(self, name: str, user: str) -> str:
        """Make a volume usable; return its mountpoint, of a managed plugin a directory that there is.

        Args:
            name: of the volume.
            user: who wants it, as ``unmount`` will say it again.

        Raises:
            BadMountpoint, FileSystemHangs: it is mounted, and of no use.
        """
        found = await self._call("Mount", _LONG, {"Name": name, "ID": user}, _Mounted)
        if not found.mountpoint:
            raise self._useless("Mount", "there is none")
        return await self._place("Mount", found.mountpoint, directory=True)

    async def path(self, name: str) -> str:
        """Return the mountpoint of a volume, empty while it has none."""
        found = await self._call("Path", _SHORT, {"Name": name}, _Mounted)
        return await self._place("Path", found.mountpoint or "")

    async def unmount(self, name: str, user: str) -> None:
        """Say that somebody does not use a volume any more."""
        await self._call("Unmount", _SHORT, {"Name": name, "ID": user}, _Answer)

    async def get(self, name: str) -> Volume:
        """Return a volume.

        Raises:
            NoSuchVolume: the plugin answers with none; most refuse with a text of their own.
        """
        found = await self._call("Get", _SHORT, {"Name": name}, _Found)
        if not found.volume:
            raise NoSuchVolume(self._provider.name, name)
        # under the name that was asked for: that is how it is found again
        volume = self._read("Get", found.volume | {"Name": name}, _Volume)
        return _as_volume(volume, await self._place("Get", volume.mountpoint or ""))

    async def list(self) -> Sequence[Volume]:
        """Return all volumes, in the plugin's order."""
        found = await self._call("List", _SHORT, {}, _Listed)
        volumes = [self._read("List", document, _Volume) for document in found.volumes or []]
        try:
            places = await self._places([volume.mountpoint or "" for volume in volumes])
        except Hangs:
            places = [Place()] * len(volumes)
        return [_as_volume(volume, place.path) for volume, place in zip(volumes, places, strict=True)]

    async def names(self) -> Sequence[str]:
        """Return the names of all volumes, wherever they are mounted."""
        found = await self._call("List", _SHORT, {}, _Listed)
        return [self._read("List", document, _Named).name or "" for document in found.volumes or []]

    async def scope(self) -> str:
        """Return ``global`` if the plugin's volumes are the same on all hosts, else ``local``.

        A plugin need not know this call; any other refusal is an error.
        """
        try:
            found = await self._call("Capabilities", _SHORT, {}, _Able)
        except PluginRefused as exc:
            if exc.http_status != 404:
                raise
            return "local"
        able = self._read("Capabilities", found.capabilities or {}, _Scoped)
        return "global" if (able.scope or "").lower() == "global" else "local"

    async def _call(self, call: str, seconds: float, argument: Mapping[str, Any], kind: type[T]) -> T:
        method = f"VolumeDriver.{call}"
        document = await self._provider.call(method, argument, timeout=seconds)
        if error := self._read(call, document, _Answer).err:
            reason = printable(error) or "an error without a word"
            raise PluginRefused(plugin=self._provider.name, method=method, reason=reason, http_status=200)
        return self._read(call, document, kind)

    def _read(self, call: str, document: dict[str, Any], kind: type[T]) -> T:
        try:
            return msgspec.convert({key.lower(): value for key, value in document.items()}, kind)
        except msgspec.ValidationError as exc:
            raise self._bad(call, str(exc)) from exc

    async def _place(self, call: str, path: str, *, directory: bool = False) -> str:
        """Return where a path is on the host, an empty one as it is."""
        try:
            (place,) = await self._places([path])
        except Hangs as exc:
            reason = f"the file system at or above {exc.path} does not answer"
            raise FileSystemHangs(plugin=self._provider.name, method=f"VolumeDriver.{call}", reason=reason) from exc
        if place.trouble:
            raise self._useless(call, place.trouble)
        if directory and not place.directory:
            text = f"{place.path} is no directory on the host: what the plugin mounts there is seen by others only in"
            raise self._useless(call, f"{text} its propagatedMount, or in a mount of type bind with the option rshared")
        return place.path

    async def _places(self, paths: Sequence[str]) -> Sequence[Place]:
        scope = self._provider.scope
        if scope is None or not any(paths):
            return [Place(path, directory=True) for path in paths]
        return await mountpoints.look(scope, paths)

    def _bad(self, call: str, reason: str) -> BadAnswer:
        return BadAnswer(plugin=self._provider.name, method=f"VolumeDriver.{call}", reason=reason)

    def _useless(self, call: str, reason: str) -> BadMountpoint:
        return BadMountpoint(plugin=self._provider.name, method=f"VolumeDriver.{call}", reason=reason)


def _as_volume(found: _Volume, mountpoint: str) -> Volume:
    return Volume(name=found.name or "", mountpoint=mountpoint, created_at=found.createdat or "", status=found.status)

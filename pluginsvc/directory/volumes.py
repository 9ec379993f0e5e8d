"""Volume plugins, called with types: ``VolumeDriver.*`` (REF 3.13)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import msgspec
from anyio import to_thread

from pluginsvc.directory.provider import Provider, Scope
from pluginsvc.directory.rpc import BadAnswer, PluginRefused, printable
from pluginsvc.errors import NotFound

CAPABILITY: Final = "volumedriver/1.0"

_LONG, _SHORT = 120.0, 60.0
"""Seconds for Create and Mount, and for the rest."""

_LOOK = 10.0
"""Seconds to see where mountpoints lead; the file system that a plugin has mounted on the way may hang."""


class NoSuchVolume(NotFound):
    """A plugin does not have the volume."""

    def __init__(self, plugin: str, name: str) -> None:
        self.plugin, self.name = plugin, name
        super().__init__(f"no such volume {name!r} of plugin {plugin}: create it, or look for it with `volume ls`")


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as its plugin describes it.

    Attributes:
        name: whatever the plugin calls it; may be any text.
        mountpoint: on the host; empty while it has none.
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


class _Volume(msgspec.Struct, frozen=True):
    name: str | None = None
    mountpoint: str | None = None
    createdat: str | None = None
    status: dict[str, Any] | None = None


T = TypeVar("T")


class VolumeDriver:
    """Calls one volume plugin.

    Every method raises ``PluginFault``: with the plugin's own text if it says ``Err``, ``BadAnswer`` for an answer that
    is not what it has to be. Paths in answers are the host's, and not outside of a managed plugin's own directories.

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
        """Make a volume usable; return its mountpoint.

        Args:
            name: of the volume.
            user: who wants it, as ``unmount`` will say it again.
        """
        found = await self._call("Mount", _LONG, {"Name": name, "ID": user}, _Mounted)
        if not found.mountpoint:
            raise self._bad("Mount", "it has no Mountpoint")
        return (await self._hosts("Mount", [found.mountpoint]))[0]

    async def path(self, name: str) -> str:
        """Return the mountpoint of a volume, empty while it has none."""
        found = await self._call("Path", _SHORT, {"Name": name}, _Mounted)
        return (await self._hosts("Path", [found.mountpoint or ""]))[0]

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
        return (await self._volumes("Get", [found.volume | {"Name": name}]))[0]

    async def list(self) -> Sequence[Volume]:
        """Return all volumes, in the plugin's order."""
        found = await self._call("List", _SHORT, {}, _Listed)
        return await self._volumes("List", found.volumes or [])

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

    async def _volumes(self, call: str, documents: Sequence[dict[str, Any]]) -> Sequence[Volume]:
        found = [self._read(call, document, _Volume) for document in documents]
        mountpoints = await self._hosts(call, [each.mountpoint or "" for each in found])
        return [
            Volume(name=each.name or "", mountpoint=path, created_at=each.createdat or "", status=each.status)
            for each, path in zip(found, mountpoints, strict=True)
        ]

    async def _hosts(self, call: str, paths: Sequence[str]) -> Sequence[str]:
        """Return where paths are on the host, empty ones as they are."""
        scope = self._provider.scope
        if scope is None or not any(paths):
            return paths
        try:
            with anyio.fail_after(_LOOK):
                return await to_thread.run_sync(_inside, scope, paths, abandon_on_cancel=True)
        except TimeoutError as exc:
            raise self._bad(call, "the file system at its Mountpoint does not answer") from exc
        except OSError as exc:
            raise self._bad(call, f"its Mountpoint cannot be looked at: {exc.strerror}") from exc
        except ValueError as exc:
            raise self._bad(call, str(exc)) from exc

    def _bad(self, call: str, reason: str) -> BadAnswer:
        return BadAnswer(plugin=self._provider.name, method=f"VolumeDriver.{call}", reason=reason)


def _inside(scope: Scope, paths: Sequence[str]) -> Sequence[str]:
    """Return the host's names of a plugin's paths. Blocks.

    Raises:
        ValueError: one of them leads elsewhere by symbolic links, which the plugin can put as it likes.
        OSError: one of them cannot be followed.
    """
    bases = [_real(scope.rootfs), _real(scope.propagated)]
    found = []
    for path in paths:
        place = scope.host(path) if path else None
        if place is not None and not any(_real(place).is_relative_to(base) for base in bases):
            raise ValueError(f"its Mountpoint {path[:200]!r} leads out of the plugin")
        found.append("" if place is None else str(place))
    return found


def _real(path: Path) -> Path:
    """Return a path without symbolic links; what is mounted there is not asked, unlike by ``realpath``."""
    try:
        node = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return Path(os.path.realpath(path))
    try:
        return Path(f"/proc/self/fd/{node}").readlink()
    finally:
        os.close(node)

"""A plugin as its users see it: what it provides, where it is called, and where on the host its paths are."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluginsvc.directory.rpc import Client
from pluginsvc.errors import Conflict, InvalidParameter
from pluginsvc.model.plugin import Capability


class PluginDisabled(Conflict):
    """A plugin that is not wished for cannot be used; the text is Docker's."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"plugin {name} found but disabled")


class NoCapability(InvalidParameter):
    """The plugin does something else than what it is wanted for; the text is Docker's."""

    def __init__(self, name: str, capability: str) -> None:
        self.name, self.capability = name, capability
        super().__init__(f'plugin does not provide "{capability.lower()}" capability')


@dataclass(frozen=True, slots=True)
class Scope:
    """Where the host has what a managed plugin calls by a path of its own (REF 3.10).

    Attributes:
        rootfs: the plugin's ``/``.
        mount: its propagated mount, as it calls it; empty: it has none.
        propagated: the same, as the host calls it.
        binds: what its operator has given it of the host, by the plugin's name of it; later ones cover earlier ones.
    """

    rootfs: Path
    mount: str
    propagated: Path
    binds: tuple[tuple[str, Path], ...] = ()

    def host(self, path: str) -> Path:
        """Return the host's name of a path of the plugin's: by whole components (REF 7.46), and never outside of it.

        What its operator has bound into it counts as its own; of mounts in one another the inner one is meant.
        Symbolic links are the plugin's own and may lead anywhere; who follows them looks where they lead.
        """
        clean = _normal(path)
        found, rest, longest = self.rootfs, clean, 0
        mounts = ((self.mount, self.propagated), *self.binds) if self.mount else self.binds
        for inside, outside in mounts:
            mount = _normal(inside)
            if len(mount) >= longest and (clean == mount or clean.startswith(f"{mount.rstrip('/')}/")):
                found, rest, longest = outside, clean[len(mount) :], len(mount)
        return found / rest.lstrip("/")


def _normal(path: str) -> str:
    # two slashes at the beginning are kept by normpath
    return posixpath.normpath(f"/{path.lstrip('/')}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A plugin, managed or legacy.

    Attributes:
        name: familiar local name with tag; of a legacy plugin its only name.
        plugin_id: 64 hex digits; empty for a legacy plugin.
        capabilities: what it provides; a legacy ``VolumeDriver`` is ``docker.volumedriver/1.0``.
        address: where it is called.
        enabled: whether it is wished to run; a legacy plugin always is.
        state: what it does, see ``model.lifecycle``; ``legacy`` for one that we do not run.
        up: whether it listens, as far as is known.
        run: tells its starts apart, also over those of the daemon; empty while it is not up.
        client: calls it.
        timeout: seconds for calls to it, as its operator wants it; 0: nothing is wanted.
        scope: translates its paths; ``None``: they are the host's.
    """

    name: str
    plugin_id: str
    capabilities: tuple[Capability, ...]
    address: str
    enabled: bool
    state: str
    up: bool
    run: str
    client: Client
    timeout: float = 0.0
    scope: Scope | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Return what is the same for one plugin over all its starts."""
        return self.plugin_id, "" if self.plugin_id else self.name

    def provides(self, wanted: Capability) -> bool:
        """Tell whether it has a capability; see ``Capability.fits`` for versions."""
        return any(found.fits(wanted) for found in self.capabilities)

    async def call(self, method: str, argument: object = None, *, timeout: float) -> dict[str, Any]:
        """Call it; see ``Client.call``.

        Args:
            method: ``Service.Method``.
            argument: sent as JSON.
            timeout: most seconds for each try; fewer where its operator wants that.
        """
        return await self.client.call(method, argument, timeout=min(filter(None, (timeout, self.timeout))))


def among(providers: Iterable[Provider], wanted: Capability | None) -> list[Provider]:
    """Return those that have a capability, or all."""
    return [provider for provider in providers if wanted is None or provider.provides(wanted)]

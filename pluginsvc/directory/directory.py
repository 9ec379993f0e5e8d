"""Who provides what: plugins by name and capability, managed ones first (REF 3.13)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Literal, NamedTuple, Protocol, Self

import anyio

from pluginsvc.directory.legacy import Legacy
from pluginsvc.directory.provider import NoCapability, PluginDisabled, Provider, among
from pluginsvc.errors import NotFound
from pluginsvc.model.lease import PluginLease
from pluginsvc.model.plugin import Capability


class Managed(Protocol):
    """The plugins that this daemon runs."""

    def provider(self, name: str) -> Provider:
        """Return one by name, ID or prefix of an ID.

        Raises:
            NotFound: there is none.
            InvalidParameter: there are several.
        """
        ...

    def providers(self) -> Iterable[Provider]:
        """Return all, by name."""
        ...

    async def acquire(
        self, name: str, *, holder: str, purpose: str, seconds: float | None, capability: str
    ) -> PluginLease:
        """Take a lease on one that is enabled."""
        ...

    async def release(self, name: str, *, holder: str, purpose: str | None, everything: bool) -> int:
        """Give leases back, whatever its state; return how many are left."""
        ...


class Change(NamedTuple):
    """A plugin can be called from now on, or cannot any more.

    Attributes:
        kind: which of the two.
        provider: as it is, or was.
    """

    kind: Literal["ready", "gone"]
    provider: Provider


Ready = Mapping[tuple[str, str], Provider]
"""Plugins that are up, by their keys."""


class _Seen(NamedTuple):
    """What a look has found, for all who follow.

    Attributes:
        until: is set when something has changed since the look began.
        up: who listens.
        ready: those of them that provide something, where somebody asked.
    """

    until: anyio.Event
    up: list[Provider]
    ready: dict[Capability, Ready]

    def of(self, wanted: Capability) -> tuple[anyio.Event, Ready]:
        if wanted not in self.ready:
            self.ready[wanted] = {provider.key: provider for provider in among(self.up, wanted)}
        return self.until, self.ready[wanted]


class Directory:
    """Finds plugins.

    A managed plugin hides the legacy one of its name, also when it is disabled; a socket that we published is no legacy
    plugin.

    Args:
        managed: the plugins of this daemon.
        watch: has a function called whenever one of those has come up or gone down.
        legacy: those that others run.

    Attributes:
        next: is set at the next change, and then another.
    """

    def __init__(self, managed: Managed, watch: Callable[[Callable[[], None]], None], legacy: Legacy) -> None:
        self._managed, self._legacy = managed, legacy
        self.next = anyio.Event()
        self._seen: _Seen | None = None
        self._looking = anyio.Lock()
        watch(self._notice)
        legacy.watch(self._notice)

    def _notice(self) -> None:
        self.next.set()
        self.next = anyio.Event()

    async def lookup(self, name: str, capability: str) -> Provider:
        """Return the plugin of a name, which need not be up: it may be starting again.

        Args:
            name: name, ID or prefix of one.
            capability: what it has to provide, see ``Capability.wanted``.

        Raises:
            NotFound: nobody has that name.
            PluginDisabled: found, and not enabled; a legacy plugin of that name is not looked for.
            NoCapability: found, but it does something else.
            InvalidCapability: nobody can provide that.
            BadPluginFile: a file does not say where the legacy plugin is.
            PluginFault: a legacy plugin does not say what it provides.
        """
        wanted = Capability.wanted(capability)
        found = await self.find(name)
        if not found.enabled:
            raise PluginDisabled(found.name)
        if not found.provides(wanted):
            raise NoCapability(found.name, capability)
        return found

    async def find(self, name: str, *, wait: bool = False, legacy: bool = False) -> Provider:
        """Return the plugin of a name, whatever it provides, enabled or not; see ``lookup``.

        Args:
            name: name, ID or prefix of one.
            wait: whether a legacy plugin that is not there yet is waited for, see ``Legacy.get``.
            legacy: look only among those that others run.
        """
        if not legacy:
            with suppress(NotFound):
                return self._managed.provider(name)
        return await self._legacy.get(name, wait=wait)

    async def acquire(
        self, name: str, capability: str, *, holder: str, purpose: str, seconds: float | None = None
    ) -> tuple[Provider, PluginLease | None]:
        """Look a plugin up and take a lease on it; on a legacy one, which others run, there are none."""
        found = await self.lookup(name, capability)
        if not found.plugin_id:
            return found, None
        lease = await self._managed.acquire(
            found.plugin_id, holder=holder, purpose=purpose, seconds=seconds, capability=capability
        )
        return found, lease

    async def release(self, name: str, *, holder: str, purpose: str | None = None, everything: bool = False) -> int:
        """Give back a lease, or all of a holder; return how many are left.

        This works whatever the plugin does or provides (REF 7.38), and for a name that is none of ours.
        """
        try:
            found = self._managed.provider(name)
        except NotFound:
            return 0
        return await self._managed.release(found.plugin_id, holder=holder, purpose=purpose, everything=everything)

    async def providers(self, capability: str = "", *, legacy: bool = True) -> list[Provider]:
        """Return the enabled plugins that provide something, the managed ones first, each by name.

        Args:
            capability: see ``Capability.wanted``; empty: whatever it is.
            legacy: whether to ask those that others run; the ones that do not answer are left out.
        """
        wanted = Capability.wanted(capability) if capability else None
        managed = list(self._managed.providers())
        found = [provider for provider in managed if provider.enabled]
        if legacy:
            hidden = {provider.name for provider in managed}
            hidden |= {name.removesuffix(":latest") for name in hidden}
            found += [provider for provider in await self._legacy.all() if provider.name not in hidden]
        return among(found, wanted)

    async def seen(self, capability: str, *, anew: bool) -> tuple[anyio.Event, Ready]:
        """Return those that are up and provide something; of all who ask between two changes only the first looks.

        Args:
            capability: a valid one, see ``Capability.wanted``.
            anew: look all the same: of some changes we hear a moment after they happened.

        Returns:
            What is set when that may not be so any more, and the plugins.
        """
        wanted = Capability.wanted(capability)
        if anew:
            return (await self._look()).of(wanted)
        # who is cancelled while he looks leaves it to the next
        async with self._looking:
            if self._seen is None or self._seen.until is not self.next:
                self._seen = await self._look()
            return self._seen.of(wanted)

    async def _look(self) -> _Seen:
        # before looking: what happens meanwhile is looked at again
        until = self.next
        return _Seen(until, [provider for provider in await self.providers() if provider.up], {})

    def follow(self, capability: str) -> Following:
        """Return an iterator over the plugins that become ready with a capability, at every start and restart, and go.

        Raises:
            InvalidCapability: nobody can provide that.
        """
        Capability.wanted(capability)
        return Following(self, capability)


class Following:
    """Iterates over what has changed, for one task at a time; a wait that is cancelled loses nothing.

    The first list is who is ready, and may be empty; each later one is what is different since the one before, and is
    not: of several restarts meanwhile, one.

    Args:
        directory: who knows.
        capability: a valid one, see ``Capability.wanted``.
    """

    def __init__(self, directory: Directory, capability: str) -> None:
        self._directory, self._capability = directory, capability
        self._known: Ready = {}
        self._next: anyio.Event | None = None

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> list[Change]:
        """Return the next list, those that go first."""
        while True:
            if self._next is not None:
                await self._next.wait()
            first = self._next is None
            until, found = await self._directory.seen(self._capability, anew=first)
            # from here on nothing waits: who is cancelled has missed nothing
            self._next = until
            before, self._known = self._known, found
            gone = [Change("gone", one) for key, one in before.items() if not _lives_on(one, self._known.get(key))]
            ready = [Change("ready", one) for key, one in self._known.items() if not _lives_on(one, before.get(key))]
            if first or gone or ready:
                return gone + ready


def _lives_on(one: Provider, other: Provider | None) -> bool:
    """Tell whether a plugin is still what its users were told of."""
    if one is other:
        return True
    if other is None:
        return False
    return (one.run, one.address, one.capabilities) == (other.run, other.address, other.capabilities)

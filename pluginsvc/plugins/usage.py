"""Who uses a plugin: leases on it, taken and given back by name (REF 3.13, 7.38)."""

from __future__ import annotations

import sqlite3
import time

from pluginsvc.directory.provider import NoCapability, PluginDisabled
from pluginsvc.directory.volume_leases import HOLDER
from pluginsvc.errors import Conflict
from pluginsvc.model.lease import PluginLease, holders
from pluginsvc.model.plugin import Capability
from pluginsvc.plugins.inventory import Entry
from pluginsvc.plugins.parts import Parts
from pluginsvc.state import plugin_leases, plugins


class PluginInUse(Conflict):
    """Somebody has leases on the plugin; clients look for how the text begins (REF 3.6, 3.9).

    Attributes:
        name: the plugin.
        leases: those that count.
    """

    def __init__(self, name: str, leases: list[PluginLease]) -> None:
        self.name, self.leases = name, leases
        how = " (see `pluginctl volume`)" if any(lease.holder == HOLDER for lease in leases) else ""
        super().__init__(f"plugin {name} is in use by {holders(leases)}: release it there{how}, or use force")


async def acquire(
    parts: Parts, entry: Entry, *, holder: str, purpose: str, seconds: float | None = None, capability: str = ""
) -> PluginLease:
    """Take a lease on an enabled plugin, or count one more on the same.

    Args:
        parts: the rooms below.
        entry: the plugin; the caller holds its lock, or a disable under way would not see the lease.
        holder: who uses it.
        purpose: what for.
        seconds: until the lease ends by itself; ``None``: never.
        capability: what it has to provide, see ``Capability.wanted``; empty: does not matter.

    Raises:
        PluginDisabled: it is not enabled.
        InvalidCapability, NoCapability: it does not provide that.
        InvalidLease, TooManyLeases: see ``plugin_leases.acquire``.
    """
    record = entry.record
    wanted = Capability.wanted(capability) if capability else None
    provides = wanted is None or any(found.fits(wanted) for found in entry.config.interface.capabilities)
    now = time.time_ns()
    expires = None if seconds is None else now + int(seconds * 1e9)

    def work(db: sqlite3.Connection) -> PluginLease:
        if not plugins.enabled(db, record.id):
            raise PluginDisabled(record.name)
        if not provides:
            raise NoCapability(record.name, capability)
        return plugin_leases.acquire(db, record.id, holder, purpose, now_ns=now, expires_ns=expires)

    return await parts.database.write(work)


async def release(
    parts: Parts, plugin_id: str, *, holder: str, purpose: str | None = None, everything: bool = False
) -> int:
    """Give back a lease, or all of them, whether the plugin is enabled or not; see ``plugin_leases.release``.

    What is mounted for the holders of a plugin that was disabled goes with the last of its leases.
    """
    left = await parts.database.write(
        lambda db: plugin_leases.release(db, plugin_id, holder, purpose, everything=everything)
    )
    parts.mounts.wake()
    return left


async def leases(parts: Parts, plugin_id: str) -> list[PluginLease]:
    """Return the leases on a plugin that are not over, the oldest first."""
    return await parts.database.read(lambda db: plugin_leases.held(db, plugin_id, time.time_ns()))


async def require_unused(parts: Parts, entry: Entry) -> None:
    """Raise ``PluginInUse`` if there are leases on the plugin."""
    if found := await leases(parts, entry.record.id):
        raise PluginInUse(entry.record.name, found)

"""All that there is to see of plugins: nothing here changes anything, or waits for an operation."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator
from typing import NamedTuple, cast

from pluginsvc.directory.provider import Provider
from pluginsvc.errors import Conflict
from pluginsvc.model.lease import PluginLease
from pluginsvc.model.lifecycle import UP, State
from pluginsvc.model.output import Form, Top, Wanted
from pluginsvc.model.plugin import PluginRecord
from pluginsvc.plugins import usage
from pluginsvc.plugins.describe import Description, MountView, Snapshot, Summary
from pluginsvc.plugins.inventory import Entry, PluginNotFound
from pluginsvc.plugins.parts import Parts
from pluginsvc.plugins.providers import provider
from pluginsvc.plugins.supervise import Supervisor
from pluginsvc.runtime.executor import Instance
from pluginsvc.runtime.processes import TITLES
from pluginsvc.state import journal, plugins

_LAST_LINES = 20


class NotRunning(Conflict):
    """Only what runs has processes."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"plugin {name} is not running")


class _Basis(NamedTuple):
    """All that a ``Provider`` is made of, and that changes."""

    entry: Entry
    instance: Instance | None
    state: State

    def same(self, other: _Basis) -> bool:
        # an entry is replaced whole; to compare two by their content would cost more than what is saved
        return self.entry is other.entry and self.instance is other.instance and self.state == other.state


class Overview:
    """What is there, what it does, and who uses it.

    Args:
        parts: the rooms below.
        supervisor: knows what runs.
    """

    def __init__(self, parts: Parts, supervisor: Supervisor) -> None:
        self._parts = parts
        self._supervisor = supervisor
        self._providers: dict[str, tuple[_Basis, Provider]] = {}

    def list_json(self, filters: dict[str, list[str]]) -> bytes:
        """Return the body of the plugin list; see ``Inventory.listing``."""
        return self._parts.inventory.listing(filters)

    def inspect_json(self, name: str) -> bytes:
        """Return the body that shows one plugin; see ``Inventory.find`` for what ``name`` may be."""
        return self._parts.inventory.find(name).document + b"\n"

    def enabled_network_drivers(self) -> list[str]:
        """Return the names of enabled plugins that are network drivers, sorted (REF 1.7)."""
        return [
            entry.record.name
            for entry in self._parts.inventory
            if entry.record.enabled
            and any(c.prefix == "docker" and c.name == "networkdriver" for c in entry.config.interface.capabilities)
        ]

    def provider(self, name: str) -> Provider:
        """Return how one plugin is used; see ``Inventory.find`` for what ``name`` may be."""
        return self._provider(self._parts.inventory.find(name))

    def providers(self) -> list[Provider]:
        """Return how each plugin is used, by name."""
        return [self._provider(entry) for entry in self._parts.inventory]

    def _provider(self, entry: Entry) -> Provider:
        plugin_id, inventory = entry.record.id, self._parts.inventory
        instance = self._supervisor.instance(plugin_id)
        basis = _Basis(entry, instance, inventory.status(plugin_id).state)
        known, found = self._providers.get(plugin_id, (None, None))
        if found is None or known is None or not basis.same(known):
            found = provider(self._parts, entry, instance)
            self._providers[plugin_id] = basis, found
            if len(self._providers) > len(inventory):
                # some are gone
                there = {one.record.id for one in inventory}
                self._providers = {key: kept for key, kept in self._providers.items() if key in there}
        return found

    def states(self) -> Counter[State]:
        """Return how many plugins there are in each state."""
        return self._parts.inventory.states()

    def summaries(self) -> list[Summary]:
        """Return what each plugin does, sorted by name."""
        return [
            Summary.of(entry.record, self._parts.inventory.status(entry.record.id)) for entry in self._parts.inventory
        ]

    async def snapshot(self) -> Snapshot:
        """Return what ``summaries`` says as of one event, to follow events from there."""

        def work(db: sqlite3.Connection) -> tuple[int, list[PluginRecord]]:
            return journal.last_seq(db), plugins.load(db)

        # in one transaction: what is in memory follows a moment after
        seq, records = await self._parts.database.read(work)
        inventory = self._parts.inventory
        return Snapshot(
            seq=seq,
            plugins=[
                Summary.of(record, inventory.status(record.id))
                for record in records
                if record.id not in inventory.ruined
            ],
        )

    async def describe(self, name: str) -> Description:
        """Return all there is to say of one plugin."""
        entry = self._parts.inventory.find(name)
        plugin_id = entry.record.id
        lines = await self._parts.executor.tail(plugin_id, _LAST_LINES)
        instance = self._supervisor.instance(plugin_id)
        # the status last: the others take a moment
        status = self._parts.inventory.status(plugin_id)
        return cast(
            "Description",
            Description.of(
                entry.record,
                status,
                pid=instance.pid if instance is not None and status.state in UP else 0,
                options=self._parts.options(entry.record),
                own_options=entry.record.options,
                log=lines,
            ),
        )

    async def disk_usage(self) -> dict[str, int]:
        """Return bytes on the disk: ``plugins`` for their directories, ``layers`` for the blobs."""
        blobs = await self._parts.store.digests()
        return {"plugins": await self._parts.disk.usage(), "layers": sum(size for _, size in blobs)}

    async def leases(self, name: str) -> list[PluginLease]:
        """Return the leases on a plugin, the oldest first."""
        return await usage.leases(self._parts, self._parts.inventory.find(name).record.id)

    async def mounts(self) -> list[MountView]:
        """Return every mount that the daemon has made, by path."""
        names = {entry.record.id: entry.record.name for entry in self._parts.inventory}
        return [MountView.of(row, names.get(row.plugin_id, "")) for row in await self._parts.mounts.rows()]

    def logs(self, name: str, wanted: Wanted, form: Form) -> AsyncGenerator[bytes, None]:
        """Yield what a plugin has printed, in whichever start; see ``history.follow``.

        To follow goes on over exits and restarts, until the plugin is disabled or removed.

        Raises:
            PluginNotFound: at once.
        """
        plugin_id = self._parts.inventory.find(name).record.id

        def going() -> bool:
            try:
                return self._parts.inventory.get(plugin_id).record.enabled
            except PluginNotFound:
                return False

        return self._parts.executor.output(plugin_id, wanted, form, going=going)

    async def top(self, name: str) -> Top:
        """Return the processes of a plugin.

        Raises:
            NotRunning: it has none.
        """
        record = self._parts.inventory.find(name).record
        rows = await self._parts.executor.processes(record.id)
        if not rows:
            raise NotRunning(record.name)
        return Top(TITLES, rows)

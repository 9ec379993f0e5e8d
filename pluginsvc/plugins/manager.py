"""All that can be done to plugins: what the API and the daemon call.

Each mutation is a job that the manager owns, so that a client who goes away leaves neither halves nor an undone commit
(design D8), and holds the lock of its plugin, so that no two meet on one (design D9).
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import anyio.abc
import structlog

from pluginsvc.content.gc import Collector, Report
from pluginsvc.errors import InvalidParameter, PluginsvcError
from pluginsvc.fsutil import boot_id
from pluginsvc.model.auth import Credentials, RegistryAccess
from pluginsvc.model.config import parse_config
from pluginsvc.model.plugin import PluginConfig, PluginRecord
from pluginsvc.model.privilege import Privilege, required_privileges
from pluginsvc.model.reference import InvalidReference, Reference
from pluginsvc.plugins import control, install
from pluginsvc.plugins.install import Sink
from pluginsvc.plugins.inventory import Entry, PluginExists, PluginNotFound
from pluginsvc.plugins.parts import Parts
from pluginsvc.plugins.supervise import Supervisor
from pluginsvc.runtime.executor import Instance
from pluginsvc.state import plugins
from pluginsvc.tasks import Job, JobGroup, KeyedLock
from pluginsvc.transfer import pull

_log = structlog.get_logger()


class CanonicalName(InvalidParameter):
    """A local name was given with a digest; the texts are Docker's."""


class BadName(InvalidParameter):
    """A name for a new plugin is not a reference."""


class NameTaken(InvalidParameter):
    """A pull meets a plugin of its name (REF 1.4: 400 here, though 409 on create)."""


class Manager:
    """Operations on plugins.

    Args:
        parts: the rooms below.
        supervisor: keeps enabled plugins running.
        collector: collects garbage.
        jobs: owns the mutations.
        background: owns what nobody waits for: deleting tombstones, syncing new rootfs.
    """

    def __init__(
        self,
        parts: Parts,
        supervisor: Supervisor,
        collector: Collector,
        jobs: JobGroup,
        background: anyio.abc.TaskGroup,
    ) -> None:
        self._parts = parts
        self._supervisor = supervisor
        self._collector = collector
        self._jobs = jobs
        self._background = background
        self._locks = KeyedLock()

    # What is there

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

    async def disk_usage(self) -> dict[str, int]:
        """Return bytes on the disk: ``plugins`` for their directories, ``layers`` for the blobs."""
        blobs = await self._parts.store.digests()
        return {"plugins": await self._parts.disk.usage(), "layers": sum(size for _, size in blobs)}

    # From and to registries

    async def privileges(self, remote: Reference, access: RegistryAccess) -> list[Privilege]:
        """Return what a remote plugin would ask of the host; registry trouble is an error (REF 7.3)."""
        resolved = await pull.resolve(self._parts.registry.fetcher(remote, access), remote)
        return required_privileges(resolved.config)

    async def login(self, credentials: Credentials) -> str:
        """Check credentials with their registry; return an identity token, or nothing."""
        return await self._parts.registry.login(credentials)

    def pull_name(self, remote: Reference, name: str) -> str:
        """Return the local name of a pull: ``name`` where given, else what ``remote`` suggests (REF 3.1).

        Raises:
            InvalidReference: ``name`` is malformed.
            CanonicalName: ``name`` has a digest.
        """
        if not name:
            return remote.local_name()
        reference = Reference.parse(name)
        if reference.digest:
            raise CanonicalName("cannot use digest in plugin tag")
        return reference.local_name()

    async def pull(
        self, remote: Reference, *, name: str, granted: list[Privilege], access: RegistryAccess, sink: Sink
    ) -> None:
        """Install a plugin from a registry, disabled; see ``install.install``, and ``pull_name`` for ``name``.

        Raises:
            NameTaken: there is such a plugin, or one is being made.
        """
        local = self.pull_name(remote, name)

        async def work(job: Job) -> None:
            try:
                with self._parts.inventory.reserve(local):
                    entry = await install.install(
                        self._parts, job, remote, name=local, granted=granted, access=access, sink=sink
                    )
            except PluginExists as exc:
                raise NameTaken(str(exc)) from exc
            self._settle_soon(entry)

        await self._jobs.run(f"pull {local}", work)

    def upgrade_name(self, name: str) -> str:
        """Return the local name of the plugin that an upgrade of ``name`` is about."""
        return self._parts.inventory.find(name).record.name

    async def upgrade(
        self, name: str, remote: Reference, *, granted: list[Privilege], access: RegistryAccess, sink: Sink
    ) -> None:
        """Replace the content of a disabled plugin; see ``install.upgrade``."""

        async def work(job: Job, entry: Entry) -> None:
            label = entry.record.name
            control.require_disabled(entry, f"plugin must be disabled before upgrading: plugin {label} is enabled")
            self._settle_soon(
                await install.upgrade(self._parts, job, entry, remote, granted=granted, access=access, sink=sink)
            )

        await self._locked("upgrade", name, self._parts.inventory.find(name), work)

    async def push(self, name: str, *, access: RegistryAccess, sink: Sink) -> None:
        """Push a plugin to the registry its local name names; see ``install.publish``."""
        entry = self._parts.inventory.find(name)

        async def work(job: Job) -> None:
            await install.publish(self._parts, job, entry, access=access, sink=sink)

        await self._jobs.run(f"push {entry.record.name}", work)

    # On this host

    async def create(self, name: str, body: AsyncIterator[bytes]) -> None:
        """Make a plugin from a tar stream; see ``install.create``.

        Raises:
            BadName, CanonicalName: ``name`` cannot be a local name.
            PluginExists: it is taken.
        """
        try:
            reference = Reference.parse(name)
        except InvalidReference as exc:
            raise BadName(f"failed to parse reference {name}: {exc}") from exc
        if reference.digest:
            raise CanonicalName("canonical references are not permitted")
        local = reference.local_name()

        async def work(job: Job) -> None:
            with self._parts.inventory.reserve(local):
                self._settle_soon(await install.create(self._parts, job, local, body))

        await self._jobs.run(f"create {local}", work)

    async def set(self, name: str, arguments: list[str]) -> None:
        """Change settings of a disabled plugin; see ``control.change_settings``."""

        async def work(job: Job, entry: Entry) -> None:
            await control.change_settings(self._parts, job, entry, arguments)

        await self._locked("set", name, self._parts.inventory.find(name), work)

    async def enable(self, name: str, *, timeout: int) -> None:
        """Start a plugin and keep it running; ``timeout`` in seconds; see ``control.enable``."""

        async def work(job: Job, entry: Entry) -> None:
            await control.enable(self._parts, self._supervisor, job, entry, typed=name, timeout=timeout)

        await self._locked("enable", name, self._parts.inventory.find(name), work)

    async def disable(self, name: str, *, force: bool) -> None:
        """Stop a plugin; ``force`` will matter once plugins can be in use by name."""

        async def work(job: Job, entry: Entry) -> None:
            await control.disable(self._parts, self._supervisor, job, entry, typed=name)

        await self._locked("disable", name, self._parts.inventory.find(name), work)

    async def remove(self, name: str, *, force: bool) -> None:
        """Remove a plugin; with ``force`` an enabled one is stopped first; see ``control.remove``.

        A plugin that could not be loaded at start is found here, and nowhere else, by its full ID or name.
        """

        async def work(job: Job, entry: Entry) -> None:
            tombstone = await control.remove(self._parts, self._supervisor, job, entry, typed=name, force=force)
            self._background.start_soon(self._erase, entry.record.id, tombstone)

        try:
            entry = self._parts.inventory.find(name)
        except PluginNotFound:
            entry = self._parts.inventory.find_ruin(name)
        await self._locked("remove", name, entry, work)

    async def collect(self, *, dry_run: bool) -> Report:
        """Collect garbage now, or tell what would be collected."""

        async def work(_job: Job) -> Report:
            return await self._collector.run_once(dry_run=dry_run)

        return await self._jobs.run("collect", work)

    # Start of the daemon

    async def restore(self) -> list[anyio.Event]:
        """Bring back what the database knows (design §3, D15).

        Records are loaded, leftovers of a crash swept, live plugins attached to, and the other wished ones started.

        Returns:
            One event per wished plugin, set when it is ready or has failed once.
        """
        records = await self._parts.database.read(plugins.load)
        known = await self._parts.database.read(_ids)
        generations: dict[str, int | None] = dict.fromkeys(known)
        generations.update({record.id: record.generation for record in records})
        await self._clear_strays(frozenset(record.id for record in records if record.enabled))
        await self._parts.disk.sweep(generations)
        for record in records:
            if not record.enabled:
                # an enable may have ended between its propagated mount and its first file on RUN
                await self._parts.disk.unmount(self._parts.disk.plugin(record.id))
            await self._load(record)
        wished = [entry.record.id for entry in self._parts.inventory if entry.record.enabled]
        return [self._supervisor.watch(plugin_id, await self._attach(plugin_id)) for plugin_id in wished]

    async def _attach(self, plugin_id: str) -> Instance | None:
        """Return what runs of a plugin; what cannot be found out is left to the next start, which clears first."""
        try:
            return await self._parts.executor.attach(plugin_id)
        except PluginsvcError as exc:
            _log.error("plugin.not_attached", plugin=plugin_id, error=str(exc))
            return None

    async def _load(self, record: PluginRecord) -> None:
        try:
            entry = Entry.of(record, parse_config(await self._parts.store.read(record.config)))
        except PluginsvcError as exc:
            # one plugin in ruins must not keep the others, nor the daemon, from coming up
            _log.error("plugin.not_loaded", plugin=record.id, name=record.name, error=str(exc))
            self._parts.inventory.put_ruin(Entry.of(record, PluginConfig()))
            return
        self._parts.inventory.put(entry)
        if record.unsynced_boot == boot_id():
            self._settle_soon(entry)

    async def _clear_strays(self, wished: frozenset[str]) -> None:
        """Stop what runs without a wish: an enable that a crash interrupted, or a plugin that is gone."""
        for plugin_id in await self._parts.executor.instances():
            if plugin_id not in wished:
                _log.warning("plugin.stray_stopped", plugin=plugin_id)
                try:
                    await self._supervisor.clear(plugin_id)
                except PluginsvcError as exc:
                    _log.error("plugin.stray_not_cleared", plugin=plugin_id, error=str(exc))

    # How mutations run

    async def _locked(self, verb: str, typed: str, found: Entry, work: Callable[[Job, Entry], Awaitable[None]]) -> None:
        """Run ``work`` as a job under the plugin's lock, on the plugin as it stands once the lock is held."""
        plugin_id = found.record.id

        async def locked(job: Job) -> None:
            async with self._locks(plugin_id):
                try:
                    entry = self._parts.inventory.get(plugin_id)
                except PluginNotFound:
                    # removed while we waited
                    raise PluginNotFound(typed) from None
                await work(job, entry)

        await self._jobs.run(f"{verb} {found.record.name}", locked)

    async def _erase(self, plugin_id: str, tombstone: Path | None) -> None:
        """Delete what a removed plugin leaves; trouble is logged, and the next start sweeps."""
        try:
            await self._parts.executor.remove_logs(plugin_id)
        except PluginsvcError as exc:
            _log.warning("plugin.logs_not_removed", plugin=plugin_id, error=str(exc))
        if tombstone is not None:
            await self._parts.disk.discard(tombstone)

    def _settle_soon(self, entry: Entry) -> None:
        self._background.start_soon(install.settle, self._parts, self._locks, entry)


def _ids(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT id FROM plugins")]

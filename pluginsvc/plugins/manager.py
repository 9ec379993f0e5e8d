"""All that can be done to plugins: what the API and the daemon call.

Each mutation is a job that the manager owns, so that a client who goes away leaves neither halves nor an undone commit
(design D8), and holds the lock of its plugin, so that no two meet on one (design D9).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio
import anyio.abc
import structlog

from pluginsvc.content.gc import Collector, Report
from pluginsvc.errors import Conflict, InvalidParameter, PluginsvcError
from pluginsvc.model.auth import Credentials, RegistryAccess
from pluginsvc.model.lease import PluginLease
from pluginsvc.model.lifecycle import UP
from pluginsvc.model.options import Options
from pluginsvc.model.output import Form, Top, Wanted
from pluginsvc.model.privilege import Privilege, required_privileges
from pluginsvc.model.reference import InvalidReference, Reference
from pluginsvc.plugins import control, install, restore, usage
from pluginsvc.plugins.describe import Description, MountView, Summary
from pluginsvc.plugins.install import Sink
from pluginsvc.plugins.inventory import Entry, PluginExists, PluginNotFound
from pluginsvc.plugins.parts import Parts
from pluginsvc.plugins.supervise import Supervisor
from pluginsvc.runtime.processes import TITLES
from pluginsvc.tasks import Job, JobGroup, KeyedLock
from pluginsvc.transfer import pull

_log = structlog.get_logger()
_LAST_LINES = 20
T = TypeVar("T")


class CanonicalName(InvalidParameter):
    """A local name was given with a digest; the texts are Docker's."""


class BadName(InvalidParameter):
    """A name for a new plugin is not a reference."""


class NameTaken(InvalidParameter):
    """A pull meets a plugin of its name (REF 1.4: 400 here, though 409 on create)."""


class NotRunning(Conflict):
    """Only what runs has processes."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"plugin {name} is not running")


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

    def summaries(self) -> list[Summary]:
        """Return what each plugin does, sorted by name."""
        return [Summary.of(entry, self._parts.inventory.status(entry.record.id)) for entry in self._parts.inventory]

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
                entry,
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

    # Who uses it

    async def leases(self, name: str) -> list[PluginLease]:
        """Return the leases on a plugin, the oldest first."""
        return await usage.leases(self._parts, self._parts.inventory.find(name).record.id)

    async def acquire(
        self, name: str, *, holder: str, purpose: str, seconds: float | None, capability: str
    ) -> PluginLease:
        """Take a lease on an enabled plugin; see ``usage.acquire``."""

        async def work(job: Job, entry: Entry) -> PluginLease:
            with job.commit():
                return await usage.acquire(
                    self._parts, entry, holder=holder, purpose=purpose, seconds=seconds, capability=capability
                )

        return await self._locked("acquire", name, self._parts.inventory.find(name), work)

    async def release(self, name: str, *, holder: str, purpose: str | None, everything: bool) -> int:
        """Give back leases and return how many are left; waits for no lock, since it always has to work."""
        plugin_id = self._parts.inventory.find(name).record.id
        return await usage.release(self._parts, plugin_id, holder=holder, purpose=purpose, everything=everything)

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

    async def update(self, name: str, changes: dict[str, Any]) -> Options:
        """Change a plugin's options, enabled or not; see ``control.update``."""

        async def work(job: Job, entry: Entry) -> Options:
            return await control.update(self._parts, job, entry, changes)

        return await self._locked("update", name, self._parts.inventory.find(name), work)

    async def enable(self, name: str, *, timeout: int) -> None:
        """Start a plugin and keep it running; ``timeout`` in seconds; see ``control.enable``."""

        async def work(job: Job, entry: Entry) -> None:
            await control.enable(self._parts, self._supervisor, job, entry, typed=name, timeout=timeout)

        await self._locked("enable", name, self._parts.inventory.find(name), work)

    async def disable(self, name: str, *, force: bool) -> None:
        """Stop a plugin; with ``force`` also one that is in use; see ``control.disable``."""

        async def work(job: Job, entry: Entry) -> None:
            await control.disable(self._parts, self._supervisor, job, entry, typed=name, force=force)

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
        """Bring back what the database knows; see ``restore.restore``."""
        return await restore.restore(self._parts, self._supervisor, self._settle_soon)

    # How mutations run

    async def _locked(self, verb: str, typed: str, found: Entry, work: Callable[[Job, Entry], Awaitable[T]]) -> T:
        """Run ``work`` as a job under the plugin's lock, on the plugin as it stands once the lock is held."""
        plugin_id = found.record.id

        async def locked(job: Job) -> T:
            async with self._locks(plugin_id):
                try:
                    entry = self._parts.inventory.get(plugin_id)
                except PluginNotFound:
                    # removed while we waited
                    raise PluginNotFound(typed) from None
                return await work(job, entry)

        return await self._jobs.run(f"{verb} {found.record.name}", locked)

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

"""All that can be done to plugins: what the API and the daemon call; what only looks is in ``overview``.

Each mutation is a job that the manager owns, so that a client who goes away leaves neither halves nor an undone commit
(design D8), and holds the lock of its plugin, so that no two meet on one (design D9).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.abc
import structlog

from pluginsvc import metrics
from pluginsvc.content.gc import Collector, Report
from pluginsvc.errors import InvalidParameter, PluginsvcError
from pluginsvc.model.auth import Credentials, RegistryAccess
from pluginsvc.model.lease import PluginLease
from pluginsvc.model.options import Options
from pluginsvc.model.privilege import Privilege, required_privileges
from pluginsvc.model.reference import InvalidReference, Reference
from pluginsvc.plugins import control, install, restore, usage
from pluginsvc.plugins.install import Sink
from pluginsvc.plugins.inventory import Entry, PluginExists, PluginNotFound
from pluginsvc.plugins.overview import Overview
from pluginsvc.plugins.parts import Parts
from pluginsvc.plugins.supervise import Supervisor
from pluginsvc.tasks import Job, JobGroup, KeyedLock
from pluginsvc.transfer import pull

_log = structlog.get_logger()
T = TypeVar("T")


class CanonicalName(InvalidParameter):
    """A local name was given with a digest; the texts are Docker's."""


class BadName(InvalidParameter):
    """A name for a new plugin is not a reference."""


class NameTaken(InvalidParameter):
    """A pull meets a plugin of its name (REF 1.4: 400 here, though 409 on create)."""


class Manager(Overview):
    """Operations on plugins, and all that there is to see.

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
        super().__init__(parts, supervisor)
        self._collector = collector
        self._jobs = jobs
        self._background = background
        self._locks = KeyedLock()

    # Who uses it

    async def acquire(
        self, name: str, *, holder: str, purpose: str, seconds: float | None, capability: str
    ) -> PluginLease:
        """Take a lease on an enabled plugin; see ``usage.acquire``."""

        async def work(job: Job, entry: Entry) -> PluginLease:
            with job.commit():
                return await usage.acquire(
                    self._parts, entry, holder=holder, purpose=purpose, seconds=seconds, capability=capability
                )

        return await self._locked("acquire", name, work)

    async def release(self, name: str, *, holder: str, purpose: str | None, everything: bool) -> int:
        """Give back leases and return how many are left; waits for no lock, since it always has to work."""
        plugin_id = self._parts.inventory.find(name).record.id
        return await usage.release(self._parts, plugin_id, holder=holder, purpose=purpose, everything=everything)

    async def finish(self, name: str, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Run a change that a plugin makes: one at a time for ``key``, and once begun without its caller if need be."""

        async def locked(job: Job) -> T:
            async with self._locks(key):
                job.detached = True
                return await work()

        return await self._jobs.run(name, locked)

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
        with metrics.unless_done("pull"):
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

        await self._run("pull", local, work)

    def upgrade_name(self, name: str) -> str:
        """Return the local name of the plugin that an upgrade of ``name`` is about."""
        return self._find("upgrade", name).record.name

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

        await self._locked("upgrade", name, work)

    async def push(self, name: str, *, access: RegistryAccess, sink: Sink) -> None:
        """Push a plugin to the registry its local name names; see ``install.publish``."""
        entry = self._find("push", name)

        async def work(job: Job) -> None:
            await install.publish(self._parts, job, entry, access=access, sink=sink)

        await self._run("push", entry.record.name, work)

    # On this host

    async def create(self, name: str, body: AsyncIterator[bytes]) -> None:
        """Make a plugin from a tar stream; see ``install.create``.

        Raises:
            BadName, CanonicalName: ``name`` cannot be a local name.
            PluginExists: it is taken.
        """
        with metrics.unless_done("create"):
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

        await self._run("create", local, work)

    async def set(self, name: str, arguments: list[str]) -> None:
        """Change settings of a disabled plugin; see ``control.change_settings``."""

        async def work(job: Job, entry: Entry) -> None:
            await control.change_settings(self._parts, job, entry, arguments)

        await self._locked("set", name, work)

    async def update(self, name: str, changes: dict[str, Any]) -> Options:
        """Change a plugin's options, enabled or not; see ``control.update``."""

        async def work(job: Job, entry: Entry) -> Options:
            return await control.update(self._parts, job, entry, changes)

        return await self._locked("update", name, work)

    async def enable(self, name: str, *, timeout: int) -> None:
        """Start a plugin and keep it running; ``timeout`` in seconds; see ``control.enable``."""

        async def work(job: Job, entry: Entry) -> None:
            await control.enable(self._parts, self._supervisor, job, entry, typed=name, timeout=timeout)
            # before the answer: what follows may be an engine's first call
            await self._parts.publish()

        await self._locked("enable", name, work)

    async def disable(self, name: str, *, force: bool) -> None:
        """Stop a plugin; with ``force`` also one that is in use; see ``control.disable``."""

        async def work(job: Job, entry: Entry) -> None:
            await control.disable(self._parts, self._supervisor, job, entry, typed=name, force=force)
            await self._parts.publish()

        await self._locked("disable", name, work)

    async def remove(self, name: str, *, force: bool) -> None:
        """Remove a plugin; with ``force`` an enabled one is stopped first; see ``control.remove``.

        A plugin that could not be loaded at start is found here, and nowhere else, by its full ID or name.
        """

        async def work(job: Job, entry: Entry) -> None:
            tombstone = await control.remove(self._parts, self._supervisor, job, entry, typed=name, force=force)
            self._background.start_soon(self._erase, entry.record.id, tombstone)
            await self._parts.publish()

        await self._locked("remove", name, work)

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

    def _find(self, verb: str, typed: str) -> Entry:
        """Return the plugin that an operation is about; of those that could not be loaded, only for ``remove``."""
        with metrics.unless_done(verb):
            try:
                return self._parts.inventory.find(typed)
            except PluginNotFound:
                if verb != "remove":
                    raise
                return self._parts.inventory.find_ruin(typed)

    async def _run(self, verb: str, subject: str, work: Callable[[Job], Awaitable[T]]) -> T:
        """Run ``work`` as a job, and count how it ends, whether or not somebody still waits for it."""

        async def counted(job: Job) -> T:
            with metrics.operation(verb):
                return await work(job)

        return await self._jobs.run(f"{verb} {subject}", counted)

    async def _locked(self, verb: str, typed: str, work: Callable[[Job, Entry], Awaitable[T]]) -> T:
        """Run ``work`` as a job under the plugin's lock, on the plugin as it stands once the lock is held."""
        found = self._find(verb, typed)
        plugin_id = found.record.id

        async def locked(job: Job) -> T:
            async with self._locks(plugin_id):
                try:
                    entry = self._parts.inventory.get(plugin_id)
                except PluginNotFound:
                    # removed while we waited
                    raise PluginNotFound(typed) from None
                return await work(job, entry)

        return await self._run(verb, found.record.name, locked)

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

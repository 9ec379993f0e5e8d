"""The composition root: puts the rooms together, owns every task, and takes all down in order (anchors §3)."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version as package_version
from pathlib import Path
from urllib.request import getproxies_environment
from uuid import UUID

import anyio
import anyio.abc
import structlog
from anyio import to_thread

from pluginsvc import log, metrics, wiring
from pluginsvc.api.app import make_app, serve
from pluginsvc.config import Settings
from pluginsvc.content.gc import Collector
from pluginsvc.content.store import ContentStore
from pluginsvc.directory.authz import Chain
from pluginsvc.directory.directory import Directory
from pluginsvc.errors import Internal, PluginsvcError, first_leaf
from pluginsvc.events.bus import Bus, everything
from pluginsvc.events.delivery import Sink, deliver
from pluginsvc.events.forms import Origin
from pluginsvc.events.journal import EventLog, Publisher
from pluginsvc.events.retention import Retention
from pluginsvc.events.subscribers import audit, consume, count, notify
from pluginsvc.fsutil import boot_id, locked_directory
from pluginsvc.model.event import Event
from pluginsvc.plugins import garbage
from pluginsvc.plugins.disk import Disk
from pluginsvc.plugins.inventory import Inventory
from pluginsvc.plugins.manager import Manager
from pluginsvc.plugins.mounts import Ledger
from pluginsvc.plugins.parts import Parts
from pluginsvc.plugins.supervise import Supervisor
from pluginsvc.registry.client import Registry
from pluginsvc.reload import Reloads
from pluginsvc.rootfs.confinement import Confinement
from pluginsvc.runtime.executor import Executor
from pluginsvc.state import cursors, journal, leases
from pluginsvc.state.database import Database
from pluginsvc.systemd import Notifier, inherited_sockets
from pluginsvc.tasks import JobGroup, every
from pluginsvc.transfer.pull import Puller

_log = structlog.get_logger()
READY_WITHIN = 10.0
"""Longest wait for wished plugins before the daemon calls itself ready, in seconds (design §3)."""
_DRAIN_SECONDS = 2.0
"""What subscribers get, once nothing happens any more, for what they have not had yet."""
_KILL_SECONDS = 2.0
"""What is kept of the time to shut down for plugins that do not heed TERM."""
_USER_AGENT = f"pluginsvc/{package_version('pluginsvc')}"


class NotRoot(Internal):
    """Plugins cannot be unpacked, mounted or run."""

    def __init__(self) -> None:
        super().__init__(
            "the daemon has to run as root: it unpacks and mounts root file systems and runs plugins in them"
        )


def run(settings: Settings, reload: Callable[[], Settings]) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Args:
        settings: checked settings.
        reload: reads them again, at SIGHUP.

    Raises:
        PluginsvcError: it could not start.
    """
    if os.geteuid() != 0:
        raise NotRoot
    log.configure(level=settings.log_level, style=settings.log_format)
    # files of plugins come with modes of their own; ours are for root alone
    os.umask(0o077)
    root, run_root = Path(settings.root), Path(settings.run_root)
    # read before there is a loop to block
    boot_id()
    # the group of the API's socket has to pass RUN; ROOT is nobody else's business
    with locked_directory(root, 0o700), locked_directory(run_root, 0o711):
        try:
            # uvloop answers a fifth more requests per CPU second than asyncio's own loop (docs/performance.md)
            anyio.run(_Daemon(settings, reload).run, inherited_sockets(), backend_options={"use_uvloop": True})
        except BaseExceptionGroup as group:
            # not except*: Python 3.11.2 would wrap what is raised in it
            leaf = first_leaf(group)
            if isinstance(leaf, PluginsvcError):
                raise leaf from group
            raise


class _Daemon:
    """One life of the daemon."""

    def __init__(self, settings: Settings, reload: Callable[[], Settings]) -> None:
        self._settings = settings
        self._notifier = Notifier()
        self._reloads = Reloads(settings, reload, self._notifier)
        self._stop = anyio.Event()
        self._hurry = anyio.Event()
        self._drained = anyio.Event()

    async def run(self, inherited: list[int]) -> None:
        """Open everything, serve until told to stop, close in reverse order."""
        settings = self._settings
        root = Path(settings.root)
        started = anyio.current_time()
        bus = Bus()
        async with (
            _opened(root / "state.db") as database,
            Registry(wiring.hosts(settings), user_agent=_USER_AGENT, proxies=getproxies_environment()) as registry,
            Confinement() as confinement,
            anyio.create_task_group() as services,
        ):
            store = ContentStore(root / "content")
            await store.open()
            disk = Disk(root)
            await disk.open()
            await database.write(leases.clear)
            ended: set[str] = set()
            collector = Collector(
                store,
                roots=partial(garbage.roots, database, ended),
                remove=partial(garbage.remove_unneeded, database, store),
                interval=settings.gc_interval,
            )
            executor = Executor(
                runtime=settings.runtime,
                conmon=settings.conmon,
                run_root=Path(settings.run_root),
                log_root=disk.logs,
                log_size=settings.plugin_log_size,
                log_files=settings.plugin_log_files,
            )
            inventory = Inventory()
            published = wiring.published(settings, inventory)
            parts = Parts(
                database=database,
                store=store,
                disk=disk,
                mounts=Ledger(database, disk),
                inventory=inventory,
                registry=registry,
                puller=Puller(store, lease=partial(garbage.lease, database), limit=settings.max_concurrent_downloads),
                confinement=confinement,
                executor=executor,
                collect=collector.trigger,
                publish=published.settle,
                gzip_level=settings.gzip_level,
                uploads=settings.max_concurrent_uploads,
                stop_grace=settings.stop_timeout,
                hurry=self._hurry,
                defaults=settings.plugins,
                ended=ended,
            )
            facts = await to_thread.run_sync(wiring.facts, settings)
            await services.start(self._signals)
            services.start_soon(self._reloads.serve, registry, facts, self._stop)
            services.start_soon(self._hurry_up)
            services.start_soon(metrics.watch_loop)
            await services.start(executor.serve)
            callbacks = {
                "gc": (collector.trigger, garbage.leaves_garbage),
                "published": (published.trigger, everything),
                "status": (partial(self._tell_status, inventory), everything),
            }
            publisher = Publisher(database, bus)
            await services.start(publisher.run)
            origin = Origin(str(UUID(await database.read(journal.identity))), facts.name)
            sinks = wiring.sinks(settings, origin)
            await database.write(partial(cursors.drop_others, names={sink.name for sink in sinks}))
            # before anything can happen: they get what is committed from here on
            await services.start(self._subscribe, database, bus, sinks, callbacks)
            retention = Retention(
                events=settings.journal_events, bytes=settings.journal_size, seconds=settings.journal_age
            )
            services.start_soon(retention.serve, database)
            if self._notifier.watchdog_interval is not None:
                services.start_soon(self._feed_watchdog, self._notifier.watchdog_interval)
            supervisor = Supervisor(parts, services)
            async with JobGroup().opened() as jobs:
                manager = Manager(parts, supervisor, collector, jobs, services)
                wished = await manager.restore()
                await services.start(published.serve)
                legacy = wiring.legacy(settings)
                await services.start(legacy.serve)
                services.start_soon(parts.mounts.serve)
                services.start_soon(collector.serve)
                directory = Directory(manager, inventory.watch, legacy)
                # from here on a reload may change it; the settings as they are now, for there may have been one before
                chain = self._reloads.chain = Chain(directory)
                guards = wiring.guards(self._reloads.settings)
                app = make_app(
                    manager=manager,
                    directory=directory,
                    system=facts,
                    events=EventLog(database, bus, origin),
                    chain=chain,
                    reader_timeout=settings.reader_timeout,
                )
                grace = settings.shutdown_timeout / 2 if settings.shutdown == "stop" else settings.shutdown_timeout
                listeners = wiring.listeners(settings, inherited)
                if await self._unless_stopped(partial(chain.use, guards, wait=True)):
                    async with serve(app, listeners, grace=grace, hurry=self._hurry) as addresses:
                        await self._unless_stopped(partial(_ready_or_failed, wished))
                        self._reloads.ready = True
                        self._notifier.ready(parts.inventory.counts())
                        _log.info(
                            "daemon.ready",
                            hosts=addresses,
                            plugins=len(parts.inventory),
                            seconds=round(anyio.current_time() - started, 3),
                        )
                        await self._stop.wait()
                        # now there still is the network that their storage needs
                        stops = await self._stopping(settings)
                else:
                    stops = await self._stopping(settings)
            bus.close()
            if stops:
                await published.withdraw()
                await supervisor.stop_all()
            # what was committed last is still logged, and handed to sinks that take it
            with anyio.move_on_after(_DRAIN_SECONDS):
                await self._drained.wait()
            services.cancel_scope.cancel()
        _log.info("daemon.stopped")

    async def _subscribe(
        self,
        database: Database,
        bus: Bus,
        sinks: list[Sink],
        callbacks: dict[str, tuple[Callable[[], None], Callable[[Event], bool]]],
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run the daemon's own subscribers until the bus has closed and each has had everything."""
        async with anyio.create_task_group() as group:
            await group.start(consume, "audit", audit, database, bus)
            await group.start(consume, "metrics", count, database, bus)
            for name, (callback, wanted) in callbacks.items():
                await group.start(partial(notify, name, callback, bus, wanted=wanted))
            for sink in sinks:
                await group.start(deliver, sink, database, bus)
            task_status.started()
        self._drained.set()

    async def _unless_stopped(self, work: Callable[[], Awaitable[object]]) -> bool:
        """Do something until it is done or we are told to stop; tell whether it was done."""
        done = False
        async with anyio.create_task_group() as group:

            async def give_up() -> None:
                await self._stop.wait()
                group.cancel_scope.cancel()

            group.start_soon(give_up)
            await work()
            done = True
            group.cancel_scope.cancel()
        return done

    async def _stopping(self, settings: Settings) -> bool:
        """Say that we are; tell whether the plugins are to stop as well."""
        self._notifier.stopping()
        _log.info("daemon.stopping")
        # nobody keeps plugins over the end of the machine
        return settings.shutdown == "stop" or await to_thread.run_sync(self._notifier.machine_stops)

    async def _signals(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        try:
            with anyio.open_signal_receiver(*numbers) as signals:
                task_status.started()
                async for number in signals:
                    if number == signal.SIGHUP:
                        # not here: a reload may take long, and the next signal may be TERM
                        self._reloads.ask()
                    elif self._stop.is_set():
                        self._hurry.set()
                    else:
                        self._stop.set()
        finally:
            # the receiver has put the defaults back, which would kill us while we close the database
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)

    async def _hurry_up(self) -> None:
        # from the signal on, also where it comes during the start
        await self._stop.wait()
        await anyio.sleep(self._settings.shutdown_timeout - _KILL_SECONDS)
        self._hurry.set()

    def _tell_status(self, inventory: Inventory) -> None:
        if self._reloads.ready and not self._stop.is_set():
            self._notifier.status(inventory.counts())

    async def _feed_watchdog(self, interval: float) -> None:
        async for _ in every(interval):
            self._notifier.alive()


async def _ready_or_failed(wished: list[anyio.Event]) -> None:
    """Wait until each wished plugin is ready or has failed once, or the time for that is up."""
    with anyio.move_on_after(READY_WITHIN):
        for event in wished:
            await event.wait()


@asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[Database]:
    database = await Database.open(path)
    try:
        yield database
    finally:
        with anyio.CancelScope(shield=True):
            await database.close()

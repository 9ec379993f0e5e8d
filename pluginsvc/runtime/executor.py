"""Starts plugins under conmon and an OCI runtime, finds them again after a restart, clears them away (design D3)."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import structlog
from anyio import to_thread

from pluginsvc.errors import Internal
from pluginsvc.fsutil import boot_id, remove_tree
from pluginsvc.model.output import Form, Wanted
from pluginsvc.runtime import cgroup, history, logs, monitor, processes
from pluginsvc.runtime.bundle import Mark, Place, Record, is_plugin_id
from pluginsvc.runtime.command import CommandFailed
from pluginsvc.runtime.forward import Forwarder
from pluginsvc.runtime.instance import Exit, Instance
from pluginsvc.runtime.oci import Runtime, RuntimeFailed
from pluginsvc.runtime.process import ProcessId, with_argument
from pluginsvc.runtime.spec import Launch, cgroup_name
from pluginsvc.tasks import KeyedLock
from pluginsvc.watches import Watches

__all__ = ["Executor", "Exit", "Instance", "Launch"]

_log = structlog.get_logger()
_COMMAND_SECONDS = 30.0
_KILL_SECONDS = 10.0
_CLEANUP_SECONDS = 60.0

LOG_ROOM = 16 * 1024 * 1024
"""Bytes by which a log file may outgrow the size at which it is renamed, before the monitor begins it anew.

A plugin that prints 50 MB/s needs 5 MB of it between two looks. The rest is for a busy machine, and for no daemon.
"""


class WatchRefused(Internal):
    """The kernel gives us no inotify instance."""

    def __init__(self, error: OSError) -> None:
        self.errno = error.errno
        super().__init__(f"cannot watch files: {error.strerror}; raise the sysctl fs.inotify.max_user_instances")


class Executor:
    """Runs plugins; one per daemon.

    Args:
        runtime: ``runc``, ``crun`` or the path of what speaks like them.
        conmon: name or path of the monitor.
        run_root: RUN; what is in there is void after a reboot.
        log_root: directory for the plugins' log files.
        log_size: bytes above which a log file is renamed.
        log_files: most files to keep of each plugin.
    """

    def __init__(
        self,
        *,
        runtime: str,
        conmon: str = "conmon",
        run_root: Path,
        log_root: Path,
        log_size: int = 10 * 1024 * 1024,
        log_files: int = 3,
    ) -> None:
        self._run_root, self._log_root = run_root.absolute(), log_root.absolute()
        self._runtime = Runtime(runtime, self._run_root / "runtime")
        self._conmon = conmon
        self._watches = Watches()
        self._forwarder = Forwarder(self._watches, size=log_size, count=log_files)
        self._log_limit = log_size + LOG_ROOM
        self._locks = KeyedLock()

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Watch for sockets, pass plugins' output on to the daemon's log and rotate their files, until cancelled.

        Raises:
            WatchRefused: the kernel has no inotify instance left.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._forwarder.serve)
            try:
                await self._watches.serve(task_status=task_status)
            except OSError as exc:
                raise WatchRefused(exc) from exc

    async def start(self, launch: Launch) -> Instance:
        """Start a plugin; whatever is left of an earlier start is cleared first.

        When this fails or is cancelled, at any point, nothing of it stays.

        Raises:
            UnusableSettings: it cannot be run as it is configured.
            RuntimeFailed: with what runtime, monitor or machine have to say.
        """
        place = self._place(launch.plugin_id)
        async with self._locks(launch.plugin_id):
            with _told(launch.name, "clear what is left of"):
                await self._clear(place)
            try:
                with _told(launch.name, "start"):
                    record = await self._start(place, launch)
            except BaseException:
                with anyio.move_on_after(_CLEANUP_SECONDS, shield=True):
                    await self._clear_after_failure(place)
                raise
            self._forwarder.follow(place, record.log)
            return Instance(place, record, self._watches)

    async def _start(self, place: Place, launch: Launch) -> Record:
        container_id = f"{launch.plugin_id[:12]}-{secrets.token_hex(8)}"

        def prepare() -> Mark:
            place.prepare(launch, container_id)
            return logs.now(place.logs)

        begin = await to_thread.run_sync(prepare)
        started_ns = time.time_ns()
        pid = await monitor.create(
            place,
            container_id=container_id,
            conmon=self._conmon,
            runtime=self._runtime,
            log_limit=self._log_limit,
            within=_COMMAND_SECONDS,
        )

        def identify() -> Record:
            container = ProcessId.of(pid)
            parent = ProcessId.of(int(place.monitor_pid.read_text("ascii")))
            if container is None or parent is None:
                raise CommandFailed("it ended before it was started")
            return Record(
                name=launch.name,
                container_id=container_id,
                boot=boot_id(),
                container=container,
                monitor=parent,
                started_ns=started_ns,
                log=begin,
            )

        record = await to_thread.run_sync(identify)
        await self._runtime.start(container_id, log=place.runtime_log, within=_COMMAND_SECONDS)
        await to_thread.run_sync(place.save, record)
        return record

    async def attach(self, plugin_id: str) -> Instance | None:
        """Return the instance that an earlier daemon started; it may have ended, then ``wait`` returns at once.

        A start that never finished is cleared away, and so is what is left of another boot.

        Returns:
            ``None`` when there is nothing.
        """
        place = self._place(plugin_id)
        async with self._locks(plugin_id):
            record = await to_thread.run_sync(place.record)
            if record is None or record.boot != await to_thread.run_sync(boot_id):
                with _told(plugin_id, "clear what is left of"):
                    await self._clear(place)
                return None
            self._forwarder.follow(place, record.log)
            return Instance(place, record, self._watches)

    async def instances(self) -> list[str]:
        """Return the IDs of all plugins that have anything on RUN, running or not."""

        def work() -> list[str]:
            found = set()
            for name in ("instances", "plugins"):
                with contextlib.suppress(FileNotFoundError):
                    found.update(os.listdir(self._run_root / name))
            # what else is there is not ours, and no reason not to start
            return sorted(name for name in found if is_plugin_id(name))

        return await to_thread.run_sync(work)

    async def cleanup(self, plugin_id: str) -> None:
        """Clear away all of a plugin but its logs: processes, container, cgroup, mounts, bundle, socket directory.

        What still runs is killed; nothing there is fine.

        Raises:
            RuntimeFailed: a process would not die, or a directory could not be deleted; call again later.
        """
        place = self._place(plugin_id)
        async with self._locks(plugin_id):
            with _told(plugin_id, "clear away"):
                await self._clear(place)

    async def tail(self, plugin_id: str, lines: int) -> list[str]:
        """Return the last lines that a plugin has printed, in whichever start."""
        return await to_thread.run_sync(logs.tail, self._place(plugin_id).logs, Mark(0, 0), lines)

    def output(
        self, plugin_id: str, wanted: Wanted, form: Form, *, going: Callable[[], bool]
    ) -> AsyncGenerator[bytes, None]:
        """Yield what a plugin has printed, and what it prints; see ``history.follow``."""
        printed = partial(self._forwarder.printed, plugin_id)
        return history.follow(self._place(plugin_id).logs, wanted, form, printed=printed, going=going)

    async def processes(self, plugin_id: str) -> list[list[str]]:
        """Return a row of ``processes.TITLES`` for each process of a plugin; none when it does not run."""

        def work() -> list[list[str]]:
            container_id = self._place(plugin_id).container_id()
            return processes.rows(cgroup_name(container_id)) if container_id else []

        return await to_thread.run_sync(work)

    async def remove_logs(self, plugin_id: str) -> None:
        """Delete the log files of a plugin that is removed for good."""
        with _told(plugin_id, "delete the logs of"):
            await to_thread.run_sync(remove_tree, self._place(plugin_id).logs)

    def sockets(self, plugin_id: str) -> Path:
        """Return the directory where a plugin makes its socket."""
        return self._place(plugin_id).sockets

    def _place(self, plugin_id: str) -> Place:
        return Place(self._run_root, self._log_root, plugin_id)

    async def _clear_after_failure(self, place: Place) -> None:
        try:
            with _told(place.plugin_id, "clear away"):
                await self._clear(place)
        except RuntimeFailed as exc:
            # the failure itself is what the caller must hear of
            _log.error("plugin.clear_failed", plugin=place.plugin_id, error=str(exc))

    async def _clear(self, place: Place) -> None:
        await self._forwarder.release(place.plugin_id)
        found = await to_thread.run_sync(_end_helpers, place)
        if found is None:
            return
        container_id, dying = found
        for process in dying:
            with anyio.move_on_after(_KILL_SECONDS):
                await process.wait()
        if await to_thread.run_sync(self._runtime.knows, container_id):
            try:
                await self._runtime.delete(container_id, log=place.runtime_log, within=_COMMAND_SECONDS)
            except CommandFailed as exc:
                _log.warning("plugin.delete_failed", plugin=place.plugin_id, error=str(exc))
                await to_thread.run_sync(remove_tree, self._runtime.root / container_id)
        await to_thread.run_sync(_remove, place, container_id)


def _end_helpers(place: Place) -> tuple[str, list[ProcessId]] | None:
    """Kill the monitor, and a runtime at work; return the container ID with who will die of it.

    Where no container was begun, all that there is goes at once, and nothing is returned.
    """
    container_id = place.container_id()
    if container_id is None:
        place.remove()
        return None
    return container_id, [process for process in _helpers(place, container_id) if process.send(signal.SIGKILL)]


def _remove(place: Place, container_id: str) -> None:
    """Delete what no runtime knows of: cgroup, sockets, state."""
    name = cgroup_name(container_id)
    if not cgroup.remove(name, within=_KILL_SECONDS):
        raise CommandFailed(f"a process of it would not die, see cgroup {name}")
    place.remove()


def _helpers(place: Place, container_id: str) -> list[ProcessId]:
    """Return the monitor, and a runtime at work where a start was cut short."""
    record = place.record()
    if record is None:
        # the container ID is random, so nobody else has it as an argument
        return with_argument(container_id.encode())
    return [record.monitor] if record.boot == boot_id() else []


@contextlib.contextmanager
def _told(plugin: str, step: str) -> Iterator[None]:
    """Turn foreign errors into ours."""
    try:
        yield
    except CommandFailed as exc:
        raise RuntimeFailed(plugin, step, str(exc)) from exc
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        raise RuntimeFailed(plugin, step, f"{where}{exc.strerror or exc}") from exc

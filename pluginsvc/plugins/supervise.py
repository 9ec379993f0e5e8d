"""Keeps wished plugins running: one owned task per enabled plugin (design D2, D3; REF 7.34, 7.35).

A plugin belongs either to its task here, or to the operation that holds its lock and has called ``release``; never to
both, so that no restart can race with disable, remove or upgrade. Whoever owns it says what it is doing.
"""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import structlog

from pluginsvc import log
from pluginsvc.errors import Internal, InvalidParameter, PluginsvcError, first_leaf
from pluginsvc.fsutil import boot_id
from pluginsvc.model.event import Event
from pluginsvc.model.lifecycle import LONGEST_DELAY, UP, WAITING, Ended, State, after_life
from pluginsvc.model.plugin import PluginRecord
from pluginsvc.plugins import install
from pluginsvc.plugins.health import watch_health
from pluginsvc.plugins.inventory import Entry
from pluginsvc.plugins.parts import CLEANUP_SECONDS, Parts, lifecycle
from pluginsvc.runtime.executor import Exit, Instance, Launch
from pluginsvc.runtime.instance import PluginDied

_log = structlog.get_logger()
MOBY_BUDGET = 12.5
"""Seconds that a plugin gets to open its socket where nobody says (REF 3.6)."""
_LAST_LINES = 20
_MOST_LOG = 4096
"""Characters of a plugin's last lines that its exit event keeps: the journal holds 100 000 events."""


class NoSocket(InvalidParameter):
    """The config names no socket, so nobody could ever talk to the plugin."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"plugin {name} cannot be enabled: its config has no Interface.Socket")


class NoEntrypoint(InvalidParameter):
    """The config names nothing to run."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"plugin {name} cannot be enabled: its config has no Entrypoint")


class CannotStop(Internal):
    """The machine, short of descriptors or threads, kept a plugin from being stopped."""

    def __init__(self, plugin_id: str, error: OSError) -> None:
        self.plugin_id, self.error = plugin_id, error
        super().__init__(f"plugin {plugin_id[:12]} cannot be stopped: {error.strerror or error}; try again")


class _Watch:
    """One supervision task: how to end it, and whether its first try is over."""

    __slots__ = ("ended", "found", "scope", "tried")

    def __init__(self, *, found: bool) -> None:
        self.found = found
        self.scope = anyio.CancelScope()
        self.tried = anyio.Event()
        self.ended = anyio.Event()


class Supervisor:
    """Starts, watches and restarts.

    Args:
        parts: the rooms below.
        group: owns the supervision tasks; the daemon's.
    """

    def __init__(self, parts: Parts, group: anyio.abc.TaskGroup) -> None:
        self._parts = parts
        self._group = group
        self._watches: dict[str, _Watch] = {}
        self._instances: dict[str, Instance] = {}

    def show(self, plugin_id: str, state: State, reason: str) -> None:
        """Say that a plugin is on its way to somewhere; only where it arrives is written down."""
        status = self._parts.inventory.status(plugin_id)
        self._parts.inventory.put_status(plugin_id, status.to(state, now_ns=time.time_ns(), reason=reason))

    def settle(self, plugin_id: str, reason: str) -> None:
        """Say that a plugin on its way to somewhere has come to rest."""
        if self._parts.inventory.status(plugin_id).state != "stopped":
            self.show(plugin_id, "stopped", reason)

    def instance(self, plugin_id: str) -> Instance | None:
        """Return what runs of a plugin, or has just ended."""
        return self._instances.get(plugin_id)

    async def start(self, entry: Entry, timeout: float, *, reason: str) -> Instance:
        """Run a plugin and wait until its socket accepts a connection (REF 3.6); undone whole on failure.

        Args:
            entry: the plugin.
            timeout: seconds to wait; 0: as its options say, which is 12.5 as in Docker where they say nothing.
            reason: why it starts, for people.

        Raises:
            NoSocket, NoEntrypoint: the config cannot be run.
            PluginsvcError: the runtime failed, the plugin died (with its last log lines), or time ran out.
        """
        record, config = entry.record, entry.config
        self.show(record.id, "starting", reason)
        if not config.entrypoint:
            raise NoEntrypoint(record.name)
        if not config.interface.socket:
            raise NoSocket(record.name)
        options = self._parts.options(record)
        if record.unsynced_boot not in {"", boot_id()}:
            entry = await install.rebuild(self._parts, entry)
            record = entry.record
        try:
            propagated: Path | None = None
            if config.propagated_mount:
                propagated = await self._parts.mounts.make(record.id)
            launch = Launch(
                plugin_id=record.id,
                name=record.name,
                config=config,
                settings=record.settings,
                options=options,
                rootfs=self._parts.disk.rootfs(record.id, record.generation),
                propagated=propagated,
            )
            instance = await self._parts.executor.start(launch)
            await instance.ready(config.interface.socket, self._within(record, timeout))
        except BaseException:
            with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                await self._kill(record.id)
            raise
        self._instances[record.id] = instance
        return instance

    def _within(self, record: PluginRecord, timeout: float) -> float:
        """Return the seconds that a plugin gets to open its socket."""
        return timeout or self._parts.options(record).start_timeout or MOBY_BUDGET

    async def _kill(self, plugin_id: str) -> None:
        """Undo a start; why it failed is what the caller must hear of, not what this meets."""
        try:
            await self._parts.executor.cleanup(plugin_id)
        except PluginsvcError as exc:
            _log.error("plugin.not_cleared", plugin=plugin_id, error=str(exc))

    async def stop(self, plugin_id: str) -> None:
        """Stop whatever runs of a plugin and undo its container and bundle; nothing there is fine.

        What it has mounted for the host stays: a plugin that starts again finds its volumes as they were.

        Raises:
            RuntimeFailed, CannotStop: something of it would not go.
        """
        instance = self._instances.pop(plugin_id, None)
        try:
            if instance is None:
                instance = await self._parts.executor.attach(plugin_id)
            if instance is not None:
                await instance.stop(grace=self._parts.stop_grace, hurry=self._parts.hurry)
        except (OSError, ExceptionGroup) as exc:
            # what is met while it is waited for comes in a group
            error = first_leaf(exc)
            if not isinstance(error, OSError):
                raise
            raise CannotStop(plugin_id, error) from exc
        await self._parts.executor.cleanup(plugin_id)

    async def clear(self, plugin_id: str) -> None:
        """Stop a plugin as ``stop`` does, and unmount all that is mounted in its directory."""
        try:
            await self.stop(plugin_id)
        finally:
            await self._parts.mounts.clear(plugin_id)

    def watch(self, plugin_id: str, instance: Instance | None, *, found: bool = False) -> anyio.Event:
        """Take charge of a plugin: of its instance, or of starting one.

        Args:
            plugin_id: 64 hex digits.
            instance: what runs of it, if anything does.
            found: that was started by an earlier daemon.

        Returns:
            An event that is set when the plugin is ready, or has failed once.
        """
        watch = _Watch(found=found)
        self._watches[plugin_id] = watch
        if instance is not None:
            self._instances[plugin_id] = instance
        self._group.start_soon(self._run, plugin_id, watch, name=f"supervise {plugin_id[:12]}")
        return watch.tried

    async def release(self, plugin_id: str) -> None:
        """Give the plugin to the caller: after this no task here touches it, and nothing restarts it."""
        watch = self._watches.pop(plugin_id, None)
        if watch is not None:
            watch.scope.cancel()
            with anyio.CancelScope(shield=True):
                await watch.ended.wait()

    async def stop_all(self) -> None:
        """Stop every running plugin at once, their wishes untouched (REF 7.55)."""
        watched = list(self._watches)
        # all of them first: one that waits for its next start must not rise while the others are stopped
        for plugin_id in watched:
            self._watches[plugin_id].scope.cancel()
        for plugin_id in watched:
            await self.release(plugin_id)
        async with anyio.create_task_group() as group:
            for plugin_id in {*watched, *self._instances}:
                group.start_soon(self._stop_one, plugin_id)

    async def _stop_one(self, plugin_id: str) -> None:
        try:
            await self.clear(plugin_id)
        except PluginsvcError as exc:
            _log.warning("plugin.stop_failed", plugin=plugin_id, error=str(exc))

    async def _run(self, plugin_id: str, watch: _Watch) -> None:
        # what this plugin does from now on is nothing of the request that enabled it
        log.request_id.set("")
        try:
            with watch.scope:
                await self._keep_running(plugin_id, watch)
        finally:
            watch.tried.set()
            watch.ended.set()

    async def _keep_running(self, plugin_id: str, watch: _Watch) -> None:
        while True:
            entry = self._parts.inventory.get(plugin_id)
            lived, status, reason, tail = 0.0, None, "", list[str]()
            try:
                instance, age = await self._up(entry, watch)
                since = anyio.current_time() - age
                async with anyio.create_task_group() as group:
                    group.start_soon(partial(watch_health, self._parts, entry, instance, found=watch.found))
                    status = await instance.wait()
                    group.cancel_scope.cancel()
                    watch.found = False
                lived = anyio.current_time() - since
                tail = await instance.tail(_LAST_LINES)
            except Exception as exc:  # noqa: BLE001 - whatever it was, a wished plugin is tried again
                error = first_leaf(exc)
                reason = str(error)
                if isinstance(error, PluginDied):
                    status, tail = error.exit, error.output
                known = isinstance(error, PluginsvcError)
                _log.error("plugin.failed", plugin=plugin_id, error=reason, exc_info=None if known else exc)
                watch.tried.set()
            with anyio.CancelScope(shield=True):
                try:
                    delay = await self._after_life(entry, lived, status, reason, tail)
                except Exception as exc:  # noqa: BLE001 - a bug of ours, or a starved machine, must not end the daemon
                    _log.exception("plugin.not_noted", plugin=plugin_id, error=str(exc))
                    delay = LONGEST_DELAY
            if delay is None:
                return
            await anyio.sleep(delay)

    async def _up(self, entry: Entry, watch: _Watch) -> tuple[Instance, float]:
        """Return what runs of the plugin, started if need be, and for how many seconds it has been up."""
        record = entry.record
        before = self._parts.inventory.status(record.id)
        instance = self._instances.get(record.id)
        age = 0.0
        if instance is not None and before.state in UP:
            age = max(0.0, (time.time_ns() - instance.started_ns) / 1e9)
        else:
            again = before.state in WAITING
            reason = f"started again after: {before.reason}" if again else before.reason
            if instance is None:
                instance = await self.start(entry, record.timeout, reason=reason)
            else:
                # the daemon that had started it died before it had seen it ready
                self.show(record.id, "starting", reason)
                await instance.ready(entry.config.interface.socket, self._within(record, record.timeout))
            events = [lifecycle("restart", record, attributes={"failures": str(before.failures)})] if again else []
            await self._parts.arrive(record.id, "running", reason, *events, restarts=before.restarts + again)
            _log.info("plugin.running", plugin=record.id, name=record.name)
        if await instance.running():
            watch.tried.set()
            return instance, age
        # one that ended while the daemon was away is not ready: the start that follows is its try
        return instance, 0.0

    async def _after_life(
        self, entry: Entry, lived: float, status: Exit | None, reason: str, tail: list[str]
    ) -> float | None:
        """Note how a life ended, clear it away, and return the seconds until the next, ``None`` for no next.

        Args:
            entry: the plugin as it was started.
            lived: seconds for which it was up.
            status: how it ended, where it ever ran.
            reason: why it did not run, where it did not.
            tail: its last lines.
        """
        record = self._parts.inventory.get(entry.record.id).record
        options = self._parts.options(record)
        before = self._parts.inventory.status(record.id)
        retry = after_life(
            options.restart,
            lived=lived,
            failed=status is None or status.code != 0,
            failures=before.failures,
            burst=options.burst,
            spread=random.uniform(0.9, 1.1),  # noqa: S311 - no secret
        )
        now = time.time_ns()
        # the lines behind the first are the plugin's last ones, which are told on their own
        reason = reason.partition("\n")[0]
        ended, events = before.exit, list[Event]()
        if status is not None:
            instance = self._instances.get(record.id)
            ended = Ended(
                code=status.code,
                signal=status.signal,
                oom=status.oom,
                time_ns=now,
                container=instance.container_id if instance is not None else "",
            )
            reason = reason or str(ended)
            attributes = {"code": str(status.code), "oom": str(status.oom).lower(), "log": "\n".join(tail)[-_MOST_LOG:]}
            if status.signal is not None:
                attributes["signal"] = str(status.signal)
            events.append(lifecycle("exit", record, attributes=attributes | {"state": retry.state}))
            _log.warning("plugin.exited", plugin=record.id, name=record.name, how=str(ended), tail=tail)
        if retry.state == "crash-loop":
            _log.error(
                "plugin.crash_loop", plugin=record.id, name=record.name, failures=retry.failures, next=retry.delay
            )
        # noted before the evidence is cleared away: a crash in between leaves what tells that it was noted
        await self._parts.arrive(
            record.id,
            retry.state,
            reason,
            *events,
            exit=ended,
            failures=retry.failures,
            next_ns=None if retry.state == "stopped" else now + int(retry.delay * 1e9),
        )
        if record.id in self._instances:
            try:
                await self.stop(record.id)
            except PluginsvcError as exc:
                # the next start clears first, and says so if it cannot
                _log.error("plugin.not_cleared", plugin=record.id, error=str(exc))
        return None if retry.state == "stopped" else retry.delay

"""Keeps wished plugins running: one owned task per enabled plugin (design D2, D3; REF 7.34, 7.35).

A plugin belongs either to its task here, or to the operation that holds its lock and has called ``release``; never to
both, so that no restart can race with disable, remove or upgrade.
"""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import anyio.abc
import structlog

from pluginsvc.errors import Internal, InvalidParameter, PluginsvcError, first_leaf
from pluginsvc.fsutil import boot_id
from pluginsvc.model.event import Event
from pluginsvc.plugins import install
from pluginsvc.plugins.inventory import Entry
from pluginsvc.plugins.parts import CLEANUP_SECONDS, Parts, lifecycle
from pluginsvc.runtime.executor import Exit, Instance, Launch

_log = structlog.get_logger()
FIRST_DELAY = 0.1
LONGEST_DELAY = 60.0
HEALTHY_AFTER = 10.0
MOBY_BUDGET = 12.5
"""Seconds that a plugin gets to open its socket, whatever the timeout says (REF 3.6)."""


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

    __slots__ = ("ended", "scope", "tried")

    def __init__(self) -> None:
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

    async def start(self, entry: Entry, timeout: int) -> Instance:
        """Run a plugin and wait until its socket accepts a connection (REF 3.6); undone whole on failure.

        Args:
            entry: the plugin.
            timeout: seconds to wait, if that is more than Moby's 12.5.

        Raises:
            NoSocket, NoEntrypoint: the config cannot be run.
            PluginsvcError: the runtime failed, the plugin died (with its last log lines), or time ran out.
        """
        record, config = entry.record, entry.config
        if not config.entrypoint:
            raise NoEntrypoint(record.name)
        if not config.interface.socket:
            raise NoSocket(record.name)
        if record.unsynced_boot not in {"", boot_id()}:
            entry = await install.rebuild(self._parts, entry)
            record = entry.record
        try:
            propagated: Path | None = None
            if config.propagated_mount:
                propagated = await self._parts.disk.make_propagated(record.id)
            launch = Launch(
                plugin_id=record.id,
                name=record.name,
                config=config,
                settings=record.settings,
                rootfs=self._parts.disk.rootfs(record.id, record.generation),
                propagated=propagated,
            )
            instance = await self._parts.executor.start(launch)
            await instance.ready(config.interface.socket, max(MOBY_BUDGET, timeout))
        except BaseException:
            with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                await self._kill(record.id)
            raise
        self._instances[record.id] = instance
        return instance

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
                await instance.stop(grace=self._parts.stop_grace)
        except OSError as exc:
            raise CannotStop(plugin_id, exc) from exc
        await self._parts.executor.cleanup(plugin_id)

    async def clear(self, plugin_id: str) -> None:
        """Stop a plugin as ``stop`` does, and unmount all that is mounted in its directory."""
        try:
            await self.stop(plugin_id)
        finally:
            await self._parts.disk.unmount(self._parts.disk.plugin(plugin_id))

    def watch(self, plugin_id: str, instance: Instance | None) -> anyio.Event:
        """Take charge of a plugin: of its instance, or of starting one.

        Returns:
            An event that is set when the plugin is ready, or has failed once.
        """
        watch = _Watch()
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
        try:
            with watch.scope:
                await self._keep_running(plugin_id, watch)
        finally:
            watch.tried.set()
            watch.ended.set()

    async def _keep_running(self, plugin_id: str, watch: _Watch) -> None:
        delay = FIRST_DELAY
        failures = 0
        while True:
            entry = self._parts.inventory.get(plugin_id)
            healthy = 0.0
            try:
                healthy = await self._one_life(entry, watch, failures)
            except Exception as exc:  # noqa: BLE001 - whatever it was, a wished plugin is tried again
                error = first_leaf(exc)
                known = isinstance(error, PluginsvcError)
                _log.error(
                    "plugin.failed",
                    plugin=plugin_id,
                    name=entry.record.name,
                    error=str(error),
                    failures=failures + 1,
                    exc_info=None if known else exc,
                )
                watch.tried.set()
            if healthy >= HEALTHY_AFTER:
                delay, failures = FIRST_DELAY, 0
            failures += 1
            await anyio.sleep(_jittered(delay))
            delay = min(delay * 2, LONGEST_DELAY)

    async def _one_life(self, entry: Entry, watch: _Watch, failures: int) -> float:
        """Start the plugin unless it runs; once it has ended and that is noted, return for how long it ran."""
        record = entry.record
        instance = self._instances.get(record.id)
        if instance is None:
            instance = await self.start(entry, record.timeout)
            if failures:
                await self._note(lifecycle("restart", record, attributes={"failures": str(failures)}))
            _log.info("plugin.running", plugin=record.id, name=record.name)
        # one that ended while the daemon was away is not ready: the start that follows is its try
        if await instance.running():
            watch.tried.set()
        since = anyio.current_time()
        status = await instance.wait()
        healthy = anyio.current_time() - since
        with anyio.CancelScope(shield=True):
            await self._after_exit(entry, instance, status)
        return healthy

    async def _after_exit(self, entry: Entry, instance: Instance, status: Exit) -> None:
        record = entry.record
        tail = await instance.tail(5)
        _log.warning("plugin.exited", plugin=record.id, name=record.name, code=status.code, tail=tail)
        attributes = {"code": str(status.code), "oom": str(status.oom).lower(), "log": "\n".join(tail)}
        if status.signal is not None:
            attributes["signal"] = str(status.signal)
        # noted before the evidence is cleared away: a crash in between makes it noted twice, not never
        await self._note(lifecycle("exit", record, attributes=attributes))
        await self.stop(record.id)

    async def _note(self, event: Event) -> None:
        try:
            await self._parts.note(event)
        except PluginsvcError as exc:
            # a full disk must not end the supervision of anything
            _log.error("plugin.event_not_noted", plugin=event.plugin_id, action=event.action, error=str(exc))


def _jittered(delay: float) -> float:
    """Spread restarts by ±10 %, so that plugins that fell together do not rise together."""
    return delay * random.uniform(0.9, 1.1)  # noqa: S311 - no secret

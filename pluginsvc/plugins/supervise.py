"""Keeps wished plugins running: one owned task per enabled plugin (design D2, D3; REF 7.34, 7.35).

A plugin belongs either to its task here, or to the operation that holds its lock and has called ``release``; never to
both, so that no restart can race with disable, remove or upgrade. Whoever owns it says what it is doing.
"""

from __future__ import annotations

import random
import time
from functools import partial

import anyio
import anyio.abc
import structlog

from pluginsvc import log
from pluginsvc.errors import PluginsvcError, first_leaf
from pluginsvc.model.event import Event
from pluginsvc.model.lifecycle import LONGEST_DELAY, UP, WAITING, Ended, after_life
from pluginsvc.plugins.health import watch_health
from pluginsvc.plugins.inventory import Entry
from pluginsvc.plugins.parts import Parts, lifecycle
from pluginsvc.plugins.running import Running
from pluginsvc.runtime.executor import Exit, Instance
from pluginsvc.runtime.instance import PluginDied

_log = structlog.get_logger()
_LAST_LINES = 20
_MOST_LOG = 4096
"""Characters of a plugin's last lines that its exit event keeps: the journal holds 100 000 events."""


class _Watch:
    """One supervision task: how to end it, and whether its first try is over."""

    __slots__ = ("ended", "found", "scope", "tried")

    def __init__(self, *, found: bool) -> None:
        self.found = found
        self.scope = anyio.CancelScope()
        self.tried = anyio.Event()
        self.ended = anyio.Event()


class Supervisor(Running):
    """Watches and restarts.

    Args:
        parts: the rooms below.
        group: owns the supervision tasks; the daemon's.
    """

    def __init__(self, parts: Parts, group: anyio.abc.TaskGroup) -> None:
        super().__init__(parts)
        self._group = group
        self._watches: dict[str, _Watch] = {}

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
                await instance.ready(entry.config.interface.socket, self.within(record, record.timeout))
            events = [lifecycle("restart", record, attributes={"failures": str(before.failures)})] if again else []
            await self._parts.arrive(record.id, "running", reason, *events, restarts=before.restarts + again)
            # no event tells of a start that follows the daemon's
            await self._parts.publish()
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

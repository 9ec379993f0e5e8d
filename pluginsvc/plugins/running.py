"""Starting and stopping what runs of a plugin, and saying so; who decides that is elsewhere (REF 3.6)."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import structlog

from pluginsvc.errors import Internal, InvalidParameter, PluginsvcError, first_leaf
from pluginsvc.fsutil import boot_id
from pluginsvc.model.lifecycle import State
from pluginsvc.model.plugin import PluginRecord
from pluginsvc.plugins import install
from pluginsvc.plugins.inventory import Entry
from pluginsvc.plugins.parts import CLEANUP_SECONDS, Parts
from pluginsvc.runtime.executor import Instance, Launch

_log = structlog.get_logger()
MOBY_BUDGET = 12.5
"""Seconds that a plugin gets to open its socket where nobody says (REF 3.6)."""


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


class Running:
    """The plugins that run.

    Args:
        parts: the rooms below.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
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
            await instance.ready(config.interface.socket, self.within(record, timeout))
        except BaseException:
            with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                await self._kill(record.id)
            raise
        self._instances[record.id] = instance
        return instance

    def within(self, record: PluginRecord, timeout: float) -> float:
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

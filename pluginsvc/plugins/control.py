"""Operations on one plugin that exists: set, enable, disable, remove (REF 3.6, 3.7, 3.9).

Every function here runs in a job that holds the plugin's lock.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import anyio
import msgspec
import structlog

from pluginsvc.errors import Conflict, PluginsvcError
from pluginsvc.fsutil import boot_id
from pluginsvc.model.event import EngineView
from pluginsvc.model.lifecycle import State, Status
from pluginsvc.model.options import Options, changed
from pluginsvc.model.plugin import PluginRecord
from pluginsvc.plugins import usage
from pluginsvc.plugins.inventory import Entry
from pluginsvc.plugins.parts import CLEANUP_SECONDS, Parts, lifecycle
from pluginsvc.plugins.settings import apply_settings
from pluginsvc.plugins.supervise import Supervisor
from pluginsvc.state import journal, plugins
from pluginsvc.tasks import Job

_log = structlog.get_logger()


class WrongState(Conflict):
    """The plugin is enabled and must not be, or the other way round; the texts are Docker's."""


def require_disabled(entry: Entry, message: str) -> None:
    """Raise ``WrongState`` with ``message`` if the plugin is enabled."""
    if entry.record.enabled:
        raise WrongState(message)


async def change_settings(parts: Parts, job: Job, entry: Entry, arguments: list[str]) -> None:
    """Apply all of ``arguments`` or none (REF 3.7, 7.49)."""
    require_disabled(entry, "cannot set on an active plugin, disable plugin before setting")
    settings = apply_settings(entry.config, entry.record.settings, arguments)
    if settings != entry.record.settings:
        record = msgspec.structs.replace(entry.record, settings=settings)
        names = ",".join(argument.partition("=")[0] for argument in arguments)
        # values may be secrets: the event names what was set, not to what
        with job.commit():
            await parts.save(record, entry.config, lifecycle("set", record, attributes={"settings": names}))


async def enable(parts: Parts, supervisor: Supervisor, job: Job, entry: Entry, *, typed: str, timeout: int) -> None:
    """Start a plugin, wait until it is ready, then wish it enabled (REF 3.6, design D2).

    Args:
        parts: the rooms below.
        supervisor: takes charge afterwards.
        job: to mark the commit.
        entry: the plugin as it stands.
        typed: what the caller called it; the Engine's event repeats it.
        timeout: seconds to wait, and for calls to the plugin; 0 or less: as the plugin's options say, or Moby's 12.5.
    """
    record = entry.record
    require_disabled(entry, f"plugin already enabled: plugin {record.name} is enabled")
    try:
        instance = await supervisor.start(entry, max(0, timeout), reason="enabled")
        with job.commit():
            # as it stands now: the start may have rebuilt the rootfs
            record = parts.inventory.get(record.id).record
            record = msgspec.structs.replace(record, enabled=True, timeout=max(0, timeout))
            view = EngineView(actor=record.id, name=typed)
            status = _moved(parts, record.id, "running", "enabled", restarts=0, failures=0)
            await parts.save(record, entry.config, lifecycle("enable", record, view), status=status)
            supervisor.watch(record.id, instance)
    except BaseException as exc:
        # the wish was not saved: what runs must not outlive it
        try:
            with anyio.move_on_after(parts.stop_grace + CLEANUP_SECONDS, shield=True):
                await _clear(supervisor, entry)
        finally:
            # however that went: nothing starts it any more
            if parts.inventory.status(record.id).state == "starting":
                why = str(exc).partition("\n")[0] or "interrupted"
                with anyio.CancelScope(shield=True):
                    await parts.arrive(record.id, "stopped", f"could not be enabled: {why}")
        raise


async def disable(parts: Parts, supervisor: Supervisor, job: Job, entry: Entry, *, typed: str, force: bool) -> None:
    """Stop a plugin and take back the wish."""
    record = entry.record
    if not record.enabled:
        raise WrongState(f"plugin is already disabled: plugin {record.name} found but disabled")
    if not force:
        await usage.require_unused(parts, entry)
    with job.commit():
        await supervisor.release(record.id)
        before = parts.inventory.status(record.id).state
        try:
            supervisor.show(record.id, "stopping", "disabled")
            await _clear(supervisor, entry)
            # as it stands now: a start may have rebuilt the rootfs
            record = msgspec.structs.replace(parts.inventory.get(record.id).record, enabled=False)
            event = lifecycle("disable", record, EngineView(actor=record.id, name=typed))
            status = _moved(parts, record.id, "stopped", "disabled")
            await parts.save(record, entry.config, event, status=status)
        except Exception:
            _resume(supervisor, entry.record, before)
            raise


async def remove(
    parts: Parts, supervisor: Supervisor, job: Job, entry: Entry, *, typed: str, force: bool
) -> Path | None:
    """Remove a plugin (REF 3.9).

    The record goes first, in one transaction with the event; a crash after it leaves a directory that no record names,
    which the sweep at start deletes.

    Returns:
        The tombstone that is left to be deleted.
    """
    record = entry.record
    if not force:
        await usage.require_unused(parts, entry)
        require_disabled(entry, f"plugin {record.name} is enabled")

    def work(db: sqlite3.Connection) -> None:
        plugins.delete(db, record.id)
        journal.append(db, lifecycle("remove", record, EngineView(actor=record.id, name=typed)))

    with job.commit():
        await supervisor.release(record.id)
        before = parts.inventory.status(record.id).state
        try:
            if record.enabled:
                supervisor.show(record.id, "stopping", "removed")
            await _clear(supervisor, entry)
            supervisor.show(record.id, "removing", "removed")
            await parts.database.write(work)
        except Exception:
            _resume(supervisor, entry.record, before)
            raise
        parts.inventory.drop(record.id)
        return await parts.mounts.bury(record.id)


async def update(parts: Parts, job: Job, entry: Entry, changes: dict[str, Any]) -> Options:
    """Change a plugin's options, running or not, and return those that count now.

    How it is restarted counts from its next end on, everything else from its next start on.

    Raises:
        InvalidOptions: nothing was changed.
    """
    record = entry.record
    own = changed(record.options, changes)
    if own != record.options:
        event = lifecycle("update", record, attributes={"options": ",".join(sorted(changes))})
        with job.commit():
            entry = await parts.change(record.id, lambda now: msgspec.structs.replace(now, options=own), event)
    return parts.options(entry.record)


def _moved(parts: Parts, plugin_id: str, state: State, reason: str, **change: Any) -> Status:
    """Return a plugin's status after a move that is saved with its record."""
    before = parts.inventory.status(plugin_id)
    return before.to(state, now_ns=time.time_ns(), reason=reason, boot=boot_id(), **change)


def _resume(supervisor: Supervisor, record: PluginRecord, before: State) -> None:
    """Give a plugin back after a change that failed: where it was to run, somebody must go on fulfilling the wish."""
    if record.enabled and before != "stopped":
        supervisor.watch(record.id, None)
    else:
        # never enabled, stopped by its policy, or in ruins
        supervisor.settle(record.id, "a change of it has failed")


async def _clear(supervisor: Supervisor, entry: Entry) -> None:
    """Stop the plugin and unmount what it mounted; what cannot be stopped is logged, as in Docker."""
    try:
        await supervisor.clear(entry.record.id)
    except PluginsvcError as exc:
        _log.warning("plugin.stop_failed", plugin=entry.record.id, name=entry.record.name, error=str(exc))

"""The start of the daemon: what the database knows is brought back, what a crash has left goes (design §3)."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import structlog

from pluginsvc.errors import PluginsvcError
from pluginsvc.fsutil import boot_id
from pluginsvc.model.config import parse_config
from pluginsvc.model.lifecycle import WAITING, Status
from pluginsvc.model.plugin import PluginConfig, PluginRecord
from pluginsvc.plugins.inventory import Entry
from pluginsvc.plugins.parts import Parts
from pluginsvc.plugins.supervise import Supervisor
from pluginsvc.runtime.executor import Instance
from pluginsvc.state import plugins, status

_log = structlog.get_logger()


async def restore(parts: Parts, supervisor: Supervisor, settle_soon: Callable[[Entry], None]) -> list[anyio.Event]:
    """Load records, sweep leftovers, attach to live plugins, and start the other wished ones (design D15).

    Args:
        parts: the rooms below.
        supervisor: takes charge of the wished plugins.
        settle_soon: has a rootfs written to the disk that is not known to be there.

    Returns:
        One event per wished plugin, set when it is ready or has failed once.
    """
    records = await parts.database.read(plugins.load)
    known = await parts.database.read(plugins.ids)
    statuses = await parts.database.read(status.load)
    generations: dict[str, int | None] = dict.fromkeys(known)
    generations.update({record.id: record.generation for record in records})
    await parts.mounts.restore(known)
    await _clear_strays(parts, supervisor, frozenset(record.id for record in records if record.enabled))
    await parts.disk.sweep(generations)
    tried = []
    for record in records:
        if not record.enabled:
            # an enable may have ended between its propagated mount and its first file on RUN
            await parts.mounts.clear(record.id)
        entry = await _load(parts, record)
        if entry is None:
            continue
        if record.unsynced_boot == boot_id():
            settle_soon(entry)
        if tries := await _resume(parts, supervisor, record, statuses.get(record.id, Status())):
            tried.append(tries)
    return tried


async def _resume(parts: Parts, supervisor: Supervisor, record: PluginRecord, before: Status) -> anyio.Event | None:
    """Take over what was last seen of a plugin, as far as that still holds, and have it watched if it is to run."""
    if not record.enabled:
        parts.inventory.put_status(record.id, before.found("stopped", reason=before.reason))
        return None
    instance = await _attach(parts, record.id)
    if instance is not None and before.exit is not None and before.exit.container == instance.container_id:
        # its end was noted, and the daemon died before it was cleared away
        await _clear(supervisor, record.id)
        instance = None
    if instance is not None:
        # one that the old daemon had not seen ready is waited for, and written down, by its task
        now = before
    elif before.state == "stopped" and before.boot == boot_id():
        # it ended, and its policy wants no restart; the next boot is another matter
        parts.inventory.put_status(record.id, before)
        return None
    else:
        now = before if before.state in WAITING else before.found("stopped", reason="the daemon started")
    parts.inventory.put_status(record.id, now)
    return supervisor.watch(record.id, instance, found=instance is not None)


async def _attach(parts: Parts, plugin_id: str) -> Instance | None:
    """Return what runs of a plugin; what cannot be found out is left to the next start, which clears first."""
    try:
        return await parts.executor.attach(plugin_id)
    except (OSError, PluginsvcError) as exc:
        _log.error("plugin.not_attached", plugin=plugin_id, error=str(exc))
        return None


async def _load(parts: Parts, record: PluginRecord) -> Entry | None:
    """Show a plugin; one whose config is lost can be removed, and no more."""
    try:
        entry = Entry.of(record, parse_config(await parts.store.read(record.config)))
    except PluginsvcError as exc:
        # one plugin in ruins must not keep the others, nor the daemon, from coming up
        _log.error("plugin.not_loaded", plugin=record.id, name=record.name, error=str(exc))
        parts.inventory.put_ruin(Entry.of(record, PluginConfig()))
        return None
    parts.inventory.put(entry)
    return entry


async def _clear_strays(parts: Parts, supervisor: Supervisor, wished: frozenset[str]) -> None:
    """Stop what runs without a wish: an enable that a crash interrupted, or a plugin that is gone."""

    async def clear(plugin_id: str) -> None:
        _log.warning("plugin.stray_stopped", plugin=plugin_id)
        await _clear(supervisor, plugin_id)
        await parts.mounts.clear(plugin_id)

    # all at once: each that does not heed TERM takes its whole grace, and nobody is answered before
    async with anyio.create_task_group() as group:
        for plugin_id in await parts.executor.instances():
            if plugin_id not in wished:
                group.start_soon(clear, plugin_id)


async def _clear(supervisor: Supervisor, plugin_id: str) -> None:
    """Clear away what runs of a plugin, or has run; what cannot be is left to its next start."""
    try:
        await supervisor.stop(plugin_id)
    except PluginsvcError as exc:
        _log.error("plugin.not_cleared", plugin=plugin_id, error=str(exc))

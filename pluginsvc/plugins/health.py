"""Whether a plugin that runs can be talked to: its socket is watched, and where its type has one, a call is made."""

from __future__ import annotations

import anyio
import structlog

from pluginsvc.directory.probe import alive, probe_call
from pluginsvc.model.lifecycle import State
from pluginsvc.plugins.inventory import Entry
from pluginsvc.plugins.parts import Parts, lifecycle
from pluginsvc.runtime.executor import Instance

_log = structlog.get_logger()
_LEAST = 1.0
"""Seconds between two looks that no clock asked for: a plugin that plays with its socket must not keep us busy."""


async def watch_health(parts: Parts, entry: Entry, instance: Instance, *, found: bool) -> None:
    """Note when a plugin stops answering, and when it does again, until cancelled; nothing is restarted for it.

    A plugin whose type has no call that is known to be harmless is only looked at when something happens to its
    socket, and sent nothing (REF §0.2); it is ``running`` until then.

    Args:
        parts: the rooms below.
        entry: the plugin.
        instance: what runs of it.
        found: it was there when the daemon came: what has happened to its socket meanwhile, no event tells.
    """
    try:
        await _watch(parts, entry, instance, look_now=found)
    except Exception as exc:  # noqa: BLE001 - not to know how a plugin does is no reason to end it
        _log.exception("plugin.health_unknown", plugin=entry.record.id, error=str(exc))


async def _watch(parts: Parts, entry: Entry, instance: Instance, *, look_now: bool) -> None:
    options = parts.options(entry.record)
    call = probe_call(entry.config.interface.capabilities) if options.probe == "auto" else options.probe
    call = None if call == "none" else call
    socket = entry.config.interface.socket
    failures = 0
    with instance.watch(socket) as watch:
        while True:
            pause = options.probe_interval if call else None
            with anyio.move_on_after(0 if look_now else pause) as waited:
                await watch.changed()
            trouble = await watch.look()
            if trouble:
                # not one of several calls that may be lost: nobody can call at all
                failures = options.probe_failures
            elif call:
                trouble = await alive(watch.path, call, timeout=options.probe_timeout)
                failures = min(failures + 1, options.probe_failures) if trouble else 0
            else:
                failures = 0
            state: State = "unhealthy" if failures else "healthy"
            known = parts.inventory.status(entry.record.id).state
            sure = failures in {0, options.probe_failures}
            if look_now and not call and not trouble and known == "running":
                # a socket that is where it was says no more than was known
                sure = False
            told = sure and state != known
            if told:
                reason = trouble or "it answers"
                event = lifecycle("health_status", entry.record, attributes={"status": state, "reason": reason})
                await parts.arrive(entry.record.id, state, reason, event)
            look_now = False
            if told or not waited.cancelled_caught:
                await anyio.sleep(_LEAST)

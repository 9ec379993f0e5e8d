"""Managed plugins as the directory sees them."""

from __future__ import annotations

from pathlib import Path

from pluginsvc.directory.provider import Provider, Scope
from pluginsvc.directory.rpc import Client
from pluginsvc.model.lifecycle import UP
from pluginsvc.plugins.inventory import Entry
from pluginsvc.plugins.parts import Parts
from pluginsvc.runtime.executor import Instance


def provider(parts: Parts, entry: Entry, instance: Instance | None) -> Provider:
    """Return how a plugin is used, as it stands.

    Args:
        parts: the rooms below.
        entry: the plugin.
        instance: what runs of it, or has just ended.
    """
    record, config = entry.record, entry.config
    state = parts.inventory.status(record.id).state
    up = instance is not None and state in UP
    address = f"unix://{parts.executor.sockets(record.id) / config.interface.socket}"
    return Provider(
        name=record.name,
        plugin_id=record.id,
        capabilities=tuple(config.interface.capabilities),
        address=address,
        enabled=record.enabled,
        state=state,
        up=up,
        run=instance.container_id if instance is not None and up else "",
        client=Client(address, name=record.name),
        timeout=float(record.timeout),
        scope=Scope(
            rootfs=Path(parts.disk.rootfs(record.id, record.generation)),
            mount=config.propagated_mount,
            propagated=parts.disk.propagated(record.id),
            binds=tuple(
                (mount.destination, Path(mount.source))
                for mount in record.settings.mounts
                if mount.type == "bind" and mount.source and mount.source.startswith("/")
            ),
        ),
    )

"""How plugins come to be and change content: create, pull, upgrade, push (design §3)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import msgspec
import structlog
from anyio import to_thread

from pluginsvc.errors import InvalidParameter, PluginsvcError
from pluginsvc.fsutil import boot_id
from pluginsvc.model.auth import RegistryAccess
from pluginsvc.model.config import parse_config, with_layer
from pluginsvc.model.digest import Digest
from pluginsvc.model.event import EngineView
from pluginsvc.model.manifest import (
    DOCKER_LAYER,
    PLUGIN_CONFIG,
    Descriptor,
    build_manifest,
    parse_manifest,
)
from pluginsvc.model.plugin import PluginRecord, PluginSettings
from pluginsvc.model.privilege import Privilege, check_privileges, required_privileges
from pluginsvc.model.progress import Line
from pluginsvc.model.reference import Reference
from pluginsvc.plugins.inventory import Entry
from pluginsvc.plugins.parts import Parts, lifecycle
from pluginsvc.plugins.settings import carry_over
from pluginsvc.rootfs.layers import LayerDamaged
from pluginsvc.tasks import Job, KeyedLock
from pluginsvc.transfer import pull, push

_log = structlog.get_logger()
Sink = Callable[[Line], Awaitable[None]]


class NoConfig(InvalidParameter):
    """The archive has no ``config.json``."""

    def __init__(self) -> None:
        super().__init__("config not found: put config.json at the top of the archive")


class NoRootfs(InvalidParameter):
    """The archive has no ``rootfs`` directory (REF 7.2)."""

    def __init__(self) -> None:
        super().__init__("no rootfs found: put the plugin's files below rootfs/ in the archive")


async def create(parts: Parts, job: Job, name: str, body: AsyncIterator[bytes]) -> Entry:
    """Make a plugin from a tar stream (REF 3.2).

    Args:
        parts: the rooms below.
        job: to mark the commit.
        name: local name, reserved by the caller.
        body: the archive; must raise, not end, when the client goes away.

    Raises:
        InvalidParameter: the archive or its config is not usable; nothing is left behind.
    """
    plugin_id = parts.inventory.new_id()
    async with parts.lease(f"create {name}") as lease, parts.staging() as staging:
        async with parts.store.ingest(f"create-{plugin_id}") as ingest:
            archive = await parts.confinement.ingest(body, staging / "rootfs", ingest.fileno(), level=parts.gzip_level)
            if archive.config is None:
                raise NoConfig
            config = parse_config(archive.config)
            if not archive.rootfs:
                raise NoRootfs
            await parts.hold(lease, archive.digest)
            await ingest.adopt(archive.digest, archive.size)
        config_raw = with_layer(config, archive.diff_id)
        layer = Descriptor(media_type=DOCKER_LAYER, digest=archive.digest, size=archive.size)
        config_blob = Descriptor(media_type=PLUGIN_CONFIG, digest=Digest.of(config_raw), size=len(config_raw))
        manifest_raw = build_manifest(config_blob, [layer])
        for raw in (config_raw, manifest_raw):
            await parts.hold(lease, Digest.of(raw))
            await parts.store.put(raw)
        config = parse_config(config_raw)
        record = PluginRecord(
            id=plugin_id,
            name=name,
            reference=name,
            config=config_blob.digest,
            manifest=Digest.of(manifest_raw),
            blobs=[Digest.of(manifest_raw), config_blob.digest, layer.digest],
            settings=PluginSettings.defaults(config),
            unsynced_boot=boot_id(),
        )
        with job.commit():
            event = lifecycle("create", record, EngineView(actor=plugin_id, name=name), attributes=_content(record))
            return await parts.commit(staging, record, config, event, release=lease)


async def install(
    parts: Parts,
    job: Job,
    remote: Reference,
    *,
    name: str,
    granted: list[Privilege],
    access: RegistryAccess,
    sink: Sink,
) -> Entry:
    """Pull a plugin from a registry (REF 3.4).

    Args:
        parts: the rooms below.
        job: to mark the commit.
        remote: what to pull.
        name: local name, reserved by the caller.
        granted: what the operator agreed to; compared before any layer moves (REF 7.30).
        access: credentials and headers for the registry.
        sink: gets the progress lines.
    """
    plugin_id = parts.inventory.new_id()
    async with parts.lease(f"pull {remote}") as lease, parts.staging() as staging:
        resolved, source = await _fetch(parts, remote, granted, access, sink, lease, staging / "rootfs")
        record = PluginRecord(
            id=plugin_id,
            name=name,
            reference=str(remote),
            config=resolved.manifest.config.digest,
            manifest=resolved.descriptor.digest,
            blobs=_blobs(resolved),
            settings=PluginSettings.defaults(resolved.config),
            source=source,
            unsynced_boot=boot_id(),
        )
        with job.commit():
            view = EngineView(actor=remote.familiar, name=name)
            return await parts.commit(
                staging,
                record,
                resolved.config,
                lifecycle("pull", record, view, attributes={"remote": str(remote)}),
                lifecycle("create", record, attributes=_content(record)),
                release=lease,
            )


async def upgrade(
    parts: Parts,
    job: Job,
    entry: Entry,
    remote: Reference,
    *,
    granted: list[Privilege],
    access: RegistryAccess,
    sink: Sink,
) -> Entry:
    """Replace a plugin's content; ID, name, propagated mount and the settings that still apply stay (REF 3.5).

    The caller holds the plugin's lock and has seen that it is disabled.
    """
    old = entry.record
    async with parts.lease(f"upgrade {old.name}") as lease, parts.staging() as staging:
        resolved, source = await _fetch(parts, remote, granted, access, sink, lease, staging / "rootfs")
        record = msgspec.structs.replace(
            old,
            reference=str(remote),
            config=resolved.manifest.config.digest,
            manifest=resolved.descriptor.digest,
            blobs=_blobs(resolved),
            settings=carry_over(old.settings, entry.config, resolved.config),
            generation=old.generation + 1,
            source=source,
            unsynced_boot=boot_id(),
        )
        with job.commit():
            view = EngineView(actor=remote.familiar, name=record.name)
            change = _content(record) | {"previous": str(old.manifest)}
            upgraded = await parts.commit(
                staging,
                record,
                resolved.config,
                lifecycle("pull", record, view, attributes={"remote": str(remote)}),
                lifecycle("upgrade", record, attributes=change),
                release=lease,
            )
    await parts.disk.discard(parts.disk.rootfs(old.id, old.generation).parent)
    return upgraded


async def publish(parts: Parts, job: Job, entry: Entry, *, access: RegistryAccess, sink: Sink) -> None:
    """Push a plugin under its local name, byte for byte as it is stored (REF 4.5)."""
    record = entry.record
    reference = Reference.parse(record.name)

    async def noting(line: Line) -> None:
        if line.aux is not None:
            # the manifest is there: a client that goes away at its last line must not take the event along
            with job.commit():
                attributes = {"digest": line.aux.digest, "tag": line.aux.tag}
                await parts.note(lifecycle("push", record, attributes=attributes))
        await sink(line)

    async with parts.lease(f"push {record.name}") as lease:
        # an upgrade or a removal meanwhile must not take away what is being sent
        for digest in record.blobs:
            await parts.hold(lease, digest)
        await push.push(
            parts.store,
            parts.registry.pusher(reference, access),
            raw=await parts.store.read(record.manifest),
            reference=reference,
            source=record.source,
            sink=noting,
            limit=parts.uploads,
        )


async def rebuild(parts: Parts, entry: Entry) -> Entry:
    """Unpack a plugin's rootfs anew from its blobs, into the next generation, and sync it (design D15)."""
    old = entry.record
    _log.warning("plugin.rebuilding", plugin=old.id, name=old.name)
    manifest = parse_manifest(await parts.store.read(old.manifest))
    async with parts.staging() as staging:
        async with parts.confinement.unpack(staging / "rootfs") as unpacker:
            for layer in manifest.layers:
                async with parts.store.reader(layer.digest) as blob:
                    await unpacker.apply(blob, layer, lambda _: None, None)
        await parts.disk.sync(staging)
        generation = old.generation + 1
        with anyio.CancelScope(shield=True):
            await parts.disk.adopt(staging, old.id, generation)
            try:
                rebuilt = await parts.change(
                    old.id, lambda now: msgspec.structs.replace(now, generation=generation, unsynced_boot="")
                )
            except Exception:
                await parts.disk.retract(old.id, generation)
                raise
    await parts.disk.discard(parts.disk.rootfs(old.id, old.generation).parent)
    return rebuilt


async def settle(parts: Parts, locks: KeyedLock, entry: Entry) -> None:
    """Write a new rootfs to the disk and note in the record that it is there (design D15).

    Trouble is only logged: the mark stays in the record, and a start after a reboot unpacks the rootfs anew.
    """
    record = entry.record
    try:
        await parts.disk.sync(parts.disk.rootfs(record.id, record.generation))
        # other changes of the record happen under this lock; without it one of the two would be lost
        async with locks(record.id):
            if parts.inventory.get(record.id).record.generation == record.generation:
                await parts.change(record.id, lambda now: msgspec.structs.replace(now, unsynced_boot=""))
    except (OSError, PluginsvcError) as exc:
        _log.info("install.not_settled", plugin=record.id, error=str(exc))


async def _fetch(
    parts: Parts,
    remote: Reference,
    granted: list[Privilege],
    access: RegistryAccess,
    sink: Sink,
    lease: str,
    rootfs: Path,
) -> tuple[pull.Resolved, str]:
    """Resolve, compare privileges, download and unpack; return what was resolved and where it came from."""
    fetcher = parts.registry.fetcher(remote, access)
    resolved = await pull.resolve(fetcher, remote)
    check_privileges(granted, required_privileges(resolved.config))
    try:
        async with parts.confinement.unpack(rootfs) as unpacker:
            await parts.puller.pull(
                resolved, fetcher, reference=remote, lease_id=lease, apply=unpacker.apply, sink=sink
            )
    except LayerDamaged as exc:
        # or every later pull would find it here and fail again
        await to_thread.run_sync(parts.store.remove, exc.digest)
        raise
    return resolved, fetcher.source


def _content(record: PluginRecord) -> dict[str, str]:
    """Return what an event says of the content of a plugin, for those who keep their own list of plugins."""
    return {"reference": record.reference, "digest": str(record.manifest)}


def _blobs(resolved: pull.Resolved) -> list[Digest]:
    return [resolved.descriptor.digest, *dict.fromkeys(blob.digest for blob in resolved.manifest.blobs)]

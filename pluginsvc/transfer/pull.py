"""Pull: a reference becomes a plugin's manifest and config, then layers in the store, handed on in manifest order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import msgspec

from pluginsvc.content.ingest import DigestMismatch
from pluginsvc.content.store import ContentStore
from pluginsvc.errors import InvalidParameter
from pluginsvc.model.config import parse_config
from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import (
    INDEX_TYPES,
    LAYER_COMPRESSION,
    PLUGIN_CONFIG,
    Descriptor,
    InvalidManifest,
    Manifest,
    Platform,
    UnknownLayerType,
    parse_index,
    parse_manifest,
)
from pluginsvc.model.plugin import PluginConfig
from pluginsvc.model.progress import Line
from pluginsvc.model.reference import Reference
from pluginsvc.registry.errors import RegistryFault
from pluginsvc.registry.fetcher import Fetcher
from pluginsvc.transfer.progress import INTERVAL, Board, Row, Sink, report
from pluginsvc.transfer.retry import PAUSE, retrying

Apply = Callable[[Path, Descriptor, Callable[[int], None]], Awaitable[None]]
"""Puts one layer on top: gets the blob, its descriptor, and what to tell how many of its bytes are consumed."""


class NotAPlugin(InvalidParameter):
    """The reference names an image or an artifact of another kind (REF 3.3)."""

    def __init__(self, reference: str, media_type: str) -> None:
        self.reference, self.media_type = reference, media_type
        super().__init__(
            f"did not find plugin config for specified reference {reference}: its config is {media_type!r}"
        )


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """What a reference stands for on this host; no layer has been touched.

    Attributes:
        target: digest that the reference resolved to: of an index, if it is one.
        descriptor: of the manifest for this host.
        raw: the manifest's bytes.
        manifest: the same, decoded.
        config_raw: the config's bytes.
        config: the same, decoded and checked.
    """

    target: Digest
    descriptor: Descriptor
    raw: bytes
    manifest: Manifest
    config_raw: bytes
    config: PluginConfig


async def resolve(fetcher: Fetcher, reference: Reference) -> Resolved:
    """Find and fetch a plugin's manifest and config, everything verified (REF 4.4).

    Args:
        fetcher: of ``reference``.
        reference: as the user gave it, for errors.

    Raises:
        RegistryFault: the registry says no, or nothing; the text begins as Docker's.
        NotAPlugin: there is something, but no plugin.
        NoMatchingPlatform, UnknownLayerType, InvalidManifest, InvalidPluginConfig: it cannot be used here.
    """
    try:
        descriptor = await fetcher.resolve()
        target = descriptor.digest
        raw = await fetcher.fetch(descriptor)
        if descriptor.media_type in INDEX_TYPES:
            descriptor = parse_index(raw).select(Platform.host())
            raw = await fetcher.fetch(descriptor)
        manifest = parse_manifest(raw)
        if manifest.config.media_type != PLUGIN_CONFIG:
            raise NotAPlugin(str(reference), manifest.config.media_type)
        sizes: dict[Digest, int] = {}
        for layer in manifest.layers:
            if layer.media_type not in LAYER_COMPRESSION:
                raise UnknownLayerType(layer.media_type)
            if sizes.setdefault(layer.digest, layer.size) != layer.size:
                raise InvalidManifest(f"it gives two sizes for {layer.digest}")
        config_raw = await fetcher.fetch(manifest.config)
    except RegistryFault as exc:
        exc.args = (f"error resolving plugin reference: {exc}",)
        raise
    return Resolved(
        target=target,
        descriptor=descriptor,
        raw=raw,
        manifest=manifest,
        config_raw=config_raw,
        config=parse_config(config_raw),
    )


@dataclass(slots=True)
class _Layer:
    """A distinct layer within one pull."""

    descriptor: Descriptor
    row: Row
    ready: anyio.Event = field(default_factory=anyio.Event)


@dataclass(slots=True)
class _Download:
    """A download that any number of pulls wait for; whoever holds the lock does it, for all.

    When the one who does it is cancelled, the next takes over where he ended; with the last it stops.
    """

    size: int
    received: int = 0
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    watchers: list[Row] = field(default_factory=list)
    failure: tuple[str, RegistryFault] | None = None

    def join(self, row: Row) -> None:
        """Add a watcher and show it what came before."""
        self.watchers.append(row)
        if self.received:
            row.set("Downloading", self.received, self.size)

    def show(self, received: int) -> None:
        """Tell all watchers how many bytes are there."""
        self.received = received
        for row in self.watchers:
            row.set("Downloading", received, self.size)


class Puller:
    """Brings layers into the store; one for the whole daemon, so that pulls of one blob meet.

    Args:
        store: where blobs go.
        lease: puts a digest under a lease; called before the digest is looked up.
        limit: most downloads at once, all pulls together.
        interval: seconds between two progress reports.
        pause: seconds before the second attempt of a download.
    """

    def __init__(
        self,
        store: ContentStore,
        *,
        lease: Callable[[str, Digest], Awaitable[None]],
        limit: int = 3,
        interval: float = INTERVAL,
        pause: float = PAUSE,
    ) -> None:
        self._store, self._lease, self._interval, self._pause = store, lease, interval, pause
        self._limit = limit
        self._slots = anyio.CapacityLimiter(limit)
        self._downloads: dict[Digest, _Download] = {}

    async def pull(
        self,
        resolved: Resolved,
        fetcher: Fetcher,
        *,
        reference: Reference,
        lease_id: str,
        apply: Apply,
        sink: Sink,
    ) -> None:
        """Store all blobs of a plugin and apply its layers, each as soon as it and those below it are there.

        Args:
            resolved: from ``resolve``.
            fetcher: gets the layers.
            reference: as the user gave it, for the progress lines.
            lease_id: keeps the blobs from collection until the caller has recorded them.
            apply: called once for each layer of the manifest, in its order.
            sink: takes the progress lines of REF 4.4.

        Raises:
            RegistryFault: a layer cannot be had; what came of it is kept, to be resumed.
            DigestMismatch: a layer is not what the manifest says.
            PluginsvcError: what the store, ``lease`` or ``apply`` raise.
        """
        manifest = resolved.manifest
        for digest in dict.fromkeys((resolved.descriptor.digest, *(blob.digest for blob in manifest.blobs))):
            await self._lease(lease_id, digest)
        await sink(Line(status=f"Pulling from {reference.familiar_name}", id=reference.tag or str(reference)))
        await sink(Line(status=f"Digest: {resolved.target}"))
        await self._store.put(resolved.config_raw, manifest.config.digest)
        await self._store.put(resolved.raw, resolved.descriptor.digest)

        board = Board()
        layers = {layer.digest: _Layer(layer, board.row(layer.digest.short)) for layer in manifest.layers}
        missing: list[_Layer] = []
        for layer in layers.values():
            if await self._store.size(layer.descriptor.digest) == layer.descriptor.size:
                layer.row.set("Already exists")
                layer.ready.set()
            else:
                layer.row.set("Waiting")
                missing.append(layer)
        queue = iter(missing)

        async def fetch() -> None:
            for layer in queue:  # shared: whoever is free takes the next
                await self._fetch(layer, fetcher)
                layer.ready.set()

        async with report(board, sink, interval=self._interval), anyio.create_task_group() as group:
            for _ in range(min(self._limit, len(missing))):
                group.start_soon(fetch)
            await self._apply(manifest.layers, layers, apply)

    async def _apply(self, order: list[Descriptor], layers: dict[Digest, _Layer], apply: Apply) -> None:
        last = {descriptor.digest: place for place, descriptor in enumerate(order)}
        for place, descriptor in enumerate(order):
            row = layers[descriptor.digest].row
            await layers[descriptor.digest].ready.wait()

            def consumed(count: int, row: Row = row, total: int = descriptor.size) -> None:
                row.set("Extracting", count, total)

            consumed(0)
            await apply(self._store.path(descriptor.digest), descriptor, consumed)
            if last[descriptor.digest] == place:
                row.set("Complete")

    async def _fetch(self, layer: _Layer, fetcher: Fetcher) -> None:
        """Have the layer in the store, by our own work or that of another pull."""
        descriptor = layer.descriptor
        layer.row.set("Pulling fs layer")
        download = self._downloads.setdefault(descriptor.digest, _Download(descriptor.size))
        download.join(layer.row)
        try:
            async with download.lock:
                if await self._store.size(descriptor.digest) != descriptor.size:
                    if download.failure is not None and download.failure[0] == fetcher.source:
                        raise download.failure[1]
                    await self._download(descriptor, fetcher, download)
        finally:
            download.watchers.remove(layer.row)
            if not download.watchers:
                del self._downloads[descriptor.digest]
        layer.row.set("Download complete")

    async def _download(self, descriptor: Descriptor, fetcher: Fetcher, download: _Download) -> None:
        digest, size = descriptor.digest, descriptor.size
        async with self._slots, self._store.ingest(f"layer {digest}", digest=digest, size=size) as ingest:
            resumed = ingest.offset > 0

            async def attempt() -> None:
                if ingest.offset == size:
                    return
                async with fetcher.open(descriptor, offset=ingest.offset) as chunks:
                    async for chunk in chunks:
                        await ingest.write(chunk)
                        download.show(ingest.offset)

            try:
                await retrying(attempt, pause=self._pause)
                try:
                    await ingest.commit(digest, size)
                except DigestMismatch:
                    if not resumed:
                        raise
                    # what an earlier try left may have been damaged since
                    await retrying(attempt, pause=self._pause)
                    await ingest.commit(digest, size)
            except RegistryFault as exc:
                # others who wait for the same from the same place need not find out one after the other
                if exc.temporary:
                    download.failure = fetcher.source, exc
                raise

"""Pull: a reference becomes a plugin's manifest and config, then layers in the store, handed on in manifest order."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

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
from pluginsvc.transfer.layer import Download, Layer
from pluginsvc.transfer.progress import INTERVAL, Board, Sink, report
from pluginsvc.transfer.retry import PAUSE, retrying

Apply = Callable[[int, Descriptor, Callable[[int], None], int | None], Awaitable[None]]
"""Puts one layer on top: gets a file descriptor to read the blob by, the layer's descriptor, and what to tell how many
bytes are consumed; for a blob that is being downloaded also an eventfd that counts up those that are there, verified
when the pull ends well. Without one all are there, as they were verified once."""


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
        self._downloads: dict[Digest, Download] = {}

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
        layers = {layer.digest: Layer(layer, board.row(layer.digest.short)) for layer in manifest.layers}
        missing: list[Layer] = []
        for layer in layers.values():
            if await self._store.size(layer.descriptor.digest) == layer.descriptor.size:
                layer.row.set("Already exists")
                layer.ready = True
            else:
                layer.row.set("Waiting")
                layer.fetched = True
                missing.append(layer)
        queue = iter(missing)

        async def fetch() -> None:
            for layer in queue:  # shared: whoever is free takes the next
                await self._fetch(layer, fetcher)
                layer.finish()

        async with report(board, sink, interval=self._interval), anyio.create_task_group() as group:
            for _ in range(min(self._limit, len(missing))):
                group.start_soon(fetch)
            await self._apply(manifest.layers, layers, apply)

    async def _apply(self, order: list[Descriptor], layers: dict[Digest, Layer], apply: Apply) -> None:
        last = {descriptor.digest: place for place, descriptor in enumerate(order)}
        for place, descriptor in enumerate(order):
            layer = layers[descriptor.digest]
            await layer.readable()
            await self._apply_one(layer, apply)
            if last[descriptor.digest] == place:
                layer.row.set("Complete")

    async def _apply_one(self, layer: Layer, apply: Apply) -> None:
        """Apply a layer; return when it is verified as well."""
        descriptor = layer.descriptor

        def consumed(count: int) -> None:
            if layer.ready:
                layer.row.set("Extracting", count, descriptor.size)

        consumed(0)
        async with AsyncExitStack() as stack:
            if layer.blob is None:
                blob = await stack.enter_async_context(self._store.reader(descriptor.digest))
            else:
                # ours to the end, also when the download ends before
                blob = os.dup(layer.blob)
                stack.callback(os.close, blob)
            counter = stack.enter_context(layer.counted()) if layer.fetched else None
            try:
                await apply(blob, descriptor, consumed, counter)
            except InvalidParameter:
                # when the registry did not send what it should, then that is the reason, and ends all of this
                await layer.whole()
                raise
        await layer.whole()
        consumed(descriptor.size)

    async def _fetch(self, layer: Layer, fetcher: Fetcher) -> None:
        """Have the layer in the store, by our own work or that of another pull."""
        descriptor = layer.descriptor
        layer.row.set("Pulling fs layer")
        download = self._downloads.setdefault(descriptor.digest, Download(descriptor.size))
        download.join(layer.row)
        try:
            async with download.lock:
                if await self._store.size(descriptor.digest) != descriptor.size:
                    if download.failure is not None and download.failure[0] == fetcher.source:
                        raise download.failure[1]
                    await self._download(layer, fetcher, download)
        finally:
            download.watchers.remove(layer.row)
            if not download.watchers:
                del self._downloads[descriptor.digest]
        layer.row.set("Download complete")

    async def _download(self, layer: Layer, fetcher: Fetcher, download: Download) -> None:
        descriptor = layer.descriptor
        digest, size = descriptor.digest, descriptor.size
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._slots)
            ingest = await stack.enter_async_context(self._store.ingest(f"layer {digest}", digest=digest, size=size))
            resumed = ingest.offset > 0
            if not resumed:
                # what an earlier try left may prove bad and be fetched anew: only when it is verified, is it applied
                stack.enter_context(layer.arriving(await stack.enter_async_context(ingest.reader())))

            async def attempt() -> None:
                if ingest.offset == size:
                    return
                async with fetcher.open(descriptor, offset=ingest.offset) as chunks:
                    async for chunk in chunks:
                        await ingest.write(chunk)
                        download.show(ingest.offset)
                        layer.arrived(ingest.written)

            try:
                await retrying(attempt, pause=self._pause)
                await ingest.flush()
                layer.arrived(size)
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

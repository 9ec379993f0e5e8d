"""Push: a plugin's blobs and manifest go to a registry, byte for byte as they are stored."""

from __future__ import annotations

from typing import Final

import anyio

from pluginsvc.content.store import ContentStore
from pluginsvc.errors import Internal
from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import OCI_MANIFEST, Descriptor, parse_manifest
from pluginsvc.model.progress import Aux, Line, ProgressDetail
from pluginsvc.model.reference import Reference
from pluginsvc.registry.errors import RegistryFault
from pluginsvc.registry.pusher import Pusher
from pluginsvc.transfer.progress import INTERVAL, Board, Row, Sink, report

_PREFIX: Final = "error pushing plugin"


class MissingBlob(Internal):
    """A blob of the plugin is not in the store, or not whole (REF 7.9: a push without it would break the tag)."""

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        super().__init__(
            f"{_PREFIX}: blob {digest} is missing from the content store: upgrade the plugin, or reinstall it"
        )


async def push(
    store: ContentStore,
    pusher: Pusher,
    *,
    raw: bytes,
    reference: Reference,
    source: str,
    sink: Sink,
    limit: int = 5,
    interval: float = INTERVAL,
) -> Aux:
    """Push a plugin and return what its last line says (REF 4.5).

    Args:
        store: has the blobs.
        pusher: knows the reference.
        raw: the manifest's bytes.
        reference: where to, with its tag.
        source: repository the plugin was pulled from, ``host/path``, to mount blobs from; empty if none.
        sink: takes the progress lines.
        limit: most uploads at once.
        interval: seconds between two progress reports.

    Raises:
        MissingBlob: nothing was sent.
        RegistryFault: the registry refuses; the manifest was not put, so the tag is as it was.
    """
    manifest = parse_manifest(raw)
    blobs = {blob.digest: blob for blob in manifest.blobs}
    for blob in blobs.values():
        if await store.size(blob.digest) != blob.size:
            raise MissingBlob(blob.digest)
    host, _, path = source.partition("/")
    origin = path if host == reference.domain and path != reference.path else ""

    async def send(blob: Descriptor, row: Row) -> None:
        if await pusher.exists(blob):
            row.set("Layer already exists")
        elif origin and await pusher.mount(blob, origin):
            row.set(f"Mounted from {Reference(domain=host, path=origin).familiar_name}")
        else:

            def sent(count: int) -> None:
                row.set("Pushing", count, blob.size)

            sent(0)
            await pusher.upload(blob, store.path(blob.digest), sent)
            row.set("Pushed")

    await sink(Line(status=f"The push refers to repository [{reference.familiar_name}]"))
    board = Board()
    rows = {digest: board.row(digest.short) for digest in (*blobs, Digest.of(raw))}
    for status in ("Preparing", "Waiting"):
        for row in rows.values():
            row.set(status)
    queue = iter(blobs.values())

    async def work() -> None:
        for blob in queue:  # shared: whoever is free takes the next
            await send(blob, rows[blob.digest])

    try:
        async with report(board, sink, interval=interval):
            async with anyio.create_task_group() as group:
                for _ in range(min(limit, len(blobs))):
                    group.start_soon(work)
            row = rows[Digest.of(raw)]
            row.set("Pushing", 0, len(raw))
            media_type = manifest.media_type or OCI_MANIFEST  # OCI alone lets it out
            digest = await pusher.put_manifest(raw, media_type)
            row.set("Pushed")
    except RegistryFault as exc:
        exc.args = (f"{_PREFIX}: {exc}",)
        raise
    aux = Aux(tag=reference.tag or "", digest=str(digest), size=len(raw))
    await sink(Line(progress_detail=ProgressDetail(), aux=aux))
    return aux

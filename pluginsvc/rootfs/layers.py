"""Pull: a manifest's layers through one confined child, in order, onto one staging directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread

from pluginsvc.errors import Internal
from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import Descriptor
from pluginsvc.rootfs.child import Child, UnpackFailed
from pluginsvc.rootfs.source import InvalidArchive


class LayerDamaged(Internal):
    """A stored blob has changed since it was verified."""

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        super().__init__(f"stored layer {digest} is damaged: check the disk, then pull again")


class Unpacker:
    """Applies layers one on top of the other (OCI layer.md); made by ``Confinement.unpack``."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._turn = anyio.Lock()

    async def apply(self, path: Path, descriptor: Descriptor, on_bytes: Callable[[int], None]) -> None:
        """Apply one layer; call it in the manifest's order (REF 7.21). After an error this unpacker is of no more use.

        Args:
            path: the blob, its digest verified; plain, gzip or zstd by its magic.
            descriptor: of the layer, for messages.
            on_bytes: gets the number of the blob's bytes read so far, its size at the end.

        Raises:
            InvalidArchive: the layer is broken or holds what must not be unpacked.
            LayerDamaged: the blob is not what its digest says.
            DiskFull, UnpackFailed, ChildFailed: the machine is at fault.
        """
        async with self._turn:
            try:
                blob = await anyio.to_thread.run_sync(os.open, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as exc:
                raise UnpackFailed(f"layer {descriptor.digest} cannot be read: {exc.strerror}") from exc
            try:
                self._child.send({"job": "apply", "algorithm": descriptor.digest.algorithm}, (blob,))
            finally:
                os.close(blob)
            try:
                found = await self._child.result(on_bytes)
            except InvalidArchive as exc:
                reason = f"layer {descriptor.digest.short}: {exc.reason}"
                raise InvalidArchive(reason, entry=exc.entry, offset=exc.offset) from exc
            # the blob was verified when it was stored; this is about what the disk has done to it since
            if found.get("digest") != descriptor.digest.hex:
                raise LayerDamaged(descriptor.digest)

    async def finish(self) -> None:
        """Set the times of directories and see the child end well.

        Raises:
            ChildFailed: it did not.
        """
        async with self._turn:
            self._child.send({"job": "finish"}, ())
            await self._child.result()
            await self._child.finish()

"""Pull: a manifest's layers through one confined child, in order, onto one staging directory."""

from __future__ import annotations

import os
from collections.abc import Callable

import anyio

from pluginsvc.errors import Internal
from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import Descriptor
from pluginsvc.rootfs.child import Child
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

    async def apply(
        self, blob: int, descriptor: Descriptor, on_bytes: Callable[[int], None], arriving: int | None
    ) -> None:
        """Apply one layer; call it in the manifest's order (REF 7.21). After an error this unpacker is of no more use.

        Args:
            blob: descriptor of the blob; plain, gzip or zstd by its magic. It is read from its beginning.
            descriptor: of the layer.
            on_bytes: gets the number of the blob's bytes read so far, its size at the end.
            arriving: an eventfd that counts up the bytes there are, for a blob that is being written; whoever writes it
                verifies it, and the rootfs must not be used before. None: all are there, and are verified here.

        Raises:
            InvalidArchive: the layer is broken or holds what must not be unpacked.
            LayerDamaged: the blob is not what its digest says.
            DiskFull, UnpackFailed, ChildFailed: the machine is at fault.
        """
        async with self._turn:
            verify = descriptor.digest.algorithm if arriving is None else None
            counter = _counted(descriptor.size) if arriving is None else arriving
            try:
                self._child.send({"job": "apply", "size": descriptor.size, "verify": verify}, (blob, counter))
            finally:
                if arriving is None:
                    os.close(counter)
            try:
                found = await self._child.result(on_bytes)
            except InvalidArchive as exc:
                reason = f"layer {descriptor.digest.short}: {exc.reason}"
                raise InvalidArchive(reason, entry=exc.entry, offset=exc.offset) from exc
            # the blob was verified when it was stored; this is about what the disk has done to it since
            if verify and found.get("digest") != descriptor.digest.hex:
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


def _counted(size: int) -> int:
    """Return an eventfd that says that ``size`` bytes are there."""
    counter = os.eventfd(0, os.EFD_CLOEXEC)
    os.eventfd_write(counter, size)
    return counter

"""Create: the archive of a new plugin through the confined child, into a staging directory and a layer blob."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from pluginsvc.errors import first_leaf
from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import MAX_MANIFEST
from pluginsvc.rootfs.child import Child, ChildFailed, DiskFull, UnpackFailed, bounded_memory_file, open_directory
from pluginsvc.rootfs.tee import Teed, tee

_PIPE_SIZE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Archive:
    """What a plugin's archive held.

    Attributes:
        config: the bytes of config.json, or None.
        rootfs: whether there was a ``rootfs``, be it an empty directory.
        digest: of the layer blob, gzip.
        diff_id: digest of the layer's plain tar.
        size: of the layer blob, in bytes.
    """

    config: bytes | None
    rootfs: bool
    digest: Digest
    diff_id: Digest
    size: int


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """Make a large pipe; each end is closed by its stack."""
    ends = os.pipe()
    reader.callback(os.close, ends[0])
    writer.callback(os.close, ends[1])
    # EPERM: this user's pipes are large enough together, says the kernel; a small one works too
    with suppress(PermissionError):
        fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    return ends


async def ingest(child: Child, body: AsyncIterator[bytes], staging: Path, blob: int, *, level: int) -> Archive:
    """Unpack a plugin's archive and make its layer, in one pass; see ``Confinement.ingest``.

    Both digests are computed on this side of the pipe, so that not even a subverted child could lie about them.
    """
    with ExitStack() as ours, ExitStack() as theirs, ExitStack() as feeding:
        root = await open_directory(staging)
        theirs.callback(os.close, root)
        child_body, feed_end = _pipe(theirs, feeding)
        layer, child_layer = _pipe(ours, theirs)
        os.set_blocking(feed_end, False)
        config = bounded_memory_file("pluginsvc-config", MAX_MANIFEST)
        ours.callback(os.close, config)
        child.send({"job": "ingest", "limit": MAX_MANIFEST}, (root, child_body, child_layer, config))
        theirs.close()
        teed: list[Teed] = []
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_feed, body, feed_end, feeding)
                group.start_soon(_tee, layer, blob, level, teed)
                try:
                    found = await child.result()
                    await child.finish()
                except BaseException:
                    # the pipes end with the child, and the thread with its pipe
                    await child.kill()
                    raise
        except BaseExceptionGroup as group_error:
            raise first_leaf(group_error) from group_error
        return Archive(
            config=_config(found.get("config"), config),
            rootfs=found.get("rootfs") is True,
            digest=Digest.sha256(teed[0].digest),
            diff_id=Digest.sha256(teed[0].diff_id),
            size=teed[0].size,
        )


async def _feed(body: AsyncIterator[bytes], fd: int, feeding: ExitStack) -> None:
    """Write the body to the child's pipe as fast as it reads, then end the pipe."""
    with feeding:
        async for chunk in body:
            view = memoryview(chunk)
            while view:
                try:
                    view = view[os.write(fd, view) :]
                except BlockingIOError:
                    await anyio.wait_writable(fd)
                except BrokenPipeError:
                    # the child has its reasons and states them as its result
                    return


async def _tee(layer: int, blob: int, level: int, teed: list[Teed]) -> None:
    try:
        teed.append(await anyio.to_thread.run_sync(lambda: tee(layer, blob, level=level)))
    except OSError as exc:
        kind = DiskFull if exc.errno in {errno.ENOSPC, errno.EDQUOT} else UnpackFailed
        raise kind(f"the layer cannot be written: {exc.strerror}") from exc


def _config(length: Any, fd: int) -> bytes | None:
    """Read the config that the child left in memory."""
    if length is None:
        return None
    if not isinstance(length, int) or not 0 <= length <= MAX_MANIFEST:
        raise ChildFailed("sent a message that cannot be understood")
    return os.pread(fd, length, 0)

"""Compress a layer and compute both its digests in one pass; blocks, and knows no loop: run it in a thread.

Two threads share the work: one reads and hashes, the other compresses. The descriptor that the first reads from is its
own, because it may outlive a second that failed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

from isal import isal_zlib

from pluginsvc.rootfs.source import ahead

STEP: Final = 1 << 18
"""Bytes hashed and compressed in one go. Below it, changing threads costs more than the work; and it must not depend on
how the bytes arrive, because isal's output depends on it."""

_MEMORY: Final = 3
"""zlib's memLevel: of isal's buffers the second smallest. Codes are then fitted to shorter stretches, which makes blobs
1.5 % smaller than its default does, in the same time (docs/performance.md)."""


@dataclass(frozen=True, slots=True)
class Teed:
    """What came out: hex sha256 of the compressed and of the plain bytes, and the compressed size in bytes."""

    digest: str
    diff_id: str
    size: int


def tee(source: int, blob: int, *, level: int) -> Teed:
    """Read ``source`` to its end and write it as gzip to ``blob``; equal input gives equal bytes (no time, no name).

    Args:
        source: descriptor of a pipe.
        blob: descriptor of a file, written from where it stands.
        level: isal's, 0 (fastest) to 3 (smallest).

    Raises:
        OSError: reading or writing failed, for example ENOSPC.
    """
    plain, packed = hashlib.sha256(), hashlib.sha256()
    compressor = isal_zlib.compressobj(level, isal_zlib.DEFLATED, 31, _MEMORY)
    pending: list[bytes] = []
    held = size = 0

    def put() -> None:
        nonlocal pending, held, size
        view = memoryview(b"".join(pending))
        packed.update(view)
        while view:
            view = view[os.write(blob, view) :]
        size += held
        pending, held = [], 0

    for block in ahead(_blocks(os.dup(source), plain)):
        pending.append(compressor.compress(block))
        held += len(pending[-1])
        if held >= STEP:
            put()
    pending.append(compressor.flush())
    held += len(pending[-1])
    put()
    return Teed(packed.hexdigest(), plain.hexdigest(), size)


def _blocks(source: int, plain: Any) -> Generator[memoryview, None, None]:
    """Read blocks of ``STEP`` bytes, the last one shorter, hash them on the way, and close ``source``."""
    try:
        filled = STEP
        while filled == STEP:
            block, filled = memoryview(bytearray(STEP)), 0
            while filled < STEP and (got := os.readv(source, [block[filled:]])):
                filled += got
            plain.update(block[:filled])
            yield block[:filled]
    finally:
        os.close(source)

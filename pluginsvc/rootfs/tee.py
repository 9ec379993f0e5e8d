"""Compress a layer and compute both its digests in one pass; blocks, and knows no loop: run it in a thread.

Standard library and isal only.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Final

from isal import isal_zlib

STEP: Final = 1 << 18
"""Bytes hashed and compressed in one go. Below it, changing threads costs more than the work; and it must not depend on
how the bytes arrive, because isal's output depends on it."""


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
    compressor = isal_zlib.compressobj(level, isal_zlib.DEFLATED, 31)
    buffer = memoryview(bytearray(STEP))
    pending: list[bytes] = []
    held = size = 0
    ended = False
    while not ended:
        filled = 0
        while filled < STEP and not ended:
            got = os.readv(source, [buffer[filled:]])
            ended = got == 0
            filled += got
        plain.update(buffer[:filled])
        pending.append(compressor.compress(buffer[:filled]))
        held += len(pending[-1])
        if ended:
            pending.append(compressor.flush())
            held += len(pending[-1])
        if held >= STEP or ended:
            view = memoryview(b"".join(pending))
            packed.update(view)
            while view:
                view = view[os.write(blob, view) :]
            size += held
            pending, held = [], 0
    return Teed(packed.hexdigest(), plain.hexdigest(), size)

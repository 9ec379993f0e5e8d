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
"""Least number of bytes hashed, compressed or written in one go; below it, changing threads costs more."""

_BUFFER: Final = 1 << 20


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
    buffer = memoryview(bytearray(_BUFFER))
    pending: list[bytes] = []
    held = size = 0

    def flush() -> None:
        nonlocal pending, held
        view = memoryview(b"".join(pending))
        pending, held = [], 0
        packed.update(view)
        while view:
            view = view[os.write(blob, view) :]

    ended = False
    while not ended:
        filled = 0
        while filled < STEP and not ended:
            got = os.readv(source, [buffer[filled:]])
            ended = got == 0
            filled += got
        plain.update(buffer[:filled])
        pending.append(compressor.compress(buffer[:filled]))
        if ended:
            pending.append(compressor.flush())
            held += len(pending[-1]) + len(pending[-2])
        else:
            held += len(pending[-1])
        if held >= STEP or ended:
            size += held
            flush()
    return Teed(packed.hexdigest(), plain.hexdigest(), size)

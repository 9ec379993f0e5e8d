"""Sparse files in tar: old GNU, and GNU's pax formats 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files").

Part of the confined child: standard library, isal, zstd and errors only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pluginsvc.rootfs.source import InvalidArchive

Extents = list[tuple[int, int]]

_BLOCK = 512
_MAX_EXTENTS = 1 << 16
"""As many as fit in about one MiB of map."""
_PAIR = 24


class PaxSparse(NamedTuple):
    """What a pax header says about a sparse file; ``inline``: the map stands before the data (format 1.0)."""

    extents: Extents
    real_size: int
    inline: bool


def _malformed() -> InvalidArchive:
    return InvalidArchive("its sparse map is malformed")


def old_gnu(block: bytes, more: Callable[[], bytes], number: Callable[[bytes, str], int]) -> tuple[Extents, int]:
    """Decode the map in a header of type ``S`` and the blocks that continue it.

    Args:
        block: the header.
        more: gives the next block.
        number: decodes a field.

    Returns:
        The extents and the real size in bytes.

    Raises:
        InvalidArchive: the map is malformed or too long.
    """
    extents: Extents = []

    def add(part: bytes) -> None:
        for at in range(0, len(part), _PAIR):
            if not part[at + 12]:
                break
            extents.append((number(part[at : at + 12], "offset"), number(part[at + 12 : at + _PAIR], "length")))

    real_size = number(block[483:495], "real size")
    add(block[386:482])
    extended = block[482]
    while extended:
        if len(extents) > _MAX_EXTENTS:
            raise InvalidArchive("its sparse map is too long")
        block = more()
        add(block[:504])
        extended = block[504]
    return extents, real_size


def _integer(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise _malformed()
    return int(text)


def pax(records: dict[bytes, bytes]) -> PaxSparse | None:
    """Return what the records of a pax header say of a sparse file; None when they do not speak of one.

    Raises:
        InvalidArchive: the map is malformed.
    """
    major, minor = records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")
    if major is not None or minor is not None:
        if (major, minor) != (b"1", b"0"):
            raise InvalidArchive("its sparse format is not known")
        return PaxSparse([], _integer(records.get(b"GNU.sparse.realsize", b"")), inline=True)
    if (text := records.get(b"GNU.sparse.map")) is None:
        # a map of no extents has no records of its own in format 0.0
        if (size := records.get(b"GNU.sparse.size")) is None:
            return None
        return PaxSparse([], _integer(size), inline=False)
    numbers = [_integer(part) for part in text.split(b",")] if text else []
    if len(numbers) % 2:
        raise _malformed()
    extents = list(zip(numbers[::2], numbers[1::2], strict=True))
    return PaxSparse(extents, _integer(records.get(b"GNU.sparse.size", b"")), inline=False)


def inline_map(more: Callable[[], bytes], *, limit: int) -> tuple[Extents, int]:
    """Read a map that stands before the data: decimal numbers, a newline after each, filled up to a block.

    Args:
        more: gives the next block.
        limit: of the map's size, in bytes.

    Returns:
        The extents, and how many bytes were read.

    Raises:
        InvalidArchive: the map is malformed or longer than ``limit``.
    """
    data, used, wanted = b"", 0, 1
    numbers: list[int] = []
    while len(numbers) < wanted:
        line, newline, rest = data.partition(b"\n")
        if newline:
            numbers.append(_integer(line))
            data = rest
            if len(numbers) == 1:
                wanted += 2 * numbers[0]
                if numbers[0] > _MAX_EXTENTS:
                    raise InvalidArchive("its sparse map is too long")
        elif used + _BLOCK > limit or len(data) > _PAIR:
            raise _malformed()
        else:
            data += more()
            used += _BLOCK
    return list(zip(numbers[1::2], numbers[2::2], strict=True)), used


def check(extents: Extents, *, real_size: int, stored: int) -> Extents:
    """Return the extents that hold data, in order.

    Args:
        extents: offset and length of each, as the archive says.
        real_size: of the file, in bytes.
        stored: bytes of data in the archive.

    Raises:
        InvalidArchive: they overlap, go backwards, or do not agree with the sizes.
    """
    end = 0
    for offset, length in extents:
        if offset < end or length < 0:
            raise _malformed()
        end = offset + length
    if end > real_size or real_size >= 1 << 63 or sum(length for _, length in extents) != stored:
        raise _malformed()
    return [extent for extent in extents if extent[1]]

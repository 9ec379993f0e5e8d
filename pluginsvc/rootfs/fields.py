"""The small things of which tar headers are made: numbers, checksums, times, paths, pax records (POSIX pax(1)).

Part of the confined child: standard library, isal, zstd and errors only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from zlib import adler32

from pluginsvc.rootfs.source import InvalidArchive

MAX_PATH: Final = 4095
MAX_COMPONENT: Final = 255


def checksum(block: bytes) -> int:
    """Return the sum of the bytes of a header block.

    The low half of an Adler-32 is one more than the sum of its bytes, modulo 65521: exact for 256 bytes, or twice as
    many of ASCII, and much quicker than adding in Python.
    """
    if block.isascii():
        return (adler32(block) & 0xFFFF) - 1
    return (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2


def clean(name: bytes) -> bytes:
    """Return a path relative to the root, without empty and ``.`` components.

    Raises:
        InvalidArchive: it leads out of the root, or no file system could hold it.
    """
    parts = [part for part in name.split(b"/") if part and part != b"."]
    if b".." in parts:
        raise InvalidArchive("the path has a '..' in it", entry=name)
    if b"\0" in name:
        raise InvalidArchive("the path has a NUL byte in it", entry=name)
    if len(name) > MAX_COMPONENT:
        if max(map(len, parts), default=0) > MAX_COMPONENT:
            raise InvalidArchive(f"a part of the path is longer than {MAX_COMPONENT} bytes", entry=name)
        if len(name) > MAX_PATH:
            raise InvalidArchive(f"the path is longer than {MAX_PATH} bytes", entry=name)
    return b"/".join(parts)


@lru_cache(maxsize=1024)  # modes and owners repeat
def number(field: bytes, what: str) -> int:
    """Decode an octal or base-256 field of a header.

    Args:
        field: the bytes, at least one.
        what: it is, for the message.

    Raises:
        InvalidArchive: it is no number.
    """
    if field[0] & 0x80:
        # GNU base-256: two's complement without the marker bit, whose neighbour is the sign
        value = int.from_bytes(field, "big")
        bits = len(field) * 8
        return value - (1 << bits) if field[0] & 0x40 else value - (1 << (bits - 1))
    text = field.strip(b" \0")
    if not text.isdigit():
        text = field.partition(b"\0")[0].strip(b" ")
        if not text:
            return 0
    try:
        return int(text, 8) if text.isdigit() else _reject(field, what)
    except ValueError:
        return _reject(field, what)


def _reject(field: bytes, what: str) -> int:
    raise InvalidArchive(f"its {what} is not a number: {field!r}")


def decimal(text: bytes, what: str) -> int:
    """Decode a number of a pax record; ``what`` it is goes into the message.

    Raises:
        InvalidArchive: it is no number, or one of more than 20 digits.
    """
    if not text.isdigit() or len(text) > 20:
        raise InvalidArchive(f"its {what} is not a decimal number: {text[:40]!r}")
    return int(text)


def nanoseconds(text: bytes) -> int:
    """Decode a pax time: decimal seconds with an optional sign and fraction; below 1 ns is cut off.

    Raises:
        InvalidArchive: it is no such number.
    """
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    if (fraction and not fraction.isdigit()) or not (whole or fraction):
        raise InvalidArchive(f"its mtime is not a number of seconds: {text[:40]!r}")
    value = decimal(whole or b"0", "mtime") * 10**9 + int(fraction[:9].ljust(9, b"0"))
    return -value if text.startswith(b"-") else value


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Decode the records of a pax extended header; of repeated keywords the last counts (POSIX pax(1)).

    The repeated offset and numbytes of GNU's sparse format 0.0 become the ``GNU.sparse.map`` of format 0.1.

    Raises:
        InvalidArchive: a record is malformed.
    """
    records: dict[bytes, bytes] = {}
    pairs: list[bytes] = []
    at = 0
    while at < len(data):
        digits, space, _ = data[at : at + 8].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) != length or not record.endswith(b"\n") or not key or not equals:
            if not data[at:].strip(b"\0"):
                break
            raise InvalidArchive("a record of the pax header is malformed")
        if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
            if (key == b"GNU.sparse.offset") is bool(len(pairs) % 2):
                raise InvalidArchive("the sparse map of the pax header is malformed")
            pairs.append(value)
        else:
            records[key] = value
        at += length
    if pairs:
        records[b"GNU.sparse.map"] = b",".join(pairs)
    return records


@lru_cache(maxsize=4096)  # sums of headers are few
def _stated(field: bytes) -> tuple[int, int]:
    """Return the sum that a checksum field states, and the same as of a header with this field in it, not blanks."""
    stated = number(field, "checksum")
    return stated, stated + sum(field) - 256


def sound(block: bytes, field: bytes) -> bool:
    """Tell whether the checksum is right; some old programs took the bytes as signed."""
    try:
        stated, whole = _stated(field)
    except InvalidArchive:
        return False
    if checksum(block) == whole:
        return True
    plain = block[:148] + b" " * 8 + block[156:]
    return sum(byte - 256 if byte > 127 else byte for byte in plain) == stated

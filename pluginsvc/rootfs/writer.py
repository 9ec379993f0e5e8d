"""Writes the layer of a created plugin: a plain tar with headers made anew, so that equal content gives equal bytes.

Fresh headers also mean that nothing in a hostile header survives for another reader to understand differently. Only
what ustar cannot say goes into a pax header (POSIX pax(1)).

Part of the confined child: standard library, isal, zstd and errors only.
"""

from __future__ import annotations

import os
from typing import Final

from pluginsvc.rootfs.fields import checksum
from pluginsvc.rootfs.tar import BLOCK, BLOCK_DEVICE, CHAR, DIRECTORY, FILE, Entry

_STEP: Final = 1 << 18
_COPY_BELOW: Final = 1 << 16
_FORMAT: Final = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0        %b%bustar\x0000" + bytes(64) + b"%07o\0%07o\0" + bytes(167)
_MAX_ID: Final = 0o7777777
_MAX_SIZE: Final = 0o77777777777
_NAME: Final = 100
_DEVICES: Final = {CHAR, BLOCK_DEVICE}
_NO_DEVICE: Final = (0, 0)


class Writer:
    """Writes entries to ``fd``, a pipe, at least 256 KiB at a time."""

    __slots__ = ("_fd", "_pending")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pending = bytearray()

    def entry(self, entry: Entry) -> None:
        """Write the header of ``entry``; its data follows by ``data`` and ``pad``."""
        _, kind, mode, uid, gid, mtime_ns, size, link, device, xattrs, extents, _, _ = entry
        name = (entry.name or b".") + b"/" if kind == DIRECTORY else entry.name
        seconds, fraction = divmod(mtime_ns, 10**9)
        if kind != FILE:
            size = 0
        if (
            len(name) <= _NAME
            and len(link) <= _NAME
            and uid <= _MAX_ID
            and gid <= _MAX_ID
            and not fraction
            and 0 <= seconds <= _MAX_SIZE
            and size <= _MAX_SIZE
            and not xattrs
            and extents is None
        ):
            if kind not in _DEVICES:
                device = _NO_DEVICE
            self.data(_header(name, kind, mode, uid, gid, size, seconds, link, device))
        else:
            self._extended(entry, name, size, seconds)

    def _extended(self, entry: Entry, name: bytes, size: int, seconds: int) -> None:
        """Write the headers of an entry that ustar alone cannot hold."""
        records = _records(entry, name)
        sparse = b""
        if entry.extents is not None:
            sparse = _sparse_map(entry.extents, entry.real_size)
            size += len(sparse)
            records += _record(b"GNU.sparse.major", b"1") + _record(b"GNU.sparse.minor", b"0")
            records += _record(b"GNU.sparse.name", name) + _record(b"GNU.sparse.realsize", b"%d" % entry.real_size)
        if size > _MAX_SIZE:
            records += _record(b"size", b"%d" % size)
        base = b"PaxHeaders/" + entry.name.rpartition(b"/")[2][:80]
        self.data(_header(base, b"x", 0o644, 0, 0, len(records), 0, b"", _NO_DEVICE))
        self.data(records)
        self.pad(len(records))
        header = _header(
            name[-_NAME:],
            entry.kind,
            entry.mode,
            entry.uid if entry.uid <= _MAX_ID else 0,
            entry.gid if entry.gid <= _MAX_ID else 0,
            size if size <= _MAX_SIZE else 0,
            seconds if 0 <= seconds <= _MAX_SIZE else 0,
            entry.link[-_NAME:],
            entry.device if entry.kind in _DEVICES else _NO_DEVICE,
        )
        self.data(header)
        self.data(sparse)

    def data(self, piece: bytes | memoryview) -> None:
        """Write bytes; the view may change after the return."""
        if len(piece) < _COPY_BELOW:
            self._pending += piece
            if len(self._pending) >= _STEP:
                self.flush()
            return
        view = memoryview(piece)
        if self._pending:
            written = os.writev(self._fd, [self._pending, view])
            rest = written - len(self._pending)
            if rest < 0:
                del self._pending[:written]
                self.flush()
                rest = 0
            self._pending = bytearray()
            view = view[rest:]
        while view:
            view = view[os.write(self._fd, view) :]

    def pad(self, size: int) -> None:
        """Fill up after ``size`` bytes of data."""
        if short := -size % BLOCK:
            self._pending += bytes(short)

    def flush(self) -> None:
        """Write what is held back."""
        view = memoryview(self._pending)
        while view:
            view = view[os.write(self._fd, view) :]
        self._pending = bytearray()

    def end(self) -> None:
        """Write the end marker and what is held back."""
        self._pending += bytes(2 * BLOCK)
        self.flush()


def _header(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    seconds: int,
    link: bytes,
    device: tuple[int, int],
) -> bytes:
    block = _FORMAT % (
        name.ljust(_NAME, b"\0"), mode, uid, gid, size, seconds, kind, link.ljust(_NAME, b"\0"), *device
    )  # fmt: skip
    return b"%b%06o\0 %b" % (block[:148], checksum(block), block[156:])


def _record(key: bytes, value: bytes) -> bytes:
    """Encode one record of a pax header; its length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %b=%b\n" % (length, key, value)


def _records(entry: Entry, name: bytes) -> bytes:
    """Return the pax records for what the ustar header of ``entry`` cannot say."""
    records = b""
    if len(name) > _NAME:
        records += _record(b"path", name)
    if len(entry.link) > _NAME:
        records += _record(b"linkpath", entry.link)
    if entry.uid > _MAX_ID:
        records += _record(b"uid", b"%d" % entry.uid)
    if entry.gid > _MAX_ID:
        records += _record(b"gid", b"%d" % entry.gid)
    if entry.mtime_ns % 10**9 or not 0 <= entry.mtime_ns // 10**9 <= _MAX_SIZE:
        seconds, fraction = divmod(abs(entry.mtime_ns), 10**9)
        text = b"%b%d.%09d" % (b"-" if entry.mtime_ns < 0 else b"", seconds, fraction)
        records += _record(b"mtime", text.rstrip(b"0").rstrip(b"."))
    for key in sorted(entry.xattrs):
        records += _record(b"SCHILY.xattr." + key, entry.xattrs[key])
    return records


def _sparse_map(extents: list[tuple[int, int]], real_size: int) -> bytes:
    """Encode the map of GNU's pax format 1.0; an empty extent at the end gives the size of a hole there."""
    pairs = list(extents)
    if not pairs or sum(pairs[-1]) < real_size:
        pairs.append((real_size, 0))
    text = b"%d\n" % len(pairs) + b"".join(b"%d\n%d\n" % pair for pair in pairs)
    return text + bytes(-len(text) % BLOCK)

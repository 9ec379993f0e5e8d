"""A streaming tar reader: v7, ustar, GNU and pax, one pass, nothing believed (POSIX pax(1), GNU tar manual §D).

Part of the confined child: standard library, isal, zstd and errors only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from pluginsvc.rootfs import sparse
from pluginsvc.rootfs.fields import MAX_PATH, clean, decimal, nanoseconds, number, parse_pax, sound
from pluginsvc.rootfs.source import InvalidArchive, Source, printable

BLOCK: Final = 512
MAX_SPECIAL: Final = 1 << 20
"""Largest extended header, long name or sparse map, in bytes; the same as Go's archive/tar, so as Docker's."""
FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"

_ZEROS = bytes(BLOCK)
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
_FILES = {b"0", b"\0", b"7"}
_WITHOUT_DATA = {LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO}
_MAX_ID = 0xFFFFFFFE
_MAX_SECONDS = 1 << 55
_XATTR = b"SCHILY.xattr."
_ONE_FILE_ONLY = (b"path", b"linkpath", b"size", b"GNU.sparse.")


class Entry(NamedTuple):
    """One member of an archive; a tuple, because the dataclasses module takes 20 ms to import.

    Attributes:
        name: path relative to the root, clean: no leading slash, no empty, ``.`` or ``..`` part; the root is empty.
        kind: ``FILE``, ``LINK`` … as in the header.
        mode: permission and set-id bits.
        uid, gid: numeric owners; names in the archive are of another machine.
        mtime_ns: modification time in nanoseconds since the epoch, may be negative.
        size: bytes of data in the archive.
        link: target; of a hard link clean like ``name``.
        device: major and minor number.
        xattrs: those that may be restored.
        extents: where the data goes in a sparse file of ``real_size`` bytes: offset and length; None: all in one piece.
        offset: of the header in the stream.
    """

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    link: bytes
    device: tuple[int, int]
    xattrs: dict[bytes, bytes]
    extents: list[tuple[int, int]] | None
    real_size: int
    offset: int


def _restorable(name: bytes) -> bool:
    """Tell whether an extended attribute may be set.

    File capabilities and what users store. Not ``trusted.*`` (``trusted.overlay.*`` would steer an overlay that the
    rootfs becomes part of), nor the rest of ``security.*`` (labels belong to the host's policy), nor ``system.*``.
    """
    return name == b"security.capability" or (name.startswith(b"user.") and b"\0" not in name)


class Reader:
    """Iterates over the entries of ``source``; read an entry's data with ``read`` or leave it to be skipped.

    Args:
        source: the stream.
        marked: whether the end marker (two blocks of zeros) must be there; without it an archive that was cut
            between two entries looks whole.
    """

    __slots__ = ("_globals", "_marked", "_name", "_padding", "_source", "_unread")

    def __init__(self, source: Source, *, marked: bool) -> None:
        self._source = source
        self._marked = marked
        self._globals: dict[bytes, bytes] = {}
        # of the entry that is being decoded, for messages
        self._name: bytes | None = None
        self._unread = 0
        self._padding = 0

    def read(self, size: int) -> Iterable[memoryview]:
        """Give the next ``size`` bytes of the current entry's data; all of them must be taken."""
        self._unread -= size
        return self._source.chunks(size)

    def __iter__(self) -> Iterator[Entry]:
        source = self._source
        while True:
            if left := self._unread + self._padding:
                source.skip(left)
            offset, self._name = source.offset, None
            try:
                entry = self._next(offset)
            except InvalidArchive as exc:
                at = offset if exc.offset is None else exc.offset
                raise InvalidArchive(exc.reason, entry=self._name, offset=at) from exc
            if entry is None:
                return
            yield entry

    def _block(self) -> bytes | None:
        """Return the next header block; None at the end of the archive."""
        source = self._source
        if source.at_end():
            if source.offset == 0:
                raise InvalidArchive("it is empty")
            if self._marked:
                raise InvalidArchive("it is cut off: the end marker is missing", offset=source.offset)
            return None
        block = source.take(BLOCK)
        if block == _ZEROS:
            if not source.at_end() and source.take(BLOCK) != _ZEROS:
                raise InvalidArchive("a block of zeros stands between its entries")
            return None
        return block

    def _special(self, size: int) -> bytes:
        if not 0 <= size <= MAX_SPECIAL:
            raise InvalidArchive(f"an extended header of {size} bytes is too large, at most {MAX_SPECIAL} are taken")
        data = self._source.take(size)
        self._source.skip(-size % BLOCK)
        return data

    def _next(self, offset: int) -> Entry | None:
        local: dict[bytes, bytes] = {}
        long_name = long_link = None
        while (block := self._block()) is not None:
            fields = _HEADER.unpack(block)
            if not sound(block, fields[6]):
                if self._source.offset == BLOCK:
                    raise InvalidArchive("this is not a tar archive (plain, or with gzip or zstd)", offset=0)
                raise InvalidArchive("a header is corrupt: its checksum is wrong")
            kind = fields[7]
            if kind == b"V":
                # the label of a GNU tape has no data
                continue
            if kind in {b"x", b"X"}:
                local = parse_pax(self._special(number(fields[4], "size")))
            elif kind == b"g":
                self._add_globals(parse_pax(self._special(number(fields[4], "size"))))
            elif kind == b"L":
                long_name = self._special(number(fields[4], "size")).partition(b"\0")[0]
            elif kind == b"K":
                long_link = self._special(number(fields[4], "size")).partition(b"\0")[0]
            else:
                records = {**self._globals, **local} if self._globals else local
                name, link = _names(fields, records, long_name, long_link)
                self._name = name
                return self._entry(block, fields, records, name, link, offset)
        if local or long_name is not None or long_link is not None:
            raise InvalidArchive("it is cut off: an extended header is not followed by its entry")
        return None

    def _add_globals(self, records: dict[bytes, bytes]) -> None:
        for key in records:
            if key.startswith(_ONE_FILE_ONLY):
                raise InvalidArchive(f"a global pax header sets {printable(key)}, which only one file can have")
        self._globals.update(records)
        if sum(len(key) + len(value) for key, value in self._globals.items()) > MAX_SPECIAL:
            raise InvalidArchive(f"its global pax headers are larger than {MAX_SPECIAL} bytes")

    def _entry(
        self,
        block: bytes,
        fields: tuple[bytes, ...],
        records: dict[bytes, bytes],
        name: bytes,
        link: bytes,
        offset: int,
    ) -> Entry:
        kind = fields[7]
        size = decimal(records[b"size"], "size") if records.get(b"size") else number(fields[4], "size")
        if not 0 <= size < 1 << 63:
            raise InvalidArchive(f"its size {size} is out of range")
        extents: list[tuple[int, int]] | None = None
        real_size = 0
        if kind in _WITHOUT_DATA:
            # whatever the size says: as Go, so as Docker
            size = 0
        elif kind == b"D" or (kind in _FILES and name.endswith(b"/")):
            # of GNU's incremental archives, its data a list of names; or of archives older than the type
            kind = DIRECTORY
        elif kind == b"S":
            extents, real_size = sparse.old_gnu(block, self._take_block, number)
            kind = FILE
        elif kind in _FILES:
            kind = FILE
            if records and (found := sparse.pax(records)) is not None:
                extents, real_size = found.extents, found.real_size
                if found.inline:
                    extents, used = sparse.inline_map(self._take_block, limit=min(size, MAX_SPECIAL))
                    size -= used
        else:
            raise InvalidArchive(f"its type {kind!r} is not known")
        if extents is not None:
            extents = sparse.check(extents, real_size=real_size, stored=size)
        self._unread, self._padding = size, -size % BLOCK
        if kind in {LINK, SYMLINK} and (not link or b"\0" in link or len(link) > MAX_PATH):
            raise InvalidArchive("its link target is empty, too long or has a NUL byte in it")
        mode, uid, gid = _rights(block[100:124], records.get(b"uid"), records.get(b"gid"))
        return Entry(
            clean(name),
            kind,
            mode,
            uid,
            gid,
            _mtime(fields, records),
            size,
            clean(link) if kind == LINK else link,
            _device(fields) if kind in {CHAR, BLOCK_DEVICE} else (0, 0),
            _xattrs(records) if records else {},
            extents,
            size if extents is None else real_size,
            offset,
        )

    def _take_block(self) -> bytes:
        return self._source.take(BLOCK)


def _names(
    fields: tuple[bytes, ...], records: dict[bytes, bytes], long_name: bytes | None, long_link: bytes | None
) -> tuple[bytes, bytes]:
    """Return name and link target; a pax header has precedence over GNU's long names, and these over the header."""
    name, link = fields[0].partition(b"\0")[0], fields[8].partition(b"\0")[0]
    if fields[9] == b"ustar\x0000" and fields[14][0]:
        # star keeps times at the end of the prefix and says so in the last four bytes
        prefix = fields[14][:131] if fields[15].endswith(b"tar\0") else fields[14]
        name = prefix.partition(b"\0")[0] + b"/" + name
    name = name if long_name is None else long_name
    link = link if long_link is None else long_link
    if records:
        # an empty value takes a global one back
        name = records.get(b"GNU.sparse.name") or records.get(b"path") or name
        link = records.get(b"linkpath") or link
    return name, link


@lru_cache(maxsize=1024)  # an archive has few different ones
def _rights(fields: bytes, user: bytes | None, group: bytes | None) -> tuple[int, int, int]:
    """Decode mode, user and group, which stand side by side in a header; the pax records ``user``, ``group`` win."""
    uid = decimal(user, "uid") if user else number(fields[8:16], "uid")
    gid = decimal(group, "gid") if group else number(fields[16:], "gid")
    # the number above is -1, which chown(2) takes for "leave as it is"
    if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
        raise InvalidArchive(f"its owner {uid}:{gid} is out of range")
    return number(fields[:8], "mode") & 0o7777, uid, gid


def _mtime(fields: tuple[bytes, ...], records: dict[bytes, bytes]) -> int:
    text = records.get(b"mtime") if records else None
    value = nanoseconds(text) if text else number(fields[5], "mtime") * 10**9
    if abs(value) > _MAX_SECONDS * 10**9:
        raise InvalidArchive("its mtime is out of range")
    return value


def _device(fields: tuple[bytes, ...]) -> tuple[int, int]:
    major, minor = number(fields[12], "major number"), number(fields[13], "minor number")
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise InvalidArchive(f"its device number {major}:{minor} is out of range")
    return major, minor


def _xattrs(records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    names = (key[len(_XATTR) :] for key in records if key.startswith(_XATTR))
    return {name: records[_XATTR + name] for name in names if _restorable(name)}

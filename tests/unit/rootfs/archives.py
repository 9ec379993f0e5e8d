"""Archives for the tests of rootfs: made byte by byte where they are hostile, and ways to compare what came out."""

import hashlib
import os
import stat
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

from pluginsvc.rootfs.source import Source
from pluginsvc.rootfs.tar import Entry, Reader
from pluginsvc.rootfs.tree import Tree

END = bytes(1024)


def header(
    name: bytes,
    kind: bytes = b"0",
    *,
    size: int = 0,
    link: bytes = b"",
    mode: bytes = b"0000644\0",
    uid: bytes = b"0000000\0",
    gid: bytes = b"0000000\0",
    size_field: bytes | None = None,
    mtime: bytes = b"00000000000\0",
    magic: bytes = b"ustar\x0000",
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
    tail: dict[int, bytes] | None = None,
) -> bytes:
    """Return one header block with a right checksum, whatever its fields say; `tail`: raw bytes by their offset."""
    block = bytearray(512)
    fields = {
        0: name,
        100: mode,
        108: uid,
        116: gid,
        124: b"%011o\0" % size if size_field is None else size_field,
        136: mtime,
        148: b" " * 8,
        156: kind,
        157: link,
        257: magic,
        329: b"%07o\0" % device[0],
        337: b"%07o\0" % device[1],
        345: prefix,
    } | (tail or {})
    for at, value in fields.items():
        block[at : at + len(value)] = value
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes = b"", kind: bytes = b"0", **fields: Any) -> bytes:
    """Return header, data and padding."""
    return header(name, kind, size=len(data), **fields) + data + bytes(-len(data) % 512)


def pax(records: Iterable[tuple[bytes, bytes]], kind: bytes = b"x") -> bytes:
    """Return an extended header."""
    data = b""
    for key, value in records:
        length = 0
        while length != (size := len(b"%d %b=%b\n" % (length, key, value))):
            length = size
        data += b"%d %b=%b\n" % (length, key, value)
    return member(b"pax", data, kind)


class _Owning(Source):
    __slots__ = ()

    def __del__(self) -> None:
        os.close(self._fd)


def source(data: bytes) -> Source:
    """Return a stream over `data`."""
    fd = os.memfd_create("archive")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return _Owning(fd)


def entries(data: bytes, *, marked: bool = True) -> list[Entry]:
    """Return all entries of an archive."""
    return list(Reader(source(data), marked=marked))


def unpack(data: bytes, root: Path, *, marked: bool = True) -> None:
    """Unpack in this process what the confined child would unpack."""
    old = os.umask(0)
    fd = os.open(root, os.O_RDONLY)
    try:
        tree = Tree(fd)
        stream = source(data)
        reader = Reader(stream, marked=marked)
        for entry in reader:
            tree.place(entry, reader.read)
        stream.drain()
        tree.finish()
    finally:
        os.close(fd)
        os.umask(old)


def _paths(root: bytes) -> Iterator[bytes]:
    yield root
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            yield os.path.join(folder, name)


def snapshot(root: Path, *, times: bool = True) -> dict[bytes, Any]:
    """Return all that a tree holds, by path: type, mode, owners, time, content, links, extended attributes."""
    top = os.fsencode(root)
    inodes: dict[int, list[bytes]] = {}
    found: dict[bytes, Any] = {}
    for path in _paths(top):
        info = os.lstat(path)
        name = os.path.relpath(path, top)
        kind = stat.S_IFMT(info.st_mode)
        what: Any = None
        if stat.S_ISREG(info.st_mode):
            what = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
        elif stat.S_ISLNK(info.st_mode):
            what = os.readlink(path)
        elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
            what = info.st_rdev
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
        }
        mtime = info.st_mtime_ns if times else None
        found[name] = (kind, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, mtime, what, attributes)
        if not stat.S_ISDIR(info.st_mode):
            inodes.setdefault(info.st_ino, []).append(name)
    found[b"hard links"] = sorted(sorted(names) for names in inodes.values() if len(names) > 1)
    return found


def gnu_tar(*words: str | Path, **kwargs: Any) -> bytes:
    """Run GNU tar and return what it writes."""
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        ["tar", *words], check=True, capture_output=True, **kwargs
    )
    return done.stdout


async def body(data: bytes, step: int = 1 << 16) -> AsyncIterator[bytes]:
    """Give `data` as a request's body would come."""
    for at in range(0, len(data), step):
        yield data[at : at + step]

"""What is measured with: trees made of files that every machine has, as tars and as bodies of `create`.

The same machine makes the same bytes each time, as long as its Python stays the same.
"""

import io
import itertools
import json
import os
import random
import sysconfig
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, Self

PIECE = 1024 * 1024
"""Bytes that are sent, read and compressed at once."""

CONFIG: dict[str, Any] = {
    "description": "made by the bench",
    "entrypoint": ["/sample-volume-plugin", "/run/docker/plugins/p"],
    "env": [{"name": "DEBUG", "description": "1 logs request bodies", "settable": ["value"], "value": "0"}],
    "interface": {"socket": "p", "types": ["docker.volumedriver/1.0"]},
    "network": {"type": "none"},
    "linux": {"capabilities": ["CAP_SYS_ADMIN"]},
    "propagatedMount": "/mnt/state",
}
"""The socket's short name keeps dockerd's path to it within the 107 bytes of an address."""

_LARGEST = 4 * PIECE
_WANTED_SUFFIXES = (".py", ".pyi", ".so", ".h", ".txt", ".json", ".rst", ".md", ".js", ".css", ".a")


class Sink(Protocol):
    """All that is needed of a file to write a tar to it."""

    def write(self, data: bytes, /) -> object: ...


class Tree(Protocol):
    """What a layer is made of; its `repr` tells it from every other."""

    def write(self, out: Sink) -> int:
        """Write it as a tar and return the number of entries."""
        ...


@dataclass(frozen=True)
class Mixed:
    """A tree of the machine's own files, small and large ones in turn, so that both numbers are reached together.

    Attributes:
        top: folder that holds all of it; `a/b` makes both.
        entries: files and folders, at least.
        size: bytes in files, at least.
        offset: where in the list of files it starts, so that two trees differ.

    """

    top: str
    entries: int
    size: int
    offset: int = 0

    def write(self, out: Sink) -> int:
        """Write it as a tar and return the number of entries."""
        sources = [itertools.cycle(pool[(at := self.offset % len(pool)) :] + pool[:at]) for pool in _pool()]
        taken = [0, 0]
        entries = size = 0
        with _Tar(out) as tar:
            while entries < self.entries or size < self.size:
                which = int(size * self.entries < entries * self.size)
                path, short = next(sources[which])
                name = f"{self.top}/{taken[which] // len(_pool()[which]):03}/{'sl'[which]}{short}"
                taken[which] += 1
                try:
                    data = Path(path).read_bytes()
                except OSError:  # somebody works in that folder
                    continue
                entries += tar.add(name, data)
                size += len(data)
        return entries


@dataclass(frozen=True)
class Tiny:
    """A tree of tiny files: 0 to 2047 bytes of text, a hundred in a folder.

    Attributes:
        top: folder that holds all of it.
        files: how many.

    """

    top: str
    files: int

    def write(self, out: Sink) -> int:
        """Write it as a tar and return the number of entries."""
        text = b"".join(Path(path).read_bytes() for path, _ in _pool()[0][:200])
        random_ = random.Random(self.files)
        with _Tar(out) as tar:
            entries = 0
            for number in range(self.files):
                at = random_.randrange(len(text) - 2048)
                name = f"{self.top}/{number // 100:04}/{number % 100:02}"
                entries += tar.add(name, text[at : at + random_.randrange(2048)])
        return entries


class _Tar:
    """Writes files to a tar, each folder before what is in it."""

    def __init__(self, out: Sink) -> None:
        # tarfile wants a whole file object where it needs only `write`
        self._tar = tarfile.open(fileobj=_WriteOnly(out), mode="w|", bufsize=PIECE, format=tarfile.GNU_FORMAT)  # noqa: SIM115 - __exit__ closes it
        self._known: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._tar.close()

    def add(self, name: str, data: bytes) -> int:
        """Add a file and the folders above it that are not there yet; return how many entries that made."""
        folder = name.rpartition("/")[0]
        missing = []
        while folder and folder not in self._known:
            missing.append(folder)
            folder = folder.rpartition("/")[0]
        for folder in reversed(missing):
            self._known.add(folder)
            self._tar.addfile(_header(folder, tarfile.DIRTYPE, 0o755, 0))
        self._tar.addfile(_header(name, tarfile.REGTYPE, 0o644, len(data)), io.BytesIO(data))
        return len(missing) + 1


@cache
def _pool() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the machine's files that trees are made of, with a short name each: those under 32 kB, and larger ones."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    folders |= {"/usr/lib/python3", f"/usr/lib/{os.uname().machine}-linux-gnu", "/usr/include"}
    small: list[tuple[str, str]] = []
    large: list[tuple[str, str]] = []
    for number, folder in enumerate(sorted(folders)):
        for path, size in _files(folder):
            if 0 < size <= _LARGEST:
                (large if size >= 32 * 1024 else small).append((path, f"{number}{path.removeprefix(folder)}"))
    if not small or not large:
        raise RuntimeError(f"no files to make trees of in {sorted(folders)}")
    return small, large


def _files(folder: str) -> Iterator[tuple[str, int]]:
    """Give path and size of the files below a folder that are wanted, always in the same order."""
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # not on this machine, or gone
        return
    for entry in found:
        if entry.is_file(follow_symlinks=False) and entry.name.endswith(_WANTED_SUFFIXES):
            yield entry.path, entry.stat(follow_symlinks=False).st_size
    for entry in found:
        if entry.is_dir(follow_symlinks=False) and entry.name != "__pycache__":
            yield from _files(entry.path)


class _WriteOnly(io.RawIOBase):
    def __init__(self, out: Sink) -> None:
        self._out = out

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._out.write(data)
        return len(data)


def _header(name: str, kind: bytes, mode: int, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.mtime = kind, mode, size, 1_700_000_000
    return info


def head(salt: str, config: dict[str, Any] | None = None, files: Sequence[tuple[str, int, bytes]] = ()) -> bytes:
    """Return the beginning of a `create` body: config.json, rootfs/ and in it a file that makes it one of its kind.

    Args:
        salt: dockerd refuses a rootfs it has already, so each round needs another.
        config: CONFIG when None.
        files: (name, mode, bytes) of more files in rootfs/.

    """
    raw = json.dumps(CONFIG if config is None else config).encode()
    parts = [_member("config.json", 0o644, raw), _header("rootfs/", tarfile.DIRTYPE, 0o755, 0).tobuf()]
    parts += [_member(f"rootfs/{name}", mode, data) for name, mode, data in (("salt", 0o644, salt.encode()), *files)]
    return b"".join(parts)


def _member(name: str, mode: int, data: bytes) -> bytes:
    return _header(name, tarfile.REGTYPE, mode, len(data)).tobuf() + data + bytes(-len(data) % 512)


def body(beginning: bytes, rest: Path | None = None) -> Iterator[bytes]:
    """Return a `create` body in pieces: a `head`, then a tar file, or the end mark when there is none."""
    yield beginning
    if rest is None:
        yield bytes(1024)
        return
    with rest.open("rb") as file:
        while data := file.read(PIECE):
            yield data


def tiny(salt: str) -> Iterator[bytes]:
    """Return the `create` body of a plugin with next to nothing in it."""
    return body(head(salt))


def noise(path: Path, size: int, name: str) -> None:
    """Write a tar of one file of `size` bytes that no compressor makes smaller; the same each time."""
    source = random.Random(size)
    with path.open("wb") as file:
        file.write(_header(name, tarfile.REGTYPE, 0o644, size).tobuf())
        for start in range(0, size, PIECE):
            file.write(source.randbytes(min(PIECE, size - start)))
        file.write(bytes(-size % 512) + bytes(1024))

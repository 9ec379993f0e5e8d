"""What is measured with: trees made of files that every machine has, as tars and as layers of a published plugin.

The same machine makes the same bytes each time, as long as its Python stays the same.
"""

import hashlib
import io
import itertools
import json
import os
import random
import stat
import sysconfig
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Protocol

from tests.bench import wire

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
_CONFIG_TYPE = "application/vnd.docker.plugin.v1+json"
_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True)
class Tree:
    """What a tree shall be.

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


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


@cache
def _pool() -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Return the machine's files that trees are made of, with a short name each: those under 32 kB, and larger ones."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    folders |= {"/usr/lib/python3", f"/usr/lib/{os.uname().machine}-linux-gnu", "/usr/include"}
    small: list[tuple[Path, str]] = []
    large: list[tuple[Path, str]] = []
    for number, folder in enumerate(sorted(folders)):
        for base, inner, names in os.walk(folder):
            inner[:] = sorted(name for name in inner if name != "__pycache__")
            for path in (Path(base, name) for name in sorted(names) if name.endswith(_WANTED_SUFFIXES)):
                found = path.lstat()
                if stat.S_ISREG(found.st_mode) and 0 < found.st_size <= _LARGEST:
                    (large if found.st_size >= 32 * 1024 else small).append(
                        (path, f"{number}/{path.relative_to(folder)}")
                    )
    if not small or not large:
        raise RuntimeError(f"no files to make trees of in {sorted(folders)}")
    return small, large


def write_tree(tree: Tree, out: _Sink) -> int:
    """Write the tar of a tree and return its number of entries.

    Small and large files alternate so that entries and size come to their end together.
    """
    sources = [itertools.cycle(pool[tree.offset % len(pool) :] + pool[: tree.offset % len(pool)]) for pool in _pool()]
    taken = [0, 0]
    entries = size = 0
    known: set[str] = set()
    # tarfile wants a whole file object where it needs only `write`
    with tarfile.open(fileobj=_WriteOnly(out), mode="w|", bufsize=PIECE, format=tarfile.GNU_FORMAT) as tar:
        while entries < tree.entries or size < tree.size:
            which = int(size * tree.entries < entries * tree.size)
            path, short = next(sources[which])
            name = f"{tree.top}/{taken[which] // len(_pool()[which]):03}/{'sl'[which]}{short}"
            taken[which] += 1
            try:
                data = path.read_bytes()
            except OSError:  # somebody works in that folder
                continue
            for folder in reversed(Path(name).parents[:-1]):
                if str(folder) not in known:
                    known.add(str(folder))
                    tar.addfile(_header(str(folder), tarfile.DIRTYPE, 0o755, 0))
                    entries += 1
            tar.addfile(_header(name, tarfile.REGTYPE, 0o644, len(data)), io.BytesIO(data))
            entries += 1
            size += len(data)
    return entries


class _WriteOnly(io.RawIOBase):
    def __init__(self, out: _Sink) -> None:
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


def noise(path: Path, size: int, name: str) -> None:
    """Write a tar of one file of `size` bytes that no compressor makes smaller; the same each time."""
    source = random.Random(size)
    with path.open("wb") as file:
        file.write(_header(name, tarfile.REGTYPE, 0o644, size).tobuf())
        for start in range(0, size, PIECE):
            file.write(source.randbytes(min(PIECE, size - start)))
        file.write(bytes(-size % 512) + bytes(1024))


@dataclass(frozen=True)
class Layer:
    """A layer as it lies on disk, and what it unpacks to."""

    path: Path
    digest: str
    diff_id: str
    size: int
    entries: int


class _Compressor:
    """Takes a tar, gives the file, both digests and the size; zlib at 6, as layers in registries are."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._gzip = zlib.compressobj(6, zlib.DEFLATED, 31)
        self._plain, self._packed = hashlib.sha256(), hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._plain.update(data)
        self._put(self._gzip.compress(data))

    def _put(self, data: bytes) -> None:
        self._packed.update(data)
        self._file.write(data)

    def end(self) -> tuple[str, str]:
        self._put(self._gzip.flush())
        return f"sha256:{self._packed.hexdigest()}", f"sha256:{self._plain.hexdigest()}"


def make_layer(tree: Tree, path: Path) -> Layer:
    """Write the gzip layer of a tree."""
    with path.open("wb") as file:
        out = _Compressor(file)
        entries = write_tree(tree, out)
        digest, diff_id = out.end()
    return Layer(path, digest, diff_id, path.stat().st_size, entries)


@dataclass(frozen=True)
class Published:
    """A plugin in the registry.

    Attributes:
        repository: its path there.
        remote: the reference to pull it by.
        layers: with their files gone.

    """

    repository: str
    remote: str
    layers: list[Layer]


def publish(registry: str, repository: str, trees: Sequence[Tree], scratch: Path) -> Published:
    """Make a plugin with one layer a tree and put it into the registry, as neither side would: by plain PUTs."""
    with ThreadPoolExecutor(2) as pool:
        layers = list(pool.map(make_layer, trees, [scratch / f"layer-{n}" for n in range(len(trees))]))
    for layer in layers:
        wire.put_blob(registry, repository, layer.digest, layer.path)
        layer.path.unlink()
    rootfs = {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}
    config = json.dumps(CONFIG | {"rootfs": rootfs}).encode()
    config_digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    wire.put_blob(registry, repository, config_digest, config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "config": {"mediaType": _CONFIG_TYPE, "size": len(config), "digest": config_digest},
        "layers": [{"mediaType": _LAYER_TYPE, "size": layer.size, "digest": layer.digest} for layer in layers],
    }
    wire.put_manifest(registry, repository, "latest", _MANIFEST_TYPE, json.dumps(manifest).encode())
    return Published(repository, f"{registry}/{repository}:latest", layers)

"""Plugins in the registry to be installed: layers made of trees, kept in .cache/bench from run to run.

Compressing them costs a minute at full size. What is kept was made by this very code for the same tree and is hashed
again before it is used, so a damaged file is made anew. That the machine's own files may have changed does not matter.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from tests.bench import wire, workload
from tests.bench.workload import CONFIG, Tree
from tests.support import parts

CACHE = parts.PROJECT / ".cache" / "bench" / "layers"
_CONFIG_TYPE = "application/vnd.docker.plugin.v1+json"
_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True)
class Layer:
    """A layer's file, and what it unpacks to."""

    digest: str
    diff_id: str
    size: int
    entries: int


class _Compressor:
    """Takes a tar, gives the file and both digests; zlib at 6, as layers in registries are."""

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


def layer(tree: Tree, cache: Path = CACHE) -> tuple[Layer, Path]:
    """Return the gzip layer of a tree and its file, made only where there is none that fits.

    Args:
        tree: what is in it.
        cache: the folder that keeps them; layers made by other code than today's are thrown out of it.

    """
    code = b"".join(Path(str(module)).read_bytes() for module in (__file__, workload.__file__))
    folder = cache / hashlib.sha256(code).hexdigest()[:16]
    file = folder / f"{hashlib.sha256(repr(tree).encode()).hexdigest()[:16]}.tar.gz"
    note = file.with_suffix(".json")
    if file.exists() and note.exists():
        kept = Layer(**json.loads(note.read_text()))
        with file.open("rb") as source:
            if f"sha256:{hashlib.file_digest(source, 'sha256').hexdigest()}" == kept.digest:
                return kept, file
    folder.mkdir(parents=True, exist_ok=True)
    for other in cache.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    scratch = file.with_suffix(f".{os.getpid()}")
    try:
        with scratch.open("wb") as out:
            compressor = _Compressor(out)
            entries = tree.write(compressor)
            digest, diff_id = compressor.end()
        made = Layer(digest, diff_id, scratch.stat().st_size, entries)
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
    note.write_text(json.dumps(asdict(made)))
    return made, file


@dataclass(frozen=True)
class Published:
    """A plugin in the registry.

    Attributes:
        repository: its path there.
        remote: the reference to pull it by.
        layers: what it is made of.

    """

    repository: str
    remote: str
    layers: list[Layer]


def publish(registry: str, repository: str, trees: Sequence[Tree], counts: Sequence[int] = ()) -> list[Published]:
    """Make plugins with one layer a tree and put them into the registry, as neither side would: by plain PUTs.

    Args:
        registry: `HOST:PORT`, plain HTTP.
        repository: its path there.
        trees: one a layer.
        counts: one plugin each, of so many layers from the first on; one plugin of all of them when empty.

    """
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(layer, trees))
    for one, file in found:
        wire.put_blob(registry, repository, one.digest, file)
    layers = [one for one, _ in found]
    return [_name(registry, repository, layers[:count]) for count in counts or [len(layers)]]


def _name(registry: str, repository: str, layers: list[Layer]) -> Published:
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
    tag = f"of-{len(layers)}"
    wire.put_manifest(registry, repository, tag, _MANIFEST_TYPE, json.dumps(manifest).encode())
    return Published(repository, f"{registry}/{repository}:{tag}", layers)

"""What every row stands on: the sizes, the folder, the registry, both daemons."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import workload
from tests.bench.rows import Row
from tests.bench.sides import Peer, Pluginsvc, Side
from tests.support.registry import Registry

MIB = 1024 * 1024
MB = 1_000_000


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        entries, size: of the tree, its size in bytes.
        layers: sizes of the eight layers in bytes.
        push: bytes of the layer that is pushed.
        rounds: at least 3.
        starts: enables a round.
        seconds: that requests are counted for, each time.
        pairs: plugins made and removed to make events, each time.
        known: plugins known, in the rows about many.

    """

    entries: int
    size: int
    layers: tuple[int, ...]
    push: int
    rounds: int
    starts: int
    seconds: float
    pairs: int
    known: int = 100


_LAYERS = (150, 160, 170, 180, 190, 210, 230, 250)
FULL = Size(14_400, 409 * MIB, tuple(n * MIB for n in _LAYERS), 160 * MB, rounds=3, starts=5, seconds=3.0, pairs=100)
QUICK = Size(1_800, 51 * MIB, tuple(n * MIB // 20 for n in _LAYERS), 20 * MB, rounds=3, starts=1, seconds=0.3, pairs=6)


@dataclass
class Stage:
    """One run.

    Attributes:
        top: the folder all of it lies in.
        size: how much is done.
        registry: a real one, on the same file system.
        peer, ours: the daemons.
        rows: what came out.
        failed: what could not even begin, and why.
        tell: takes one line for whoever waits.

    """

    top: Path
    size: Size
    registry: Registry
    peer: Peer
    ours: Pluginsvc
    tell: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.peer, self.ours

    def row(self, row: Row) -> Row:
        """Take in a row and say that its measurement begins."""
        self.rows.append(row)
        self.tell(row.name)
        return row

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a folder for a floor, gone afterwards."""
        folder = self.top / "scratch"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def served(self, repository: str) -> int:
        """Return how many bytes of blobs the registry has served from a repository until now."""
        line = re.compile(rf'"GET /v2/{re.escape(repository)}/blobs/\S+ HTTP/1\.1" 20[06] (\d+)')
        return sum(int(size) for size in line.findall(self.registry.proc.log.read_text(errors="replace")))

    def stored(self, repository: str) -> int:
        """Return the size of the layers of the newest manifest of a repository, each of which must be there."""
        blobs = self.registry.storage / "docker" / "registry" / "v2" / "blobs" / "sha256"
        link = blobs.parents[1] / "repositories" / repository / "_manifests" / "tags" / "latest" / "current" / "link"
        manifest = self._blob(blobs, link.read_text()).read_text()
        return sum(self._blob(blobs, layer["digest"]).stat().st_size for layer in json.loads(manifest)["layers"])

    def unpush(self, repository: str) -> None:
        """Take a repository out of the registry, with its layers, so that they must be pushed again."""
        data = self.registry.storage / "docker" / "registry" / "v2"
        for link in (data / "repositories" / repository).rglob("link"):
            shutil.rmtree(self._blob(data / "blobs" / "sha256", link.read_text()).parent, ignore_errors=True)
        shutil.rmtree(data / "repositories" / repository, ignore_errors=True)

    @staticmethod
    def _blob(blobs: Path, digest: str) -> Path:
        hexa = digest.strip().removeprefix("sha256:")
        return blobs / hexa[:2] / hexa / "data"


def tiny(salt: str) -> Iterator[bytes]:
    """Return the `create` body of a plugin with next to nothing in it."""
    return workload.body(workload.head(salt))

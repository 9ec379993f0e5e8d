"""What every row stands on: the sizes, the folder, the registry, both daemons."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.inputs import Published
from tests.bench.rows import Curve, Row
from tests.bench.sides import Peer, Pluginsvc, Side
from tests.support.registry import Registry

MIB = 1024 * 1024
MB = 1_000_000


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        entries, size: of the tree, its size in bytes.
        tiny: how many tiny files.
        layers: sizes of the eight layers in bytes.
        push: bytes of the layer that is pushed.
        rounds: at least 3.
        starts: enables a round.
        seconds: that requests are counted for, each time.
        pairs: plugins made and removed to make events, each time.
        growth_rounds: rounds of what shows how cost grows.
        known, upto, readers: its points: plugins known, in the order of measurement, which saves making some of them
            twice; layers; readers of events.
        layer: bytes of each of those layers.
        room: GiB that must be free.

    """

    entries: int
    size: int
    tiny: int
    layers: tuple[int, ...]
    push: int
    rounds: int
    starts: int
    seconds: float
    pairs: int
    growth_rounds: int
    known: tuple[int, ...]
    upto: tuple[int, ...]
    layer: int
    readers: tuple[int, ...]
    room: int


_LAYERS = (150, 160, 170, 180, 190, 210, 230, 250)
FULL = Size(
    entries=14_400,
    size=409 * MIB,
    tiny=60_000,
    layers=tuple(n * MIB for n in _LAYERS),
    push=160 * MB,
    rounds=3,
    starts=5,
    seconds=2.0,
    pairs=100,
    growth_rounds=3,
    known=(100, 10, 1, 1000),
    upto=(1, 2, 4, 8, 16),
    layer=25 * MIB,
    readers=(10, 100, 1000),
    room=6,
)
QUICK = Size(
    entries=560,
    size=16 * MIB,
    tiny=7_500,
    layers=tuple(n * MIB // 30 for n in _LAYERS),
    push=20 * MB,
    rounds=3,
    starts=1,
    seconds=0.2,
    pairs=20,
    growth_rounds=1,
    known=(100, 10, 1),
    upto=(1, 4),
    layer=6 * MIB,
    readers=(10, 100),
    room=1,
)


@dataclass
class Starts:
    """What was measured at starts with one number of plugins known: a row each."""

    ready: Row
    answering: Row
    alone: Row
    memory: Row


@dataclass
class Stage:
    """One run.

    Attributes:
        top: the folder all of it lies in.
        size: how much is done.
        registry: a real one, on the same file system.
        peer, ours: the daemons.
        rows, curves: what came out.
        failed: what could not even begin, and why.
        published: what is in the registry to be installed, by repository.
        starts: measured starts, by the number of plugins known.
        tell: takes one line for whoever waits.

    """

    top: Path
    size: Size
    registry: Registry
    peer: Peer
    ours: Pluginsvc
    tell: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    published: dict[str, Published] = field(default_factory=dict)
    starts: dict[int, Starts] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.peer, self.ours

    def row(self, row: Row) -> Row:
        """Take in a row and say that its measurement begins."""
        self.rows.append(row)
        self.tell(row.name)
        return row

    def curve(self, curve: Curve) -> Curve:
        """Take in a curve."""
        self.curves.append(curve)
        return curve

    def hold(self, known: int) -> None:
        """See to it that both sides know so many plugins."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda side: side.hold(known), self.sides))

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

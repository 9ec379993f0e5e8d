"""A store, a registry client, a registry that fails as scripted, and plugins to move between them."""

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from pluginsvc.content.store import ContentStore
from pluginsvc.model.auth import RegistryAccess
from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import DOCKER_LAYER, DOCKER_MANIFEST, PLUGIN_CONFIG, Descriptor, build_manifest
from pluginsvc.model.progress import Line
from pluginsvc.model.reference import Reference
from pluginsvc.registry.client import Registry
from pluginsvc.registry.hosts import Hosts
from pluginsvc.transfer import pull
from pluginsvc.transfer.pull import Puller
from tests.unit.transfer.faults import FaultRegistry

CONFIG = b'{"Description":"a plugin","Interface":{"Types":["docker.volumedriver/1.0"],"Socket":"p.sock"}}'


@dataclass
class Image:
    """A plugin as a registry has it."""

    raw: bytes
    layers: list[bytes]
    config: bytes = CONFIG

    @classmethod
    def of(cls, *layers: bytes, config: bytes = CONFIG, media_type: str = DOCKER_LAYER) -> "Image":
        return cls(
            build_manifest(
                Descriptor(media_type=PLUGIN_CONFIG, digest=Digest.of(config), size=len(config)),
                [Descriptor(media_type=media_type, digest=Digest.of(layer), size=len(layer)) for layer in layers],
            ),
            list(layers),
            config,
        )

    @property
    def digests(self) -> list[Digest]:
        """Manifest, config, layers."""
        return [Digest.of(data) for data in (self.raw, self.config, *self.layers)]

    @property
    def short(self) -> list[str]:
        """IDs of the layers' progress lines."""
        return [Digest.of(layer).short for layer in self.layers]

    def serve(self, registry: FaultRegistry, tag: str = "latest") -> None:
        for data in (self.config, *self.layers):
            registry.add(data)
        registry.publish(tag, DOCKER_MANIFEST, self.raw)


@dataclass
class Pull:
    """One pull: what it applied (and has of what it is applying), whether that was counted in, what it wrote."""

    puller: Puller
    client: Registry
    reference: Reference
    applied: list[bytes] = field(default_factory=list)
    applying: list[bytes] = field(default_factory=list)
    counted: list[bool] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    wanted: anyio.Event = field(default_factory=anyio.Event)

    async def run(self) -> None:
        fetcher = self.client.fetcher(self.reference, RegistryAccess())
        resolved = await pull.resolve(fetcher, self.reference)
        await self.puller.pull(
            resolved, fetcher, reference=self.reference, lease_id="lease", apply=self.apply, sink=self.sink
        )

    async def apply(
        self, blob: int, descriptor: Descriptor, on_bytes: Callable[[int], None], arriving: int | None
    ) -> None:
        self.applying.append(b"")
        there = descriptor.size if arriving is None else 0
        while len(self.applying[-1]) < descriptor.size:
            if arriving is not None:
                await anyio.wait_readable(arriving)
                there += os.eventfd_read(arriving)
            data = os.pread(blob, there, 0)
            assert len(data) == there
            self.applying[-1] = data
            on_bytes(there)
            self.wanted.set()
            self.wanted = anyio.Event()
        self.counted.append(arriving is not None)
        self.applied.append(self.applying[-1])
        self.wanted.set()
        self.wanted = anyio.Event()

    async def sink(self, line: Line) -> None:
        await checkpoint()
        self.lines.append(line)
        self.wanted.set()
        self.wanted = anyio.Event()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until what was applied or written so far is enough."""
        with anyio.fail_after(10):
            while not reached():
                await self.wanted.wait()

    def statuses(self, item: str) -> list[str]:
        return [line.status for line in self.lines if line.id == item]


@pytest.fixture
async def store(tmp_path: Path) -> ContentStore:
    found = ContentStore(tmp_path / "content")
    await found.open()
    return found


@pytest.fixture
async def client() -> AsyncIterator[Registry]:
    async with Registry(Hosts(), user_agent="pluginsvc/test", backoff=0.01) as found:
        yield found


@pytest.fixture
async def faulty() -> AsyncIterator[FaultRegistry]:
    async with FaultRegistry().running() as found:
        yield found


@pytest.fixture
def leases() -> list[Digest]:
    return []


@pytest.fixture
def puller(store: ContentStore, leases: list[Digest]) -> Puller:
    async def lease(lease_id: str, digest: Digest) -> None:
        assert lease_id == "lease"
        leases.append(digest)

    return Puller(store, lease=lease, interval=0.01, pause=0.01)


@pytest.fixture
def new_pull(puller: Puller, client: Registry, faulty: FaultRegistry) -> Callable[..., Pull]:
    """Make a pull of `some/plugin:latest`, or another tag, from the registry that fails."""

    def make(tag: str = "latest") -> Pull:
        return Pull(puller, client, Reference.parse(f"{faulty.host}/some/plugin:{tag}"))

    return make


@pytest.fixture
def image(faulty: FaultRegistry) -> Image:
    """Give a plugin of three layers that is published in the registry that fails."""
    found = Image.of(*(os.urandom(600_000) for _ in range(3)))
    found.serve(faulty)
    return found

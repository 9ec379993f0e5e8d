"""Push: byte for byte, only what is missing, honest about each blob, never without all blobs."""

import os
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from pluginsvc.content.store import ContentStore
from pluginsvc.model.auth import RegistryAccess
from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import DOCKER_MANIFEST
from pluginsvc.model.progress import Aux, Line, ProgressDetail, encode_line
from pluginsvc.model.reference import Reference
from pluginsvc.registry.client import Registry
from pluginsvc.registry.errors import RegistryFault
from pluginsvc.transfer.pull import Puller
from pluginsvc.transfer.push import MissingBlob, push
from tests.support.registry import Registry as RealRegistry
from tests.unit.transfer.conftest import Image, Pull
from tests.unit.transfer.faults import FaultRegistry, Hold, Status

pytestmark = pytest.mark.anyio


class Push:
    """A push of one image out of one store, and the lines it wrote."""

    def __init__(self, store: ContentStore, client: Registry, image: Image, reference: str) -> None:
        self.store, self.client, self.image = store, client, image
        self.reference = Reference.parse(reference)
        self.lines: list[Line] = []
        self._more = anyio.Event()

    async def stored(self) -> "Push":
        for data in (self.image.raw, self.image.config, *self.image.layers):
            await self.store.put(data)
        return self

    async def run(self, source: str = "") -> Aux:
        pusher = self.client.pusher(self.reference, RegistryAccess())
        return await push(
            self.store,
            pusher,
            raw=self.image.raw,
            reference=self.reference,
            source=source,
            sink=self.sink,
            interval=0.01,
        )

    async def sink(self, line: Line) -> None:
        self.lines.append(line)
        self._more.set()
        self._more = anyio.Event()

    async def until(self, reached: Callable[[], bool]) -> None:
        with anyio.fail_after(10):
            while not reached():
                await self._more.wait()

    def statuses(self, data: bytes) -> list[str]:
        """Return the statuses of a blob, each once."""
        short = Digest.of(data).short
        return list(dict.fromkeys(line.status for line in self.lines if line.id == short))


@pytest.fixture
def plugin() -> Image:
    return Image.of(os.urandom(700_000), os.urandom(1000))


@pytest.fixture
async def pushing(store: ContentStore, client: Registry, faulty: FaultRegistry, plugin: Image) -> Push:
    """Give a push of a stored plugin of two layers to the registry that fails."""
    return await Push(store, client, plugin, f"{faulty.host}/some/plugin:1").stored()


async def test_push(pushing: Push, faulty: FaultRegistry, plugin: Image) -> None:
    """Every blob and the manifest arrive byte for byte, and the last line says tag, digest and size."""
    aux = await pushing.run()
    assert aux == Aux(tag="1", digest=Digest.of(plugin.raw), size=len(plugin.raw))
    assert pushing.lines[-1] == Line(progress_detail=ProgressDetail(), aux=aux)
    assert encode_line(pushing.lines[-1]).startswith(b'{"progressDetail":{},"aux":{"Tag":"1","Digest":"sha256:')
    assert faulty.manifests["1"] == (DOCKER_MANIFEST, plugin.raw)
    assert {*faulty.blobs.values()} == {plugin.config, *plugin.layers}


async def test_lines(pushing: Push, plugin: Image) -> None:
    """The first line names the repository; each object is prepared, waits, is pushed, and ends with a last row."""
    await pushing.run()
    assert pushing.lines[0] == Line(status=f"The push refers to repository [{pushing.reference.familiar_name}]")
    for data in (plugin.raw, plugin.config, *plugin.layers):
        assert pushing.statuses(data) == ["Preparing", "Waiting", "Pushing", "Pushed"]
    last = {line.id: line.status for line in pushing.lines[1:-1]}
    assert set(last.values()) == {"Pushed"}


async def test_again(pushing: Push, faulty: FaultRegistry, plugin: Image) -> None:
    """What the registry has is not sent, and said so."""
    await pushing.run()
    faulty.requests.clear()
    pushing.lines.clear()
    await pushing.run()
    assert not [method for method, _, _ in faulty.requests if method in {"POST", "PUT"}]
    for data in (plugin.config, *plugin.layers):
        assert pushing.statuses(data) == ["Preparing", "Waiting", "Layer already exists"]


async def test_mount(pushing: Push, faulty: FaultRegistry, plugin: Image) -> None:
    """Blobs of a plugin pulled from another repository of the same registry are mounted from there."""
    faulty.mountable = True
    pushing.image.serve(faulty, "unused")
    head = faulty.blobs
    faulty.blobs = _HiddenFromHead(head)
    await pushing.run(source=f"{faulty.host}/origin/plugin")
    assert ("POST", Digest.of(plugin.layers[0]), "origin/plugin") in faulty.requests
    assert not [method for method, name, _ in faulty.requests if method == "PUT" and name != "1"]
    for data in plugin.layers:
        assert pushing.statuses(data)[-1] == f"Mounted from {faulty.host}/origin/plugin"


class _HiddenFromHead(dict[str, bytes]):
    """Blobs that the registry has in another repository: not found by HEAD, found by a mount."""

    def get(self, key: str, default: object = None) -> None:  # type: ignore[override] # the registry asks so for HEAD
        return None


@pytest.mark.parametrize("source", ["elsewhere.example/origin/plugin", "", "{host}/some/plugin"])
async def test_no_mount(pushing: Push, faulty: FaultRegistry, plugin: Image, source: str) -> None:
    """Nothing is mounted from another registry, from nowhere, or from the repository itself."""
    await pushing.run(source=source.format(host=faulty.host))
    assert not [origin for method, _, origin in faulty.requests if method == "POST" and origin]


async def test_mount_refused(pushing: Push, faulty: FaultRegistry, plugin: Image) -> None:
    """A mount that does not come about is an upload."""
    await pushing.run(source=f"{faulty.host}/origin/plugin")
    assert pushing.statuses(plugin.layers[0])[-1] == "Pushed"
    assert {*faulty.blobs.values()} == {plugin.config, *plugin.layers}


@pytest.mark.parametrize("damage", ["missing", "short"])
async def test_missing_blob(
    pushing: Push, store: ContentStore, faulty: FaultRegistry, plugin: Image, damage: str
) -> None:
    """Without all blobs nothing at all is sent: the tag in the registry stays what it was (REF 7.9)."""
    digest = Digest.of(plugin.layers[1])
    if damage == "missing":
        await anyio.to_thread.run_sync(store.remove, digest)
    else:
        store.path(digest).write_bytes(b"x")
    with pytest.raises(MissingBlob, match=f"error pushing plugin: blob {digest} is missing"):
        await pushing.run()
    assert (faulty.requests, pushing.lines) == ([], [])


async def test_same_layer_twice(store: ContentStore, client: Registry, faulty: FaultRegistry) -> None:
    """A layer that the manifest names twice is sent once."""
    layer = os.urandom(1000)
    pushing = await Push(store, client, Image.of(layer, layer), f"{faulty.host}/some/plugin:1").stored()
    await pushing.run()
    assert len([name for method, name, _ in faulty.requests if method == "PUT"]) == 3


async def test_upload_refused(pushing: Push, faulty: FaultRegistry, plugin: Image) -> None:
    """An upload that is refused ends the push before the manifest, with a last row for every object."""
    faulty.faults["PUT"] += [Status(403)]
    with pytest.raises(RegistryFault, match="error pushing plugin: "):
        await pushing.run()
    assert faulty.manifests == {}
    assert {line.id for line in pushing.lines if line.id} == {
        Digest.of(data).short for data in (plugin.raw, plugin.config, *plugin.layers)
    }


async def test_upload_is_tried_again(pushing: Push, faulty: FaultRegistry, plugin: Image) -> None:
    """An upload that fails for a moment is made again."""
    faulty.faults["PUT"] += [Status(503)]
    await pushing.run()
    assert {*faulty.blobs.values()} == {plugin.config, *plugin.layers}


async def test_uploads_at_once(pushing: Push, faulty: FaultRegistry) -> None:
    """Blobs are sent at the same time."""
    holds = [Hold(0), Hold(0), Hold(0)]
    faulty.faults["PUT"] += holds
    async with anyio.create_task_group() as group:
        group.start_soon(pushing.run)
        with anyio.fail_after(10):
            for hold in holds:
                await hold.reached.wait()
        for hold in holds:
            hold.go.set()


async def test_reporter_dies_with_its_push(pushing: Push, faulty: FaultRegistry, plugin: Image) -> None:
    """A push that is cancelled while it uploads ends, and writes nothing afterwards."""
    hold = Hold(0)
    faulty.faults["PUT"] += [hold, hold, hold]
    async with anyio.create_task_group() as group:
        group.start_soon(pushing.run)
        await pushing.until(lambda: "Pushing" in pushing.statuses(plugin.layers[0]))
        group.cancel_scope.cancel()
    written = len(pushing.lines)
    with anyio.move_on_after(0.1):
        await pushing.until(lambda: len(pushing.lines) > written)
    hold.go.set()
    assert len(pushing.lines) == written
    assert faulty.manifests == {}


async def test_real_registry(registry: RealRegistry, tmp_path: Path, client: Registry, plugin: Image) -> None:
    """A plugin pushed to a real registry can be pulled from it into another store, and mounted to a second name."""
    here, there = ContentStore(tmp_path / "here"), ContentStore(tmp_path / "there")
    await here.open()
    await there.open()
    first = await Push(here, client, plugin, f"{registry.host}/transfer/first:1").stored()
    await first.run()

    async def lease(lease_id: str, digest: Digest) -> None:
        pass

    pull = Pull(Puller(there, lease=lease), client, first.reference)
    await pull.run()
    assert pull.applied == plugin.layers
    assert set(await there.digests()) == set(await here.digests())

    second = Push(there, client, plugin, f"{registry.host}/transfer/second:1")
    aux = await second.run(source=first.reference.repository)
    assert aux.digest == Digest.of(plugin.raw)
    for data in plugin.layers:
        assert second.statuses(data)[-1] == f"Mounted from {registry.host}/transfer/first"

"""Pull: layers in manifest order, resumed, joined, bounded, verified; nothing left of what is wrong."""

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from pluginsvc.content.ingest import DigestMismatch, StorageError
from pluginsvc.content.store import ContentStore
from pluginsvc.errors import Internal, InvalidParameter
from pluginsvc.model.auth import RegistryAccess
from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    PLUGIN_CONFIG,
    Descriptor,
    InvalidManifest,
    NoMatchingPlatform,
    Platform,
    UnknownLayerType,
)
from pluginsvc.model.progress import Line, ProgressDetail
from pluginsvc.model.reference import Reference
from pluginsvc.registry.client import Registry
from pluginsvc.registry.errors import (
    BlobUnknown,
    ManifestUnknown,
    RegistryBusy,
    RegistryFault,
    RegistryProtocolError,
    TruncatedBlob,
)
from pluginsvc.registry.fetcher import CHUNK, Fetcher
from pluginsvc.transfer.pull import NotAPlugin, Puller, resolve
from pluginsvc.transfer.retry import ATTEMPTS
from tests.unit.transfer.conftest import Image, Pull
from tests.unit.transfer.faults import Cut, FaultRegistry, Hold, Instead, Status

pytestmark = pytest.mark.anyio
NewPull = Callable[..., Pull]


def partials(store: ContentStore) -> list[int]:
    """Return the sizes of the partials that can be resumed."""
    folder = store.path(Digest.of(b"")).parents[2] / "ingest"
    return [file.stat().st_size for file in folder.glob("*/*")]


# --- the whole of it


async def test_pull(store: ContentStore, new_pull: NewPull, image: Image) -> None:
    """A pull stores every blob and applies the layers in the manifest's order."""
    pull = new_pull()
    await pull.run()
    assert pull.applied == image.layers
    assert {digest for digest, _ in await store.digests()} == set(image.digests)


async def test_lines(new_pull: NewPull, image: Image) -> None:
    """The lines are those of REF 4.4, each layer's in order, and end with Complete (REF 7.24)."""
    pull = new_pull()
    await pull.run()
    assert pull.lines[:2] == [
        Line(status=f"Pulling from {pull.reference.familiar_name}", id="latest"),
        Line(status=f"Digest: {Digest.of(image.raw)}"),
    ]
    for item in image.short:
        assert list(dict.fromkeys(pull.statuses(item))) == [
            "Waiting",
            "Pulling fs layer",
            "Downloading",
            "Download complete",
            "Extracting",
            "Complete",
        ]
    last = {line.id: line.status for line in pull.lines}
    assert [last[item] for item in image.short] == ["Complete"] * 3
    assert all(line.progress_detail is not None for line in pull.lines[2:])
    downloading = [line.progress_detail for line in pull.lines if line.status == "Downloading"]
    assert all(detail and 0 < detail.current <= detail.total == 600_000 for detail in downloading)


async def test_by_digest(new_pull: NewPull, image: Image) -> None:
    """A pull by digest names the whole reference in its first line."""
    pull = new_pull()
    pull.reference = Reference.parse(f"{pull.reference.repository}@{Digest.of(image.raw)}")
    await pull.run()
    assert pull.lines[0].id == str(pull.reference)


async def test_again(new_pull: NewPull, image: Image, faulty: FaultRegistry) -> None:
    """Layers that are there are not requested, only applied."""
    await new_pull().run()
    faulty.requests.clear()
    again = new_pull()
    await again.run()
    assert again.applied == image.layers
    assert not any(faulty.gets(Digest.of(layer)) for layer in image.layers)
    for item in image.short:
        assert list(dict.fromkeys(again.statuses(item))) == ["Already exists", "Extracting", "Complete"]


async def test_damaged_blob_is_fetched_again(
    store: ContentStore, new_pull: NewPull, image: Image, faulty: FaultRegistry
) -> None:
    """A stored layer that lost its end does not count as there."""
    await new_pull().run()
    store.path(Digest.of(image.layers[0])).write_bytes(b"cut")
    again = new_pull()
    await again.run()
    assert again.applied == image.layers


async def test_leases_come_first(store: ContentStore, new_pull: NewPull, image: Image, leases: list[Digest]) -> None:
    """Every digest is leased before anybody looks whether it is there (design D9)."""
    looked: list[Digest] = []
    size, put = store.size, store.put

    async def recorded_size(digest: Digest) -> int | None:
        assert digest in leases
        looked.append(digest)
        return await size(digest)

    async def recorded_put(data: bytes, digest: Digest | None = None) -> Digest:
        assert digest in leases
        looked.append(digest)
        return await put(data, digest)

    store.size = recorded_size  # type: ignore[method-assign] # the real ones, watched
    store.put = recorded_put  # type: ignore[method-assign] # as above
    await new_pull().run()
    assert set(looked) == set(leases) == set(image.digests)


async def test_same_layer_twice(new_pull: NewPull, faulty: FaultRegistry) -> None:
    """A layer that the manifest names twice is downloaded once, applied twice, and complete after the second time."""
    one, two = os.urandom(1000), os.urandom(1000)
    Image.of(one, two, one).serve(faulty)
    pull = new_pull()
    await pull.run()
    assert pull.applied == [one, two, one]
    assert len(faulty.gets(Digest.of(one))) == 1
    assert pull.statuses(Digest.of(one).short).count("Complete") == 1
    assert pull.statuses(Digest.of(one).short)[-1] == "Complete"


@pytest.mark.parametrize("layers", [[], [b""]])
async def test_nothing_to_download(new_pull: NewPull, faulty: FaultRegistry, layers: list[bytes]) -> None:
    """A plugin without layers, and one with an empty layer, can be pulled."""
    Image.of(*layers).serve(faulty)
    pull = new_pull()
    await pull.run()
    assert pull.applied == layers


# --- order and bounds


async def test_first_layer_applied_while_others_download(
    new_pull: NewPull, image: Image, faulty: FaultRegistry
) -> None:
    """The first layer is applied as soon as it is there; the second waits for its own bytes."""
    hold = Hold(1000)
    faulty.faults[Digest.of(image.layers[1])].append(hold)
    pull = new_pull()
    async with anyio.create_task_group() as group:
        group.start_soon(pull.run)
        await hold.reached.wait()
        await pull.until(lambda: "Complete" in pull.statuses(image.short[0]))
        await pull.until(lambda: "Download complete" in pull.statuses(image.short[2]))
        assert pull.applied == image.layers[:1]
        hold.go.set()
    assert pull.applied == image.layers


async def test_a_layer_is_applied_while_it_downloads(
    store: ContentStore, new_pull: NewPull, image: Image, faulty: FaultRegistry
) -> None:
    """A layer's first bytes are applied before its last ones have come, also across a cut; the pull waits for all."""
    digest = Digest.of(image.layers[0])
    hold = Hold(CHUNK + 1000)
    faulty.faults[digest] += [Cut(CHUNK + 2), hold]
    pull = new_pull()
    async with anyio.create_task_group() as group:
        group.start_soon(pull.run)
        await hold.reached.wait()
        await pull.until(lambda: len(pull.applying) == 1 and len(pull.applying[0]) >= CHUNK)
        assert image.layers[0].startswith(pull.applying[0])
        assert pull.applied == []
        assert await store.size(digest) is None
        hold.go.set()
    assert pull.applied == image.layers
    assert pull.counted == [True] * 3


async def test_stored_layers_are_verified_by_the_applier(new_pull: NewPull, image: Image) -> None:
    """Only what this pull has downloaded, and so verified, comes with a counter; the rest the applier has to verify."""
    await new_pull().run()
    again = new_pull()
    await again.run()
    assert again.counted == [False] * 3


async def leave_a_partial(new_pull: NewPull, image: Image, faulty: FaultRegistry) -> Digest:
    """Have a pull fail by five cuts of the first layer; return the layer's digest."""
    digest = Digest.of(image.layers[0])
    faulty.faults[digest] += [Cut(50_000) for _ in range(ATTEMPTS)]
    with pytest.raises(TruncatedBlob):
        await new_pull().run()
    return digest


async def test_a_partial_is_applied_when_it_is_verified(
    store: ContentStore, new_pull: NewPull, image: Image, faulty: FaultRegistry
) -> None:
    """What an earlier try left may be damaged: nobody gets to read it before all of it is verified."""
    digest = await leave_a_partial(new_pull, image, faulty)
    hold = Hold(CHUNK + 1000)
    faulty.faults[digest].append(hold)
    pull = new_pull()
    async with anyio.create_task_group() as group:
        group.start_soon(pull.run)
        await hold.reached.wait()
        await pull.until(lambda: "Downloading" in pull.statuses(image.short[0]))
        assert pull.applying == []
        hold.go.set()
    assert pull.applied == image.layers


async def test_wrong_bytes_are_the_reason(new_pull: NewPull, image: Image, faulty: FaultRegistry) -> None:
    """When an applier stumbles over bytes that prove to be wrong, the error is about these, not about the archive."""
    digest = Digest.of(image.layers[0])
    wrong = Instead(os.urandom(len(image.layers[0])))
    faulty.faults[digest].append(wrong)
    pull = new_pull()

    async def stumbles(
        blob: int, descriptor: Descriptor, on_bytes: Callable[[int], None], arriving: int | None
    ) -> None:
        raise InvalidParameter("not a tar archive")

    pull.apply = stumbles  # type: ignore[method-assign] # another applier
    with pytest.raises(DigestMismatch, match=digest):
        await pull.run()
    with pytest.raises(InvalidParameter, match="not a tar archive"):
        await pull.run()


async def test_upper_layers_wait(new_pull: NewPull, image: Image, faulty: FaultRegistry) -> None:
    """Layers that come first are not applied first (REF 7.21)."""
    hold = Hold(1000)
    faulty.faults[Digest.of(image.layers[0])].append(hold)
    pull = new_pull()
    async with anyio.create_task_group() as group:
        group.start_soon(pull.run)
        for item in image.short[1:]:
            await pull.until(lambda item=item: "Download complete" in pull.statuses(item))  # type: ignore[misc] # mypy cannot infer a lambda with a default
        assert pull.applied == []
        hold.go.set()
    assert pull.applied == image.layers


async def test_bounded(
    new_pull: NewPull, client: Registry, faulty: FaultRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many layers and two pulls at most three are downloaded at once."""
    now, most = 0, 0
    make_fetcher = client.fetcher

    def watched(reference: Reference, access: RegistryAccess) -> Fetcher:
        fetcher = make_fetcher(reference, access)
        open_layer = fetcher.open

        @asynccontextmanager
        async def counted(descriptor: Descriptor, *, offset: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
            nonlocal now, most
            now += 1
            most = max(most, now)
            try:
                async with open_layer(descriptor, offset=offset) as chunks:
                    yield chunks
            finally:
                now -= 1

        monkeypatch.setattr(fetcher, "open", counted)
        return fetcher

    monkeypatch.setattr(client, "fetcher", watched)
    layers = [os.urandom(1000) for _ in range(10)]
    Image.of(*layers[:6]).serve(faulty)
    Image.of(*layers[4:]).serve(faulty, "other")
    pulls = [new_pull(), new_pull("other")]
    holds = [Hold(10) for _ in range(3)]
    for layer, hold in zip(layers, holds, strict=False):
        faulty.faults[Digest.of(layer)].append(hold)
    async with anyio.create_task_group() as group:
        group.start_soon(pulls[0].run)
        for hold in holds:
            await hold.reached.wait()
        group.start_soon(pulls[1].run)
        await pulls[1].until(lambda: "Pulling fs layer" in pulls[1].statuses(Digest.of(layers[6]).short))
        for hold in holds:
            hold.go.set()
    assert most == 3
    assert [pull.applied for pull in pulls] == [layers[:6], layers[4:]]


async def test_failed_apply_ends_the_downloads(
    store: ContentStore, new_pull: NewPull, image: Image, faulty: FaultRegistry
) -> None:
    """When a layer cannot be applied, the downloads under way stop, and the error comes out as it was."""
    hold = Hold(1000)
    faulty.faults[Digest.of(image.layers[2])].append(hold)
    pull = new_pull()

    async def broken(blob: int, descriptor: Descriptor, on_bytes: Callable[[int], None], arriving: int | None) -> None:
        await hold.reached.wait()
        raise Internal("bad layer")

    pull.apply = broken  # type: ignore[method-assign] # another applier
    with pytest.raises(Internal, match="bad layer"):
        await pull.run()
    with anyio.fail_after(10):
        await hold.gone.wait()
    assert Digest.of(image.layers[2]) not in dict(await store.digests())


# --- faults of the registry


async def test_resumes_after_cuts(new_pull: NewPull, image: Image, faulty: FaultRegistry) -> None:
    """A download that is cut goes on where it was cut."""
    digest = Digest.of(image.layers[0])
    faulty.faults[digest] += [Cut(300_000), Cut(100_000)]
    pull = new_pull()
    await pull.run()
    assert pull.applied == image.layers
    starts = [int(sent.removeprefix("bytes=").removesuffix("-") or 0) for sent in faulty.gets(digest)]
    assert len(starts) == 3
    assert starts[0] == 0 < starts[1] < starts[2]


async def test_gives_up_and_resumes_in_the_next_pull(
    store: ContentStore, new_pull: NewPull, image: Image, faulty: FaultRegistry
) -> None:
    """After five cuts the pull fails; the next one goes on from what came so far."""
    digest = await leave_a_partial(new_pull, image, faulty)
    assert await store.size(digest) is None
    assert len(faulty.gets(digest)) == ATTEMPTS
    (partial,) = partials(store)
    pull = new_pull()
    await pull.run()
    assert pull.applied == image.layers
    assert faulty.gets(digest)[-1] == f"bytes={partial}-"
    assert partials(store) == []


async def test_damaged_partial(store: ContentStore, new_pull: NewPull, image: Image, faulty: FaultRegistry) -> None:
    """A partial that rotted on disk is found out and the layer fetched once more from its start."""
    digest = await leave_a_partial(new_pull, image, faulty)
    (file,) = (store.path(digest).parents[2] / "ingest").glob("*/*")
    file.write_bytes(bytes(file.stat().st_size))
    pull = new_pull()
    await pull.run()
    assert pull.applied == image.layers
    assert faulty.gets(digest)[-1] == ""


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_temporary_statuses(new_pull: NewPull, image: Image, faulty: FaultRegistry, status: int) -> None:
    """Statuses that may pass are tried again."""
    faulty.faults[Digest.of(image.layers[1])] += [Status(status), Status(status)]
    pull = new_pull()
    await pull.run()
    assert pull.applied == image.layers


async def test_retry_after(new_pull: NewPull, image: Image, faulty: FaultRegistry) -> None:
    """A registry that says when to come back is not asked before."""
    faulty.faults[Digest.of(image.layers[1])].append(Status(429, {"Retry-After": "1"}))
    started = anyio.current_time()
    await new_pull().run()
    assert anyio.current_time() - started >= 1


async def test_retry_after_a_day(new_pull: NewPull, image: Image, faulty: FaultRegistry) -> None:
    """A registry that wants to be left alone for a day ends the pull at once."""
    faulty.faults[Digest.of(image.layers[1])].append(Status(429, {"Retry-After": "86400"}))
    with anyio.fail_after(10), pytest.raises(RegistryBusy):
        await new_pull().run()


@pytest.mark.parametrize(("status", "kind"), [(404, BlobUnknown), (400, RegistryProtocolError)])
async def test_final_statuses(
    new_pull: NewPull, image: Image, faulty: FaultRegistry, status: int, kind: type[RegistryFault]
) -> None:
    """A refusal is final and is not asked for twice."""
    digest = Digest.of(image.layers[0])
    faulty.faults[digest].append(Status(status))
    with pytest.raises(kind):
        await new_pull().run()
    assert len(faulty.gets(digest)) == 1


async def test_wrong_bytes(store: ContentStore, new_pull: NewPull, image: Image, faulty: FaultRegistry) -> None:
    """Bytes that are not their digest's fail the pull and are neither stored nor kept as a partial."""
    digest = Digest.of(image.layers[0])
    faulty.faults[digest].append(Instead(os.urandom(600_000)))
    pull = new_pull()
    with pytest.raises(DigestMismatch, match=digest):
        await pull.run()
    assert await store.size(digest) is None
    assert len(faulty.gets(digest)) == 1
    folder = store.path(digest).parents[2] / "ingest"
    assert not any(digest.hex in file.name for file in folder.glob("*/*"))


@pytest.mark.parametrize("size", [0, 599_999, 600_001, 700_000])
async def test_wrong_length(
    store: ContentStore, new_pull: NewPull, image: Image, faulty: FaultRegistry, size: int
) -> None:
    """A blob that is announced with another length than its descriptor's is refused."""
    digest = Digest.of(image.layers[0])
    faulty.faults[digest] += [Instead(bytes(size)) for _ in range(ATTEMPTS)]
    with pytest.raises(RegistryFault):
        await new_pull().run()
    assert await store.size(digest) is None


# --- two pulls at once


async def test_joined(new_pull: NewPull, image: Image, faulty: FaultRegistry, puller: Puller) -> None:
    """Two pulls of one layer make one download, which both show, and both apply."""
    digest = Digest.of(image.layers[0])
    hold = Hold(300_000)
    faulty.faults[digest].append(hold)
    pulls = [new_pull(), new_pull()]
    async with anyio.create_task_group() as group:
        for pull in pulls:
            group.start_soon(pull.run)
        for pull in pulls:
            await pull.until(lambda pull=pull: _downloaded(pull, image.short[0]) > 200_000)  # type: ignore[misc] # as above
        hold.go.set()
    assert len(faulty.gets(digest)) == 1
    for pull in pulls:
        assert pull.applied == image.layers
        assert "Downloading" in pull.statuses(image.short[0])
        assert pull.statuses(image.short[0])[-1] == "Complete"
    assert puller._downloads == {}


async def test_other_takes_over(new_pull: NewPull, image: Image, faulty: FaultRegistry) -> None:
    """When the pull that downloads is cancelled, the other goes on where it was."""
    digest = Digest.of(image.layers[0])
    hold = Hold(300_000)
    faulty.faults[digest].append(hold)
    first, second = new_pull(), new_pull()
    async with anyio.create_task_group() as group, anyio.create_task_group() as cancelled:
        cancelled.start_soon(first.run)
        await hold.reached.wait()
        group.start_soon(second.run)
        await second.until(lambda: "Pulling fs layer" in second.statuses(image.short[0]))
        await first.until(lambda: _downloaded(first, image.short[0]) > 200_000)
        cancelled.cancel_scope.cancel()
    assert second.applied == image.layers
    assert len(faulty.gets(digest)) == 2
    assert faulty.gets(digest)[1].startswith("bytes=")


async def test_stops_with_the_last(
    store: ContentStore, new_pull: NewPull, image: Image, faulty: FaultRegistry, puller: Puller
) -> None:
    """A download goes on while one pull is left, and stops when the last one leaves."""
    digest = Digest.of(image.layers[0])
    holds = [Hold(300_000), Hold(50_000)]
    faulty.faults[digest] += holds
    pulls = [new_pull(), new_pull()]
    scopes = [anyio.CancelScope(), anyio.CancelScope()]

    async def run(pull: Pull, scope: anyio.CancelScope) -> None:
        with scope:
            await pull.run()

    async with anyio.create_task_group() as group:
        for pull, scope in zip(pulls, scopes, strict=True):
            group.start_soon(run, pull, scope)
        await holds[0].reached.wait()
        for pull in pulls:
            await pull.until(lambda pull=pull: _downloaded(pull, image.short[0]) > 200_000)  # type: ignore[misc] # as above
        scopes[0].cancel()
        scopes[1].cancel()
    with anyio.fail_after(10):
        await holds[0].gone.wait()
    assert puller._downloads == {}
    assert await store.size(digest) is None
    assert partials(store) != []


def _downloaded(pull: Pull, item: str) -> int:
    details = [line.progress_detail or ProgressDetail() for line in pull.lines if line.id == item]
    return max((detail.current for detail in details), default=0)


async def test_failure_is_shared(new_pull: NewPull, image: Image, faulty: FaultRegistry) -> None:
    """Pulls that wait for one download learn of its failure together, not one after the other."""
    digest = Digest.of(image.layers[0])
    hold = Hold(0, cut=True)
    faulty.faults[digest] += [hold, *(Status(503) for _ in range(20))]
    pulls = [new_pull() for _ in range(3)]
    failed: list[Exception] = []

    async def run(pull: Pull) -> None:
        with pytest.raises(RegistryBusy) as caught:
            await pull.run()
        failed.append(caught.value)

    async with anyio.create_task_group() as group:
        for pull in pulls:
            group.start_soon(run, pull)
        for pull in pulls:
            await pull.until(lambda pull=pull: "Pulling fs layer" in pull.statuses(image.short[0]))  # type: ignore[misc] # as above
        await hold.reached.wait()
        hold.go.set()
    assert len(failed) == 3
    assert len(faulty.gets(digest)) == ATTEMPTS


# --- what a reference stands for


async def resolve_it(client: Registry, faulty: FaultRegistry, tag: str = "latest") -> object:
    reference = Reference.parse(f"{faulty.host}/some/plugin:{tag}")
    return await resolve(client.fetcher(reference, RegistryAccess()), reference)


async def test_resolve_touches_no_layer(client: Registry, faulty: FaultRegistry, image: Image) -> None:
    """Resolving fetches manifest and config and nothing else (REF 7.30)."""
    await resolve_it(client, faulty)
    got = {name for method, name, _ in faulty.requests if method == "GET"}
    assert got.isdisjoint(Digest.of(layer) for layer in image.layers)


async def test_resolve_unknown(client: Registry, faulty: FaultRegistry) -> None:
    """An unknown reference is told with Docker's text (REF 3.4)."""
    with pytest.raises(ManifestUnknown) as caught:
        await resolve_it(client, faulty, "nope")
    assert str(caught.value) == f"error resolving plugin reference: {faulty.host}/some/plugin:nope: not found"


async def test_resolve_image(client: Registry, faulty: FaultRegistry, image: Image) -> None:
    """An image is no plugin (REF 3.3)."""
    raw = image.raw.replace(PLUGIN_CONFIG.encode(), b"application/vnd.docker.container.image.v1+json")
    faulty.publish("image", DOCKER_MANIFEST, raw)
    with pytest.raises(NotAPlugin, match=f"plugin config for specified reference {faulty.host}/some/plugin:image"):
        await resolve_it(client, faulty, "image")


async def test_resolve_unknown_layer_type(client: Registry, faulty: FaultRegistry) -> None:
    """A layer that cannot be unpacked is refused by its type before anything is downloaded (REF 7.20)."""
    Image.of(b"x", media_type="application/x-rar").serve(faulty)
    with pytest.raises(UnknownLayerType, match="application/x-rar"):
        await resolve_it(client, faulty)


async def test_resolve_two_sizes(client: Registry, faulty: FaultRegistry, image: Image) -> None:
    """A manifest that gives two sizes for one layer is refused."""
    document = msgspec.json.decode(image.raw)
    document["layers"].append({**document["layers"][0], "size": 1})
    faulty.publish("odd", DOCKER_MANIFEST, msgspec.json.encode(document))
    with pytest.raises(InvalidManifest, match="two sizes"):
        await resolve_it(client, faulty, "odd")


def index(*entries: tuple[str, bytes]) -> bytes:
    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_LIST,
            "manifests": [
                {
                    "mediaType": DOCKER_MANIFEST,
                    "digest": str(Digest.of(raw)),
                    "size": len(raw),
                    "platform": {"architecture": architecture, "os": "linux"},
                }
                for architecture, raw in entries
            ],
        }
    )


async def test_index(new_pull: NewPull, image: Image, faulty: FaultRegistry) -> None:
    """Of an index the host's manifest alone is pulled; the digest shown is the index's (REF 7.22)."""
    other = Image.of(b"for another machine")
    other.serve(faulty, "other")
    raw = index(("z80", other.raw), (Platform.host().architecture, image.raw))
    faulty.publish("multi", DOCKER_LIST, raw)
    pull = new_pull("multi")
    await pull.run()
    assert pull.applied == image.layers
    assert pull.lines[1].status == f"Digest: {Digest.of(raw)}"


async def test_index_without_us(new_pull: NewPull, image: Image, faulty: FaultRegistry) -> None:
    """An index without the host's platform is refused and says what it offers."""
    faulty.publish("multi", DOCKER_LIST, index(("z80", image.raw)))
    with pytest.raises(NoMatchingPlatform, match="linux/z80"):
        await new_pull("multi").run()


# --- the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a mounted file system of 1 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], check=True)
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.root
async def test_full_disk(small_disk: Path, client: Registry, faulty: FaultRegistry, image: Image) -> None:
    """A pull onto a full disk fails with the reason and leaves no partial, of no layer."""
    store = ContentStore(small_disk / "content")
    await store.open()

    async def lease(lease_id: str, digest: Digest) -> None:
        pass

    pull = Pull(Puller(store, lease=lease, interval=0.01), client, Reference.parse(f"{faulty.host}/some/plugin:latest"))
    with pytest.raises(StorageError, match="No space left on device"):
        await pull.run()
    assert partials(store) == []

"""The store: small blobs, listing, removal, what a crash leaves behind."""

import hashlib
import os
import stat
import time
from pathlib import Path

import anyio
import pytest

from pluginsvc.content.ingest import DigestMismatch, partial_name
from pluginsvc.content.store import RESUMABLE_FOR, BlobNotFound, BlobTooLarge, ContentStore, RefLocked
from pluginsvc.model.digest import Digest

pytestmark = pytest.mark.anyio
DATA = b"some config"
SHA512 = Digest.parse(f"sha512:{hashlib.sha512(DATA).hexdigest()}")


async def test_put_then_read(store: ContentStore) -> None:
    """What is put can be read by its digest, and its size is known."""
    digest = await store.put(DATA)
    assert digest == Digest.of(DATA)
    assert await store.read(digest) == DATA
    assert await store.size(digest) == len(DATA)


async def test_blobs_are_private(store: ContentStore, tmp_path: Path) -> None:
    """Blobs and their directories are readable by their owner only."""
    digest = await store.put(DATA)
    assert stat.S_IMODE(store.path(digest).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "content").stat().st_mode) == 0o700


async def test_put_twice(store: ContentStore) -> None:
    """Putting what is there already is success and one blob."""
    assert await store.put(DATA) == await store.put(DATA)
    assert await store.digests() == [(Digest.of(DATA), len(DATA))]


async def test_put_repairs(store: ContentStore) -> None:
    """Putting a blob whose file was damaged makes it whole again."""
    digest = await store.put(DATA)
    store.path(digest).write_bytes(b"rot")
    await store.put(DATA)
    assert await store.read(digest) == DATA


async def test_put_under_sha512(store: ContentStore) -> None:
    """A blob can be named by the sha512 that a descriptor gives."""
    assert await store.put(DATA, SHA512) == SHA512
    assert await store.read(SHA512) == DATA
    assert await store.digests() == [(SHA512, len(DATA))]


@pytest.mark.parametrize("digest", [Digest.of(b"other"), Digest.parse(f"sha512:{'0' * 128}")])
async def test_put_refuses_other_bytes(store: ContentStore, digest: Digest) -> None:
    """Bytes are not stored under a digest that is not theirs."""
    with pytest.raises(DigestMismatch):
        await store.put(DATA, digest)
    assert await store.digests() == []


async def test_missing(store: ContentStore) -> None:
    """A blob that is not there has no size, cannot be read, and removing it frees nothing."""
    digest = Digest.of(b"never")
    assert await store.size(digest) is None
    with pytest.raises(BlobNotFound, match=digest):
        await store.read(digest)
    assert await anyio.to_thread.run_sync(store.remove, digest) == 0


async def test_read_verifies(store: ContentStore) -> None:
    """A damaged blob is never handed out."""
    digest = await store.put(DATA)
    store.path(digest).write_bytes(b"Some config")
    with pytest.raises(DigestMismatch):
        await store.read(digest)


async def test_read_is_capped(store: ContentStore) -> None:
    """A blob larger than the limit is not loaded into memory."""
    digest = await store.put(DATA)
    assert await store.read(digest, limit=len(DATA)) == DATA
    with pytest.raises(BlobTooLarge):
        await store.read(digest, limit=len(DATA) - 1)


async def test_remove(store: ContentStore) -> None:
    """Removing a blob says how many bytes it freed."""
    digest = await store.put(DATA)
    assert await anyio.to_thread.run_sync(store.remove, digest) == len(DATA)
    assert await store.size(digest) is None


async def test_list_shows_blobs_only(store: ContentStore) -> None:
    """Files that are not named by a digest are not blobs."""
    digest = await store.put(DATA)
    store.path(digest).with_name("notes.txt").write_text("hello")
    assert await store.digests() == [(digest, len(DATA))]


async def test_open_again(store: ContentStore, tmp_path: Path) -> None:
    """A new store on the same directory has the blobs, and not the temporary file of a put that a crash cut short."""
    digest = await store.put(DATA)
    leftover = store.path(digest).with_name(".half.1.ab")
    leftover.write_bytes(b"so")
    again = ContentStore(tmp_path / "content")
    await again.open()
    assert await again.read(digest) == DATA
    assert not leftover.exists()


async def test_put_is_durable(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a blob that exists already is made durable too: its writer may not have come that far."""
    digest = await store.put(DATA)
    synced: list[str] = []
    fsync = os.fsync

    def record(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", record)
    await store.put(DATA)
    assert synced == [str(store.path(digest).parent)]


async def test_sweep_keeps_what_can_be_resumed(store: ContentStore, tmp_path: Path) -> None:
    """The sweep drops partials of unknown digest and old ones, and keeps a fresh one of known digest."""
    ingests = tmp_path / "content" / "ingest"
    fresh, stale, unknown, empty = (ingests / name for name in ("fresh", "stale", "unknown", "empty"))
    for folder in (fresh, stale, unknown, empty):
        folder.mkdir()
    (fresh / partial_name(Digest.of(b"a"))).write_bytes(b"x")
    (stale / partial_name(Digest.of(b"b"))).write_bytes(b"x")
    (unknown / "data").write_bytes(b"x")
    old = time.time() - RESUMABLE_FOR - 60
    os.utime(stale / partial_name(Digest.of(b"b")), (old, old))
    await store.sweep_ingests()
    assert list(ingests.iterdir()) == [fresh]


async def test_sweep_leaves_writers_alone(store: ContentStore) -> None:
    """The sweep does not touch an ingest that somebody is writing."""
    async with store.ingest("create-1") as ingest:
        await ingest.write(DATA)
        await store.sweep_ingests()
        await ingest.commit(Digest.of(DATA), len(DATA))
    assert await store.read(Digest.of(DATA)) == DATA


async def test_ingest_is_exclusive(store: ContentStore) -> None:
    """A second writer of one ingest is refused at once and told for how long it is held; afterwards it gets in."""
    async with store.ingest("layer") as _, store.ingest("another"):
        with pytest.raises(RefLocked, match=r"layer .* for 0\.\d s"):
            async with store.ingest("layer"):
                pass
    async with store.ingest("layer"):
        pass

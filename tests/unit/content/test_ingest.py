"""Ingests: nothing visible before commit, resumed by hashing again, durable, and gone when the disk is full."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from pluginsvc.content.ingest import HOP, DigestMismatch, SizeMismatch, StorageError
from pluginsvc.content.store import ContentStore
from pluginsvc.model.digest import Digest

pytestmark = pytest.mark.anyio
BLOB = os.urandom(3 * HOP + 17)
DIGEST = Digest.of(BLOB)
SIZE = len(BLOB)


class Cut(Exception):
    """Ends a block early."""


def pieces(data: bytes, size: int = 64 * 1024) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def ingests(store: ContentStore) -> list[Path]:
    return sorted((store.path(DIGEST).parents[2] / "ingest").iterdir())


async def write(
    store: ContentStore, data: bytes, *, digest: Digest | None = DIGEST, size: int | None = SIZE, commit: bool = False
) -> None:
    """Write `data` in pieces; then commit it as the blob, or have the block cut short."""
    async with store.ingest("layer", digest=digest, size=size) as ingest:
        for piece in pieces(data):
            await ingest.write(piece)
        if not commit:
            raise Cut
        await ingest.commit(DIGEST, SIZE)


async def leave_half(store: ContentStore, amount: int = HOP + 1000) -> None:
    with pytest.raises(Cut):
        await write(store, BLOB[:amount])


@pytest.mark.parametrize("piece", [1000, HOP - 1, HOP, SIZE])
async def test_commit(store: ContentStore, piece: int) -> None:
    """A blob is the bytes that were written, however they were cut, and its ingest is gone."""
    async with store.ingest("layer") as ingest:
        for part in pieces(BLOB, piece):
            await ingest.write(part)
        assert ingest.offset == SIZE
        assert await store.size(DIGEST) is None, "visible before the commit"
        await ingest.commit(DIGEST, SIZE)
    assert await store.read(DIGEST) == BLOB
    assert ingests(store) == []


async def test_commit_order(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are on disk before they get their name, and the name is on disk before the commit returns."""
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(fd: int) -> None:
        done.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def record_replace(source: Path, target: Path) -> None:
        done.append(("replace", str(target)))
        replace(source, target)

    async with store.ingest("layer") as ingest:
        await ingest.write(BLOB)
        monkeypatch.setattr(os, "fsync", record_fsync)
        monkeypatch.setattr(os, "replace", record_replace)
        await ingest.commit(DIGEST, SIZE)
    place = store.path(DIGEST)
    assert [step for step, _ in done] == ["fsync", "replace", "fsync"]
    assert "/ingest/" in done[0][1]
    assert [path for _, path in done[1:]] == [str(place), str(place.parent)]


async def test_commit_of_existing(store: ContentStore) -> None:
    """Committing what is there already is success (REF 7.7)."""
    await store.put(BLOB)
    async with store.ingest("layer") as ingest:
        await ingest.write(BLOB)
        await ingest.commit(DIGEST, SIZE)
    assert await store.digests() == [(DIGEST, SIZE)]


async def test_empty_blob(store: ContentStore) -> None:
    """A blob of no bytes can be committed."""
    async with store.ingest("layer", digest=Digest.of(b""), size=0) as ingest:
        await ingest.commit(Digest.of(b""), 0)
    assert await store.read(Digest.of(b"")) == b""


async def test_wrong_digest(store: ContentStore) -> None:
    """Bytes that are not their digest's are refused, and the same ingest can then be written anew."""
    async with store.ingest("layer", digest=DIGEST, size=SIZE) as ingest:
        await ingest.write(bytes(SIZE))
        with pytest.raises(DigestMismatch, match=DIGEST):
            await ingest.commit(DIGEST, SIZE)
        assert ingest.offset == 0
        await ingest.write(BLOB)
        await ingest.commit(DIGEST, SIZE)
    assert await store.read(DIGEST) == BLOB


async def test_wrong_bytes_are_not_kept(store: ContentStore) -> None:
    """After a refused commit nothing is left to be resumed."""
    with pytest.raises(DigestMismatch):
        await write(store, bytes(SIZE), commit=True)
    assert await store.digests() == []
    assert ingests(store) == []


@pytest.mark.parametrize("data", [BLOB[:-1], BLOB[: HOP // 2], b""])
async def test_too_short(store: ContentStore, data: bytes) -> None:
    """Fewer bytes than announced are no blob, whatever their digest."""
    async with store.ingest("layer") as ingest:
        await ingest.write(data)
        with pytest.raises(SizeMismatch):
            await ingest.commit(Digest.of(data), SIZE)
    assert await store.digests() == []


async def test_too_long(store: ContentStore) -> None:
    """More bytes than announced are refused as they come, not after they filled the disk."""
    with pytest.raises(SizeMismatch):
        await write(store, BLOB, size=HOP)
    (folder,) = ingests(store)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= HOP


async def test_sha512(store: ContentStore) -> None:
    """A digest of the other algorithm is verified with that algorithm."""
    digest = Digest.parse(f"sha512:{hashlib.sha512(BLOB).hexdigest()}")
    for data, fits in ((BLOB[::-1], False), (BLOB, True)):
        async with store.ingest("layer", digest=digest, size=SIZE) as ingest:
            await ingest.write(data)
            if fits:
                await ingest.commit(digest, SIZE)
            else:
                with pytest.raises(DigestMismatch):
                    await ingest.commit(digest, SIZE)
    assert await store.read(digest) == BLOB


async def test_unfinished_of_unknown_digest_is_deleted(store: ContentStore) -> None:
    """A block that ends without commit leaves nothing when nobody knows what the bytes should be (REF 7.8)."""
    with pytest.raises(Cut):
        await write(store, BLOB, digest=None)
    assert ingests(store) == []


@pytest.mark.parametrize("amount", [1000, HOP, 2 * HOP + 5, SIZE])
async def test_resume(store: ContentStore, amount: int) -> None:
    """A partial of known digest is taken up where it ended, buffered bytes included, and hashed again."""
    await leave_half(store, amount)
    async with store.ingest("layer", digest=DIGEST, size=SIZE) as ingest:
        assert ingest.offset == amount
        await ingest.write(BLOB[amount:])
        await ingest.commit(DIGEST, SIZE)
    assert await store.read(DIGEST) == BLOB
    assert ingests(store) == []


async def test_resume_after_a_restart(store: ContentStore, tmp_path: Path) -> None:
    """A partial survives the daemon."""
    await leave_half(store)
    again = ContentStore(tmp_path / "content")
    await again.open()
    await again.sweep_ingests()
    async with again.ingest("layer", digest=DIGEST, size=SIZE) as ingest:
        assert ingest.offset == HOP + 1000


async def test_damaged_partial(store: ContentStore) -> None:
    """A partial that rotted on disk is found out at the commit, because it was hashed again."""
    await leave_half(store)
    (folder,) = ingests(store)
    (file,) = folder.iterdir()
    with file.open("r+b") as damaged:
        damaged.write(b"rot")
    async with store.ingest("layer", digest=DIGEST, size=SIZE) as ingest:
        await ingest.write(BLOB[ingest.offset :])
        with pytest.raises(DigestMismatch):
            await ingest.commit(DIGEST, SIZE)


@pytest.mark.parametrize(("digest", "size"), [(Digest.of(b"other"), SIZE), (None, None), (DIGEST, HOP)])
async def test_partial_of_something_else(store: ContentStore, digest: Digest | None, size: int | None) -> None:
    """A partial is not taken up for another digest, for none, or when it is longer than the blob may be."""
    await leave_half(store)
    async with store.ingest("layer", digest=digest, size=size) as ingest:
        assert ingest.offset == 0
    assert ingests(store) == []


async def test_truncate(store: ContentStore) -> None:
    """Truncating forgets what was written and what waits to be."""
    async with store.ingest("layer") as ingest:
        await ingest.write(b"x" * (HOP + 1))
        await ingest.write(b"y")
        await ingest.truncate()
        assert ingest.offset == 0
        await ingest.write(BLOB)
        await ingest.commit(DIGEST, SIZE)
    assert await store.read(DIGEST) == BLOB


async def test_adopt(store: ContentStore) -> None:
    """A writer that hashes for himself writes to the descriptor and names the digest."""
    async with store.ingest("create") as ingest:
        with os.fdopen(os.dup(ingest.fileno()), "wb") as file:
            await anyio.to_thread.run_sync(file.write, BLOB)
        with pytest.raises(SizeMismatch):
            await ingest.adopt(DIGEST, SIZE + 1)
        with os.fdopen(os.dup(ingest.fileno()), "wb") as file:
            await anyio.to_thread.run_sync(file.write, BLOB)
        await ingest.adopt(DIGEST, SIZE)
    assert await store.read(DIGEST) == BLOB
    assert ingests(store) == []


async def test_cancelled_writer(store: ContentStore) -> None:
    """A writer cancelled between two writes leaves a partial that can be resumed, and the ingest is free."""
    written = anyio.Event()

    async def begin() -> None:
        async with store.ingest("layer", digest=DIGEST, size=SIZE) as ingest:
            await ingest.write(BLOB[:1000])
            written.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(begin)
        await written.wait()
        group.cancel_scope.cancel()
    async with store.ingest("layer", digest=DIGEST, size=SIZE) as ingest:
        assert ingest.offset == 1000


@pytest.mark.parametrize("ref", ["../../../etc/x", "a/b", "", "\x00", "x" * 10_000])
async def test_hostile_refs(store: ContentStore, ref: str) -> None:
    """Any text names an ingest inside the store."""
    async with store.ingest(ref) as ingest:
        await ingest.write(BLOB)
        (folder,) = ingests(store)
        assert len(folder.name) == 64
        await ingest.commit(DIGEST, SIZE)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a mounted file system of 512 KiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(mount)], check=True)
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.root
async def test_full_disk(small_disk: Path) -> None:
    """On a full disk a write fails with the reason, leaves nothing, and the store works on."""
    store = ContentStore(small_disk / "content")
    await store.open()
    for digest in (DIGEST, None):
        with pytest.raises(StorageError, match="No space left on device: free some space"):
            await write(store, BLOB, digest=digest)
        assert ingests(store) == []
    with pytest.raises(StorageError, match="No space left on device"):
        await store.put(BLOB)
    assert await store.digests() == []
    assert await store.read(await store.put(b"small")) == b"small"


@pytest.mark.root
async def test_full_disk_at_the_end(small_disk: Path) -> None:
    """Bytes that wait for a hop and find no room when the block is left are not kept as a partial."""
    store = ContentStore(small_disk / "content")
    await store.open()
    await store.put(b"x" * (400 * 1024))
    with pytest.raises(Cut):
        await write(store, BLOB[: HOP - 1])
    assert ingests(store) == []


@pytest.mark.root
async def test_full_disk_frees_the_others(small_disk: Path) -> None:
    """When one ingest fills the disk, no other that is open keeps its partial, but all may still be committed."""
    store = ContentStore(small_disk / "content")
    await store.open()
    data = BLOB[:HOP]
    async with store.ingest("kept", digest=Digest.of(data), size=HOP) as kept:
        await kept.write(data)
        with pytest.raises(Cut):
            await _cut_when_full(store)
        await kept.commit(Digest.of(data), HOP)
    assert ingests(store) == []
    assert await store.size(Digest.of(data)) == HOP


async def _cut_when_full(store: ContentStore) -> None:
    async with store.ingest("other", digest=Digest.of(b"other"), size=1000) as other:
        await other.write(b"x" * 999)
        with pytest.raises(StorageError):
            await write(store, BLOB)
        raise Cut

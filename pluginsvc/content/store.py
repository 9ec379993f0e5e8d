"""The blobs of all plugins, each a file named by its digest; what is there is whole, verified and durable."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from pluginsvc.content.ingest import READING, DigestMismatch, Ingest, StorageError, remove_folder
from pluginsvc.errors import Internal, NotFound, Unavailable
from pluginsvc.fsutil import atomic_write, sync_dir
from pluginsvc.model.digest import Digest, InvalidDigest
from pluginsvc.model.manifest import MAX_MANIFEST

T = TypeVar("T")
RESUMABLE_FOR: Final = 24 * 3600
"""Seconds for which a partial is kept."""
_ALGORITHMS: Final = ("sha256", "sha512")


class BlobNotFound(NotFound):
    """The store has no such blob."""

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        super().__init__(f"blob {digest} is not in the content store: pull or create the plugin again")


class BlobTooLarge(Internal):
    """A blob that is read whole is larger than such blobs may be."""

    def __init__(self, digest: Digest, size: int, limit: int) -> None:
        self.digest, self.size, self.limit = digest, size, limit
        super().__init__(f"blob {digest} has {size} bytes, more than the {limit} that are read at once")


class RefLocked(Unavailable):
    """Somebody else is writing the same ingest."""

    def __init__(self, ref: str, held: float) -> None:
        self.ref, self.held = ref, held
        super().__init__(f"{ref} is being written by another request for {held:.1f} s: try again when that has ended")


class ContentStore:
    """Content-addressed blobs below one directory.

    Whether a blob is still needed is not known here: collection gets roots and leases from others (``content.gc``).

    Args:
        root: the directory, for this store alone; made by ``open``.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs"
        self._ingests = root / "ingest"
        self._held: dict[str, tuple[float, Ingest]] = {}
        self._sweeping = anyio.Lock()

    async def open(self) -> None:
        """Make the directories and drop the leftovers of writes that a crash interrupted.

        Raises:
            StorageError: the disk refused.
        """
        await self._hop("open the store", self._open)

    def path(self, digest: Digest) -> Path:
        """Return where the blob is, or would be."""
        return self._blobs / digest.algorithm / digest.hex

    async def size(self, digest: Digest) -> int | None:
        """Return the blob's size in bytes, None when it is not there.

        Raises:
            StorageError: the disk refused.
        """

        def look() -> int | None:
            try:
                return os.stat(self.path(digest)).st_size
            except FileNotFoundError:
                return None

        return await self._hop(f"look for {digest}", look)

    async def read(self, digest: Digest, *, limit: int = MAX_MANIFEST) -> bytes:
        """Return a small blob, verified.

        Args:
            digest: which.
            limit: largest size accepted, in bytes.

        Raises:
            BlobNotFound: it is not there.
            BlobTooLarge: it is larger than ``limit``.
            DigestMismatch: the file was damaged.
            StorageError: the disk refused.
        """

        def load() -> bytes:
            try:
                with open(self.path(digest), "rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    if size > limit:
                        raise BlobTooLarge(digest, size, limit)
                    data = file.read(limit)
            except FileNotFoundError as exc:
                raise BlobNotFound(digest) from exc
            _verify(data, digest)
            return data

        return await self._hop(f"read {digest}", load)

    @asynccontextmanager
    async def reader(self, digest: Digest) -> AsyncIterator[int]:
        """Give the block a descriptor to read a blob by; what is read is for the block to verify.

        Raises:
            BlobNotFound: it is not there.
            StorageError: the disk refused.
        """

        def opened() -> int:
            try:
                return os.open(self.path(digest), READING)
            except FileNotFoundError as exc:
                raise BlobNotFound(digest) from exc

        fd = await self._hop(f"read {digest}", opened)
        try:
            yield fd
        finally:
            os.close(fd)

    async def put(self, data: bytes, digest: Digest | None = None) -> Digest:
        """Store a small blob durably; an existing one is success.

        Args:
            data: the whole blob.
            digest: what it must come to; its sha256 by default.

        Raises:
            DigestMismatch: ``data`` is something else.
            StorageError: the disk refused; nothing is left.
        """

        def store() -> Digest:
            name = digest or Digest.of(data)
            _verify(data, name)
            path = self.path(name)
            try:
                same = path.read_bytes() == data
            except FileNotFoundError:
                same = False
            if same:
                sync_dir(path.parent)  # whoever wrote it may not have come that far
            else:
                atomic_write(path, data)
            return name

        return await self._hop(f"write a blob of {len(data)} bytes below {self._root}", store)

    @asynccontextmanager
    async def ingest(self, ref: str, *, digest: Digest | None = None, size: int | None = None) -> AsyncIterator[Ingest]:
        """Open the ingest ``ref`` for this block alone.

        A partial that an earlier block left for the same digest is taken up: see ``Ingest.offset``. When the disk is
        full, no ingest that is open at that moment leaves a partial.

        Args:
            ref: names the ingest; any text.
            digest: what the bytes must come to, if known; only then can a partial be resumed.
            size: how many bytes there must be, if known.

        Raises:
            RefLocked: somebody else has it; says for how long.
            StorageError: the disk refused.
        """
        key = hashlib.sha256(ref.encode()).hexdigest()
        ingest = Ingest(ref, self._ingests / key, self.path, digest=digest, size=size)
        async with self._sweeping:
            if key in self._held:
                raise RefLocked(ref, anyio.current_time() - self._held[key][0])
            self._held[key] = anyio.current_time(), ingest
        try:
            await ingest.prepare()
            yield ingest
        except StorageError as exc:
            if exc.full:
                # the others, soon cancelled as likely as not, must not hold on to the last of the disk
                for _, other in self._held.values():
                    other.forgo()
            raise
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await ingest.leave()
            finally:
                del self._held[key]

    async def digests(self) -> list[tuple[Digest, int]]:
        """Return every blob with its size in bytes.

        Raises:
            StorageError: the disk refused.
        """
        return await self._hop("list the blobs", self._list)

    def remove(self, digest: Digest) -> int:
        """Delete a blob; blocks. Return the bytes freed; a missing one is fine.

        Raises:
            StorageError: the disk refused.
        """
        path = self.path(digest)
        try:
            size = os.stat(path).st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        except OSError as exc:
            raise StorageError(f"delete {digest}", exc) from exc
        return size

    async def sweep_ingests(self) -> None:
        """Drop every ingest that nobody writes and that cannot be resumed, or was not for a day.

        Raises:
            StorageError: the disk refused.
        """
        async with self._sweeping:
            await self._hop("sweep the ingests", self._sweep, frozenset(self._held))

    async def _hop(self, what: str, work: Callable[..., T], *args: object) -> T:
        try:
            return await anyio.to_thread.run_sync(work, *args)
        except OSError as exc:
            raise StorageError(what, exc) from exc

    def _open(self) -> None:
        self._root.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self._root, self._blobs, *(self._blobs / name for name in _ALGORITHMS), self._ingests):
            folder.mkdir(mode=0o700, exist_ok=True)
        for folder in (self._blobs, self._root, self._root.parent):
            sync_dir(folder)
        for algorithm in _ALGORITHMS:
            for leftover in (self._blobs / algorithm).glob(".*"):
                leftover.unlink()

    def _list(self) -> list[tuple[Digest, int]]:
        found = []
        for algorithm in _ALGORITHMS:
            with os.scandir(self._blobs / algorithm) as entries:
                for entry in entries:
                    try:
                        digest = Digest.parse(f"{algorithm}:{entry.name}")
                        found.append((digest, entry.stat(follow_symlinks=False).st_size))
                    except (InvalidDigest, FileNotFoundError):
                        continue  # not a blob, or just collected
        return found

    def _sweep(self, held: frozenset[str]) -> None:
        oldest = time.time() - RESUMABLE_FOR
        for folder in self._ingests.iterdir():
            if folder.name in held:
                continue
            files = list(folder.iterdir())
            if not any(file.name != "data" and file.stat().st_mtime > oldest for file in files):
                remove_folder(folder)


def _verify(data: bytes, digest: Digest) -> None:
    actual = f"{digest.algorithm}:{hashlib.new(digest.algorithm, data).hexdigest()}"
    if actual != digest:
        raise DigestMismatch(digest, actual)

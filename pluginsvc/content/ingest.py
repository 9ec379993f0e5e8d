"""One blob on its way in: written, hashed, then committed under its digest, or left behind to be resumed.

The blocking half of the store's writing; the store owns who may have which ingest.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import anyio.to_thread
import structlog

from pluginsvc.errors import Internal
from pluginsvc.fsutil import sync_dir
from pluginsvc.model.digest import Digest

T = TypeVar("T")
HOP: Final = 256 * 1024
"""Bytes collected before a thread is bothered with them (design D6)."""
READING: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = 1024 * 1024
_log = structlog.get_logger()


class StorageError(Internal):
    """The disk below the content store refused."""

    def __init__(self, what: str, error: OSError) -> None:
        self.what, self.errno = what, error.errno
        self.full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        advice = ": free some space and try again" if self.full else ""
        super().__init__(f"content store: cannot {what}: {error.strerror or error}{advice}")


class DigestMismatch(Internal):
    """Bytes are not those that their digest names."""

    def __init__(self, expected: Digest, actual: str) -> None:
        self.expected, self.actual = expected, actual
        super().__init__(f"content is not what its digest says: wanted {expected}, got {actual}")


class SizeMismatch(Internal):
    """A blob has more or fewer bytes than its descriptor says."""

    def __init__(self, what: str, expected: int, actual: int) -> None:
        self.what, self.expected, self.actual = what, expected, actual
        super().__init__(f"{what} has the wrong size: wanted {expected} bytes, got {actual}")


class Ingest:
    """One blob being written; ``ContentStore.ingest`` makes it and has it to one owner at a time.

    Either the bytes go through ``write`` and ``commit`` checks them, or somebody who hashes for himself writes to
    ``fileno`` and says with ``adopt`` what it came to.

    Args:
        ref: what it is called in messages.
        folder: its own directory, made and removed here.
        place: tells where the blob of a digest belongs.
        digest: what the bytes must come to; None while nobody knows. Only a known digest can be resumed.
        size: how many bytes there must be; None while nobody knows.
    """

    def __init__(
        self, ref: str, folder: Path, place: Callable[[Digest], Path], *, digest: Digest | None, size: int | None
    ) -> None:
        self._ref, self._folder, self._place, self._digest, self._size = ref, folder, place, digest, size
        # the name tells a later ingest, and the sweep, what the partial is good for
        self._file = folder / (partial_name(digest) if digest else "data")
        self._fd = -1
        self._algorithm = digest.algorithm if digest else "sha256"
        self._hash = hashlib.new(self._algorithm)
        self._parts: list[bytes] = []
        self._waiting = 0
        self._offset = 0
        self._keep = digest is not None
        self._closed = False
        # a thread whose waiter was cancelled may still be at work when the next hop comes
        self._guard = threading.Lock()

    @property
    def offset(self) -> int:
        """Bytes taken so far, those of an earlier try included."""
        return self._offset

    @property
    def written(self) -> int:
        """Bytes taken so far that a ``reader`` finds in the file."""
        return self._offset - self._waiting

    def fileno(self) -> int:
        """Return the descriptor for a writer that hashes for himself; it stands at ``offset`` and stays ours."""
        return self._fd

    async def prepare(self) -> None:
        """Open the file, and hash what an earlier try left in it. For the store.

        Raises:
            StorageError: the disk refused.
        """
        self._offset = await self._hop(self._open)

    async def write(self, data: bytes) -> None:
        """Take the next bytes; a thread hashes and writes them once there are enough for a hop.

        Raises:
            SizeMismatch: there are more bytes than the size that was announced.
            StorageError: the disk refused; nothing is kept.
        """
        if self._size is not None and self._offset + len(data) > self._size:
            raise SizeMismatch(self._ref, self._size, self._offset + len(data))
        self._parts.append(data)
        self._waiting += len(data)
        self._offset += len(data)
        if self._waiting >= HOP:
            await self._hop(self._flush)

    async def flush(self) -> None:
        """Write what waits for the next hop.

        Raises:
            StorageError: the disk refused; nothing is kept.
        """
        await self._hop(self._flush)

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[int]:
        """Give the block a descriptor to read the bytes by, as they come; none of them is verified.

        Raises:
            StorageError: the disk refused.
        """
        fd = await self._hop(os.open, self._file, READING)
        try:
            yield fd
        finally:
            os.close(fd)

    async def truncate(self) -> None:
        """Forget all bytes and start over.

        Raises:
            StorageError: the disk refused.
        """
        await self._hop(self._empty)
        self._offset = 0

    async def commit(self, digest: Digest, size: int) -> None:
        """Check what went through ``write`` and make it the blob ``digest``, durably; an existing one is success.

        Args:
            digest: what the bytes must come to.
            size: how many there must be.

        Raises:
            DigestMismatch, SizeMismatch: they are not; the bytes are thrown away and the ingest starts over.
            StorageError: the disk refused.
        """
        await self._commit(digest, size, check=True)

    async def adopt(self, digest: Digest, size: int) -> None:
        """Make what was written to ``fileno`` the blob ``digest``, durably; the digest is the writer's word.

        Raises:
            SizeMismatch: the file is not that long; the bytes are thrown away and the ingest starts over.
            StorageError: the disk refused.
        """
        await self._commit(digest, size, check=False)

    def forgo(self) -> None:
        """Keep no partial: room is worth more now than resuming later. For the store."""
        self._keep = False

    async def leave(self) -> None:
        """Close; keep a partial that can be resumed, delete any other. For the store; never raises of the disk."""
        await anyio.to_thread.run_sync(self._leave)

    async def _commit(self, digest: Digest, size: int, *, check: bool) -> None:
        try:
            await self._hop(self._finish, digest, size, check)
        except (DigestMismatch, SizeMismatch):
            await self.truncate()
            raise

    async def _hop(self, work: Callable[..., T], *args: object) -> T:
        def guarded() -> T:
            with self._guard:
                assert not self._closed, "the ingest was left"
                return work(*args)

        try:
            return await anyio.to_thread.run_sync(guarded)
        except OSError as exc:
            # how much of the hop reached the file is unknown
            self._keep = False
            raise StorageError(f"write {self._ref} below {self._folder.parent.parent}", exc) from exc

    def _open(self) -> int:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for entry in self._folder.iterdir():
            if entry != self._file:
                entry.unlink()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._file, flags, 0o600)
        found = os.fstat(self._fd).st_size
        if self._digest is None or (self._size is not None and found > self._size):
            os.ftruncate(self._fd, 0)
        while data := os.read(self._fd, _READ):
            self._hash.update(data)
        return os.lseek(self._fd, 0, os.SEEK_CUR)

    def _flush(self) -> None:
        parts, self._parts, self._waiting = self._parts, [], 0
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(self._fd, view) :]
            self._hash.update(part)

    def _empty(self) -> None:
        self._parts, self._waiting = [], 0
        self._hash = hashlib.new(self._algorithm)
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.ftruncate(self._fd, 0)

    def _finish(self, digest: Digest, size: int, check: bool) -> None:  # noqa: FBT001 - passed through a hop
        self._flush()
        found = os.fstat(self._fd).st_size
        if found != size:
            raise SizeMismatch(str(digest), size, found)
        if check and digest != (actual := f"{self._algorithm}:{self._hash.hexdigest()}"):
            raise DigestMismatch(digest, actual)
        place = self._place(digest)
        os.fsync(self._fd)
        os.replace(self._file, place)
        self._keep = False
        sync_dir(place.parent)

    def _leave(self) -> None:
        with self._guard:
            self._closed = True
            try:
                if self._fd >= 0:
                    try:
                        self._keep = self._keep and self._saved() > 0
                    finally:
                        os.close(self._fd)
                if not self._keep:
                    remove_folder(self._folder)
            except OSError as exc:
                _log.warning("content.ingest_left_behind", ref=self._ref, folder=str(self._folder), error=str(exc))

    def _saved(self) -> int:
        """Write what still waits and return how many bytes can be resumed; none when the disk refuses."""
        try:
            self._flush()
        except OSError:
            return 0
        return os.fstat(self._fd).st_size


def partial_name(digest: Digest) -> str:
    """Return the file name of a partial that can be resumed."""
    return f"{digest.algorithm}-{digest.hex}"


def remove_folder(folder: Path) -> None:
    """Delete the directory of an ingest, which holds files only; blocks."""
    try:
        for entry in folder.iterdir():
            entry.unlink(missing_ok=True)
        folder.rmdir()
    except FileNotFoundError:
        pass

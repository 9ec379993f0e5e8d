"""Writing to a registry: existence checks, mounts, uploads, manifests (REF 4.5; distribution spec, "Push")."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import urlencode

import anyio
from anyio import to_thread

from pluginsvc import metrics
from pluginsvc.errors import Internal
from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import Descriptor
from pluginsvc.model.reference import DEFAULT_TAG, Reference
from pluginsvc.registry.answers import announced_digest
from pluginsvc.registry.errors import (
    ManifestUnknown,
    RegistryFault,
    RegistryProtocolError,
    redact_url,
)
from pluginsvc.registry.transport import Conversation
from pluginsvc.registry.wire import Body, join

_CHUNK: Final = 1024 * 1024
_COMMIT_TIMEOUT = 300.0
"""Seconds a registry may take, after the last byte, to verify and store a blob."""

_STORED = frozenset({200, 201, 204})


class BlobUnreadable(Internal):
    """A blob of our own store cannot be read, or is not what its descriptor says."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"cannot upload {path.name}: {reason}")


class Pusher:
    """Writes to one repository of one registry; made by ``Registry.pusher``.

    Args:
        reference: where to.
        converse: makes the conversation with the registry; called once.
    """

    def __init__(self, reference: Reference, converse: Callable[[], Awaitable[list[Conversation]]]) -> None:
        self._reference = reference
        self._converse = converse
        self._conversation: Conversation | None = None
        self._lock = anyio.Lock()
        self._sessions: dict[Digest, str] = {}

    async def exists(self, descriptor: Descriptor) -> bool:
        """Tell whether the repository has the blob already.

        Raises:
            RegistryFault: the registry does not say.
        """
        conversation = await self._open()
        path = f"/v2/{self._reference.path}/blobs/{descriptor.digest}"
        answer = await conversation.call("HEAD", path, ok=frozenset({200, 404}))
        return answer.status == 200

    async def mount(self, descriptor: Descriptor, source_repository: str) -> bool:
        """Have the registry take the blob over from another of its repositories.

        Args:
            descriptor: the blob.
            source_repository: the path of that repository, without the host.

        Returns:
            Whether it did; if not, upload.

        Raises:
            RegistryFault: only when trying again may help; a refusal to mount is no error.
        """
        conversation = await self._open()
        query = urlencode({"mount": descriptor.digest, "from": source_repository})
        try:
            answer = await conversation.call(
                "POST",
                f"{self._uploads}?{query}",
                ok=frozenset({201, 202}),
                scopes=frozenset({f"repository:{source_repository}:pull"}),
            )
        except RegistryFault as exc:
            if exc.temporary:
                raise
            return False
        if answer.status == 202 and (location := answer.headers.get("Location")):
            # the registry opened an upload instead: use it rather than leave it to rot there
            self._sessions[descriptor.digest] = join(answer.url, location)
        return answer.status == 201

    async def upload(self, descriptor: Descriptor, path: Path, on_progress: Callable[[int], None]) -> None:
        """Send a blob; each new attempt is a fresh upload.

        Args:
            descriptor: the blob.
            path: its file.
            on_progress: told how many bytes of the present attempt are sent.

        Raises:
            BlobUnreadable: the file cannot be read or has another size.
            RegistryFault: the last attempt's.
        """
        conversation = await self._open()
        # anyio's threads: a cancelled caller waits for what the thread opens, and can close it
        file = await to_thread.run_sync(_open_blob, path, descriptor.size)
        try:
            attempt = 1
            while True:
                try:
                    await self._upload(conversation, descriptor, path, file, on_progress)
                except RegistryFault as exc:
                    if not await conversation.pause(attempt, exc):
                        raise
                else:
                    return
                attempt += 1
        finally:
            file.close()

    async def put_manifest(self, raw: bytes, media_type: str) -> Digest:
        """Store a manifest under the reference's tag, unless the tag names it already.

        Args:
            raw: the manifest's bytes, sent as they are.
            media_type: its type.

        Returns:
            Its digest.

        Raises:
            RegistryProtocolError: the registry reports another digest.
            RegistryFault: the registry fails otherwise.
        """
        conversation = await self._open()
        digest = Digest.of(raw)
        path = f"/v2/{self._reference.path}/manifests/{self._reference.tag or self._reference.digest or DEFAULT_TAG}"
        known = await conversation.call(
            "HEAD", path, ok=frozenset({200, 404}), headers=(("Accept", f"{media_type}, */*"),)
        )
        if known.status == 200 and announced_digest(known) == digest:
            return digest
        answer = await conversation.call(
            "PUT",
            path,
            ok=_STORED,
            headers=(("Content-Type", media_type),),
            body=raw,
            missing=ManifestUnknown,
            what=str(self._reference),
        )
        metrics.UPLOADED.inc(len(raw))
        stored = announced_digest(answer)
        if stored is not None and stored.algorithm == digest.algorithm and stored != digest:
            raise RegistryProtocolError(
                f"{self._reference}: the registry reports {stored} for the manifest {digest}",
                url=redact_url(answer.url),
                http_status=answer.status,
            )
        return digest

    @property
    def _uploads(self) -> str:
        return f"/v2/{self._reference.path}/blobs/uploads/"

    async def _open(self) -> Conversation:
        async with self._lock:
            if self._conversation is None:
                (self._conversation,) = await self._converse()
        return self._conversation

    async def _upload(
        self,
        conversation: Conversation,
        descriptor: Descriptor,
        path: Path,
        file: BinaryIO,
        on_progress: Callable[[int], None],
    ) -> None:
        location = self._sessions.pop(descriptor.digest, None)
        if location is None:
            answer = await conversation.call(
                "POST",
                self._uploads,
                ok=frozenset({201, 202}),
                attempts=1,  # the caller starts afresh
                missing=ManifestUnknown,
                what=self._reference.repository,
            )
            if answer.status == 201:
                on_progress(descriptor.size)
                return
            if not answer.headers.get("Location"):
                raise RegistryProtocolError(
                    f"POST {redact_url(answer.url)}: the answer names no place to upload to",
                    url=redact_url(answer.url),
                    http_status=answer.status,
                )
            location = join(answer.url, answer.headers["Location"])

        async def chunks() -> AsyncIterator[bytes]:
            sent = 0
            while chunk := await to_thread.run_sync(_read_at, path, file, sent, descriptor.size):
                yield chunk
                sent += len(chunk)
                metrics.UPLOADED.inc(len(chunk))
                on_progress(sent)

        # the location's own query is the registry's, byte for byte: only joined, never quoted anew
        separator = "&" if "?" in location else "?"
        async with conversation.request(
            "PUT",
            f"{location.partition('#')[0]}{separator}{urlencode({'digest': descriptor.digest})}",
            headers=(("Content-Type", "application/octet-stream"),),
            body=Body(descriptor.size, chunks),
            wait=_COMMIT_TIMEOUT,
        ) as response:
            if response.status not in _STORED:
                fault = await conversation.fault(response)
                # the registry has lost this upload; a fresh one may do
                fault.temporary = fault.temporary or response.status in {404, 416}
                raise fault


def _open_blob(path: Path, size: int) -> BinaryIO:
    try:
        file = path.open("rb")
    except OSError as exc:
        raise BlobUnreadable(path, exc.strerror or str(exc)) from exc
    found = os.fstat(file.fileno()).st_size
    if found != size:
        file.close()
        raise BlobUnreadable(path, f"it has {found} bytes, its descriptor says {size}")
    return file


def _read_at(path: Path, file: BinaryIO, offset: int, size: int) -> bytes:
    """Read the next chunk; reads carry their own offset, so that an attempt that is cut leaves no position behind."""
    try:
        chunk = os.pread(file.fileno(), _CHUNK, offset)
    except OSError as exc:
        raise BlobUnreadable(path, exc.strerror or str(exc)) from exc
    if not chunk and offset < size:
        raise BlobUnreadable(path, f"it ends after {offset} of {size} bytes")
    return chunk

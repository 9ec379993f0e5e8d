"""Reading from a registry: resolve a reference, fetch manifests and blobs (REF 4.4; distribution spec, "Pull")."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Final, TypeVar

import aiohttp
import anyio

from pluginsvc import metrics
from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import MANIFEST_TYPES, MAX_MANIFEST, Descriptor
from pluginsvc.model.reference import DEFAULT_TAG, Reference
from pluginsvc.registry.answers import announced_digest, announced_size, guess_type, lie, media_type, verify
from pluginsvc.registry.errors import (
    CUT,
    BlobUnknown,
    ManifestUnknown,
    RegistryFault,
    RegistryProtocolError,
    TruncatedBlob,
    most_specific,
    redact_url,
)
from pluginsvc.registry.transport import Answer, Conversation
from pluginsvc.registry.wire import Headers, read_some

CHUNK: Final = 256 * 1024
"""Bytes of a layer that are handed on at once, the last chunk apart."""

T = TypeVar("T")

_OK = frozenset({200})
_JOINED: Headers = (("Accept", ", ".join([*MANIFEST_TYPES, "*/*"])),)
_SEPARATE: Headers = tuple(("Accept", kind) for kind in MANIFEST_TYPES)


_CONTENT_RANGE = re.compile(r"bytes (?P<start>[0-9]{1,19})-[0-9]{1,19}/(?P<total>[0-9]{1,19}|\*)")


class Fetcher:
    """Reads one repository from the hosts of its registry, mirrors first; made by ``Registry.fetcher``.

    Args:
        reference: what is pulled.
        converse: makes the conversations with the hosts, in order; called once.
    """

    def __init__(self, reference: Reference, converse: Callable[[], Awaitable[list[Conversation]]]) -> None:
        self._reference = reference
        self._converse = converse
        self._conversations: list[Conversation] = []
        self._lock = anyio.Lock()
        self._answered: Conversation | None = None

    @property
    def source(self) -> str:
        """``host/path`` of the repository that answered last; the reference's own domain unless it was a mirror."""
        if self._answered is not None and self._answered.endpoint.mirror:
            return f"{self._answered.endpoint.host}/{self._reference.path}"
        return self._reference.repository

    async def resolve(self) -> Descriptor:
        """Find out which manifest or index the reference stands for.

        Raises:
            ManifestUnknown: there is none; the text is ``<full reference>: not found``.
            AccessDenied: the registry wants (other) credentials.
            RegistryFault: the registry fails otherwise.
        """
        return await self._each(self._resolve)

    async def fetch(self, descriptor: Descriptor, *, limit: int = MAX_MANIFEST) -> bytes:
        """Read a manifest, or a small blob, into memory and verify it.

        Args:
            descriptor: its media type tells a manifest from a blob.
            limit: most bytes accepted.

        Raises:
            RegistryProtocolError: too large, or not what the descriptor says.
            ManifestUnknown, BlobUnknown: it is not there.
            RegistryFault: the registry fails otherwise.
        """
        if not 0 <= descriptor.size <= limit:
            raise RegistryProtocolError(
                f"{descriptor.digest} in {self._reference}: its size of {descriptor.size} bytes is beyond the limit of "
                f"{limit} bytes"
            )

        async def work(conversation: Conversation) -> bytes:
            kind = descriptor.media_type
            manifest = kind in MANIFEST_TYPES or ".manifest." in kind
            answer = await conversation.call(
                "GET",
                self._manifest(descriptor.digest) if manifest else self._blob(descriptor.digest),
                ok=_OK,
                headers=(("Accept", f"{kind}, */*" if kind.isascii() and kind.isprintable() else "*/*"),),
                limit=descriptor.size,
                missing=ManifestUnknown if manifest else BlobUnknown,
                what=f"{self._reference.repository}@{descriptor.digest}",
            )
            metrics.DOWNLOADED.inc(len(answer.body))
            verify(answer, descriptor)
            return answer.body

        return await self._each(work)

    @asynccontextmanager
    async def open(self, descriptor: Descriptor, *, offset: int = 0) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read a layer from ``offset`` on; one attempt, nothing verified but its length.

        The iterator ends only after exactly ``descriptor.size - offset`` bytes. After a fault whose ``temporary`` is
        true the caller may open again at the offset that was reached; another host, if there is one, is asked first.

        Args:
            descriptor: the layer.
            offset: bytes that are there already.

        Raises:
            TruncatedBlob: the bytes end early (from the iterator).
            BlobUnknown: it is not there.
            RegistryFault: the registry fails otherwise, also from the iterator.
        """
        async with AsyncExitStack() as stack:

            async def work(conversation: Conversation) -> tuple[Conversation, aiohttp.ClientResponse]:
                wanted: Headers = (("Range", f"bytes={offset}-"),) if offset else ()
                response = await stack.enter_async_context(
                    conversation.request("GET", self._blob(descriptor.digest), headers=wanted)
                )
                if response.status not in {200, 206}:
                    what = f"{self._reference.repository}@{descriptor.digest}"
                    raise await conversation.fault(response, missing=BlobUnknown, what=what)
                _check_length(response, descriptor, offset)
                return conversation, response

            if offset == descriptor.size:
                yield _nothing()
                return
            conversation, response = await self._each(work)
            skip = offset if response.status == 200 else 0
            async with aclosing(self._chunks(conversation, response, descriptor, skip, offset)) as chunks:
                yield chunks

    async def _chunks(
        self, conversation: Conversation, response: aiohttp.ClientResponse, descriptor: Descriptor, skip: int, done: int
    ) -> AsyncGenerator[bytes, None]:
        parts: list[bytes] = []
        held = 0
        fault: RegistryFault | None = None
        while done + held < descriptor.size:
            try:
                data = await read_some(response)
            except RegistryFault as exc:
                fault = exc
                break
            if not data:
                break
            metrics.DOWNLOADED.inc(len(data))
            if skip:
                data, skip = data[skip:], max(skip - len(data), 0)
            held += len(data)
            if done + held > descriptor.size:
                raise _wrong_length(response, descriptor, "more are sent")
            parts.append(data)
            if held >= CHUNK:
                yield b"".join(parts)
                done, held, parts = done + held, 0, []
        # also before a fault: what came is good, and the caller resumes behind it
        if parts:
            yield b"".join(parts)
            done += held
        if done == descriptor.size:
            return
        self._demote(conversation)
        if fault is not None and fault.code != CUT:
            raise fault
        url = redact_url(response.url)
        raise TruncatedBlob(
            f"GET {url}: the blob was cut off after {done} of {descriptor.size} bytes",
            url=url,
            code=CUT,
            temporary=True,
        ) from fault

    async def _resolve(self, conversation: Conversation) -> Descriptor:
        path = self._manifest(self._reference.digest or self._reference.tag or DEFAULT_TAG)
        accept = _JOINED
        try:
            answer = await self._ask(conversation, "HEAD", path, accept)
        except (ManifestUnknown, RegistryProtocolError):
            accept = _SEPARATE
            answer = await self._ask(conversation, "HEAD", path, accept)
        kind, digest, size = media_type(answer), announced_digest(answer), announced_size(answer)
        if digest is None or not size or kind not in MANIFEST_TYPES:
            answer = await self._ask(conversation, "GET", path, accept)
            digest, size = Digest.of(answer.body), len(answer.body)
            kind = media_type(answer)
            kind = kind if kind in MANIFEST_TYPES else guess_type(answer.body) or kind
        asked = self._reference.digest
        if asked is not None and asked != digest:
            # a digest of another algorithm cannot be compared; it is verified when the manifest is fetched
            if asked.algorithm == digest.algorithm:
                raise lie(answer, f"{self._reference}: the registry answers with {digest}, not what was asked for")
            digest = asked
        if size > MAX_MANIFEST:
            raise lie(
                answer, f"{self._reference}: a manifest of {size} bytes is beyond the limit of {MAX_MANIFEST} bytes"
            )
        return Descriptor(media_type=kind, digest=digest, size=size)

    async def _ask(self, conversation: Conversation, method: str, path: str, accept: Headers) -> Answer:
        return await conversation.call(
            method,
            path,
            ok=_OK,
            headers=accept,
            limit=MAX_MANIFEST,
            missing=ManifestUnknown,
            what=str(self._reference),
        )

    async def _each(self, work: Callable[[Conversation], Awaitable[T]]) -> T:
        """Do ``work`` with the first host that can, and report the most specific error when none can."""
        async with self._lock:
            if not self._conversations:
                self._conversations = await self._converse()
        faults: list[tuple[RegistryFault, bool]] = []
        for conversation in list(self._conversations):
            try:
                result = await work(conversation)
            except RegistryFault as exc:
                faults.append((exc, conversation.endpoint.mirror))
                self._demote(conversation)
            else:
                self._answered = conversation
                return result
        raise most_specific(faults)

    def _demote(self, conversation: Conversation) -> None:
        """Ask this host last from now on."""
        self._conversations.sort(key=lambda other: other is conversation)

    def _manifest(self, name: str) -> str:
        return f"/v2/{self._reference.path}/manifests/{name}"

    def _blob(self, digest: Digest) -> str:
        return f"/v2/{self._reference.path}/blobs/{digest}"


async def _nothing() -> AsyncIterator[bytes]:
    chunks: tuple[bytes, ...] = ()
    for chunk in chunks:
        yield chunk


def _check_length(response: aiohttp.ClientResponse, descriptor: Descriptor, offset: int) -> None:
    announced = response.content_length
    if response.status == 200:
        if announced is not None and announced != descriptor.size:
            raise _wrong_length(response, descriptor, f"{announced} bytes are announced")
        return
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if found is None or int(found["start"]) != offset or found["total"] not in {"*", str(descriptor.size)}:
        raise _wrong_length(response, descriptor, f"another range than from {offset} on is sent")


def _wrong_length(response: aiohttp.ClientResponse, descriptor: Descriptor, text: str) -> RegistryProtocolError:
    url = redact_url(response.url)
    return RegistryProtocolError(
        f"GET {url}: the blob should have {descriptor.size} bytes, but {text}", url=url, http_status=response.status
    )

"""Fetching: resolve in every shape, verified small content, layers with ranges and faults, several hosts."""

import hashlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import (
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    MANIFEST_TYPES,
    MAX_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    PLUGIN_CONFIG,
    Descriptor,
    build_manifest,
)
from pluginsvc.registry.client import Registry
from pluginsvc.registry.errors import (
    CUT,
    AccessDenied,
    BlobUnknown,
    ManifestUnknown,
    RegistryBusy,
    RegistryFault,
    RegistryProtocolError,
    TruncatedBlob,
)
from pluginsvc.registry.fetcher import CHUNK, Fetcher
from pluginsvc.registry.hosts import Endpoint, Hosts
from tests.support.registry import Registry as Running
from tests.unit.registry import scripted
from tests.unit.registry.scripted import Seen, Server, access, blob, manifest_answer, reference, serve

pytestmark = pytest.mark.anyio

RAW = b'{"schemaVersion":2,"layers":[]}'
DIGEST = Digest.of(RAW)
LAYER = os.urandom(3 * CHUNK + 1234)
Answer = Callable[[Seen], web.StreamResponse]


async def with_answers(
    answer: Answer, work: Callable[[Fetcher, Server], Awaitable[None]], *, rest: str = "foo/bar:v1"
) -> Server:
    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response() if seen.target == "/v2/" else answer(seen)

    async with serve(script) as server, scripted.registry() as client:
        await work(client.fetcher(reference(server.host, rest), access()), server)
    return server


async def resolved(answer: Answer, *, rest: str = "foo/bar:v1") -> tuple[Descriptor, Server]:
    found: list[Descriptor] = []

    async def work(fetcher: Fetcher, server: Server) -> None:
        found.append(await fetcher.resolve())

    server = await with_answers(answer, work, rest=rest)
    return found[0], server


async def test_against_a_real_registry(registry: Running, tmp_path: Path) -> None:
    """What was pushed to a real registry is resolved by tag and by digest, fetched, and read from any offset."""
    file = tmp_path / "layer"
    file.write_bytes(LAYER)
    layer = blob(LAYER)
    config = b"{}"
    (tmp_path / "config").write_bytes(config)
    raw = build_manifest(blob(config, PLUGIN_CONFIG), [layer])
    async with scripted.registry() as client:
        target = reference(registry.host, "fetch/real:v1")
        pusher = client.pusher(target, access())
        await pusher.upload(layer, file, lambda _: None)
        await pusher.upload(blob(config), tmp_path / "config", lambda _: None)
        digest = await pusher.put_manifest(raw, DOCKER_MANIFEST)
        fetcher = client.fetcher(target, access())
        for rest in ("fetch/real:v1", f"fetch/real@{digest}", f"fetch/real:other@{digest}"):
            fetcher = client.fetcher(reference(registry.host, rest), access())
            found = await fetcher.resolve()
            assert found == Descriptor(media_type=DOCKER_MANIFEST, digest=digest, size=len(raw))
            assert await fetcher.fetch(found) == raw
            assert fetcher.source == f"{registry.host}/fetch/real"
        assert await fetcher.fetch(blob(config, PLUGIN_CONFIG)) == config
        for offset in (0, 1, CHUNK, len(LAYER) - 1, len(LAYER)):
            async with fetcher.open(layer, offset=offset) as chunks:
                parts = [chunk async for chunk in chunks]
            assert b"".join(parts) == LAYER[offset:]
            assert all(len(part) >= CHUNK for part in parts[:-1])
        with pytest.raises(BlobUnknown):
            await fetcher.fetch(blob(b"never pushed", PLUGIN_CONFIG))
        with pytest.raises(BlobUnknown):
            async with fetcher.open(blob(b"never pushed")):
                pass


async def test_resolve_is_one_head() -> None:
    """A registry that tells type, digest and size is asked once, with one Accept line of all types."""
    found, server = await resolved(lambda _: manifest_answer(RAW))
    assert found == Descriptor(media_type=DOCKER_MANIFEST, digest=DIGEST, size=len(RAW))
    (asked,) = server.real()
    assert asked.line == "HEAD /v2/foo/bar/manifests/v1"
    assert asked.headers.getall("Accept") == [", ".join([*MANIFEST_TYPES, "*/*"])]


async def test_resolve_falls_back_to_separate_accept_lines() -> None:
    """A registry that does not split the list is asked again with one line for each type, meta headers included."""

    def picky(seen: Seen) -> web.StreamResponse:
        return web.Response(status=404) if "," in seen.headers["Accept"] else manifest_answer(RAW)

    found, server = await resolved(picky)
    assert found.digest == DIGEST
    second = server.real()[1]
    assert second.headers.getall("Accept") == list(MANIFEST_TYPES)
    assert second.headers["X-Meta-Team"] == "a"


@pytest.mark.parametrize("drop", ["Docker-Content-Digest", "Content-Type"])
async def test_resolve_reads_what_head_does_not_tell(drop: str) -> None:
    """Without a digest or a type in the headers the manifest is read and hashed."""

    def bare(seen: Seen) -> web.StreamResponse:
        answer = manifest_answer(RAW)
        answer.headers[drop] = "application/octet-stream" if drop == "Content-Type" else "nonsense"
        return answer

    found, server = await resolved(bare)
    assert (found.digest, found.size) == (DIGEST, len(RAW))
    assert found.media_type == (DOCKER_MANIFEST if drop != "Content-Type" else OCI_MANIFEST)
    assert [seen.method for seen in server.real()] == ["HEAD", "GET"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"mediaType":"%s"}' % OCI_INDEX.encode(), OCI_INDEX),
        (b'{"manifests":[]}', OCI_INDEX),
        (b'{"layers":null,"config":{}}', OCI_MANIFEST),
        (b'{"mediaType":5}', "text/plain"),
        (b"not json", "text/plain"),
    ],
)
async def test_an_untyped_manifest_is_told_by_its_members(body: bytes, expected: str) -> None:
    """A manifest whose header has no usable type is recognised by what it holds."""
    found, _ = await resolved(lambda _: web.Response(body=body, content_type="text/plain"))
    assert found.media_type == expected


async def test_a_digest_that_is_not_the_one_asked_for_is_a_lie() -> None:
    """By digest, a registry cannot answer with another manifest."""
    with pytest.raises(RegistryProtocolError, match="not what was asked for"):
        await resolved(lambda _: manifest_answer(RAW), rest=f"foo/bar@{Digest.of(b'other')}")


async def test_sha512_references_are_verified_when_fetched() -> None:
    """A reference by sha512 is resolved as it is, and fetching verifies it."""
    digest = Digest.parse("sha512:" + hashlib.sha512(RAW).hexdigest())

    async def work(fetcher: Fetcher, server: Server) -> None:
        found = await fetcher.resolve()
        assert found.digest == digest
        assert await fetcher.fetch(found) == RAW
        with pytest.raises(RegistryProtocolError):
            await fetcher.fetch(msgspec.structs.replace(found, digest=Digest.parse("sha512:" + "0" * 128)))

    await with_answers(lambda _: manifest_answer(RAW), work, rest=f"foo/bar@{digest}")


@pytest.mark.parametrize("head", [True, False])
async def test_manifests_too_large_are_refused(*, head: bool) -> None:
    """A manifest beyond the limit is refused, announced by HEAD or met by GET."""

    def large(seen: Seen) -> web.StreamResponse:
        return manifest_answer(b"x" * (MAX_MANIFEST + 1)) if head else web.Response(body=b"x" * (MAX_MANIFEST + 1))

    with pytest.raises(RegistryProtocolError, match=str(MAX_MANIFEST)):
        await resolved(large)


@pytest.mark.parametrize(
    ("body", "text"), [(RAW[:-1], "bytes came"), (RAW + b" ", "larger"), (RAW.replace(b"2", b"3"), "another digest")]
)
async def test_small_content_is_verified(body: bytes, text: str) -> None:
    """Content of another size or digest than its descriptor's never reaches the caller."""

    async def work(fetcher: Fetcher, server: Server) -> None:
        for kind in (DOCKER_MANIFEST, PLUGIN_CONFIG):
            with pytest.raises(RegistryProtocolError, match=text):
                await fetcher.fetch(Descriptor(media_type=kind, digest=DIGEST, size=len(RAW)))
        assert server.lines() == [f"GET /v2/foo/bar/manifests/{DIGEST}", f"GET /v2/foo/bar/blobs/{DIGEST}"]

    await with_answers(lambda _: web.Response(body=body), work)


@pytest.mark.parametrize("size", [-1, MAX_MANIFEST + 1, 2**70])
async def test_absurd_sizes_are_refused_unasked(size: int) -> None:
    """A descriptor that claims a size beyond the limit costs no request."""

    async def work(fetcher: Fetcher, server: Server) -> None:
        with pytest.raises(RegistryProtocolError):
            await fetcher.fetch(Descriptor(media_type="a\r\nb", digest=DIGEST, size=size))
        assert server.seen == []

    await with_answers(lambda _: web.Response(), work)


async def test_hostile_media_types_do_not_reach_the_wire() -> None:
    """A media type with line breaks is not put into a header."""

    async def work(fetcher: Fetcher, server: Server) -> None:
        await fetcher.fetch(Descriptor(media_type="a\r\nX-Evil: 1", digest=DIGEST, size=len(RAW)))
        assert "X-Evil" not in server.real()[0].headers

    await with_answers(lambda _: web.Response(body=RAW), work)


async def test_a_registry_that_ignores_ranges_is_skipped_through() -> None:
    """With 200 instead of 206 the bytes before the offset are dropped."""

    async def work(fetcher: Fetcher, server: Server) -> None:
        async with fetcher.open(blob(LAYER), offset=CHUNK + 7) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == LAYER[CHUNK + 7 :]
        assert server.real()[0].headers["Range"] == f"bytes={CHUNK + 7}-"

    await with_answers(lambda _: web.Response(body=LAYER), work)


@pytest.mark.parametrize(
    ("status", "content_range", "length"),
    [
        (200, None, len(LAYER) - 1),
        (200, None, len(LAYER) + 1),
        (206, None, 10),
        (206, "bytes 0-9/10", 10),
        (206, f"bytes 5-{len(LAYER) - 1}/{len(LAYER) + 1}", 10),
        (206, "bytes five", 10),
        (416, None, 0),
        (204, None, 0),
    ],
)
async def test_wrong_lengths_are_protocol_errors(status: int, content_range: str | None, length: int) -> None:
    """An answer whose announced length or range is not what was asked for is refused before its first byte."""

    def answer(seen: Seen) -> web.StreamResponse:
        headers = {"Content-Range": content_range} if content_range else {}
        return web.Response(status=status, body=b"x" * length, headers=headers)

    async def work(fetcher: Fetcher, server: Server) -> None:
        with pytest.raises(RegistryProtocolError):
            async with fetcher.open(blob(LAYER), offset=5):
                pass

    await with_answers(answer, work)


def streamed(data: bytes, *, length: int | None, end: bool) -> scripted.Script:
    """Send `data` under the announced `length` (None: chunked), and end properly or cut."""

    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.target == "/v2/":
            return web.Response()
        response = web.StreamResponse(headers={"Content-Length": str(length)} if length is not None else {})
        await response.prepare(request)
        await response.write(data)
        if not end:
            assert request.transport is not None
            request.transport.close()
        return response

    return script


async def drained(client: Registry, server: Server) -> tuple[bytes, RegistryFault | None]:
    fetcher = client.fetcher(reference(server.host), access())
    got: list[bytes] = []
    try:
        async with fetcher.open(blob(LAYER)) as chunks:
            async for chunk in chunks:
                got.append(chunk)  # noqa: PERF401 - what came before the fault is looked at
    except RegistryFault as exc:
        return b"".join(got), exc
    return b"".join(got), None


@pytest.mark.parametrize(("length", "end"), [(len(LAYER), False), (None, False), (None, True)])
async def test_a_cut_blob_is_no_end(length: int | None, *, end: bool) -> None:
    """A blob that ends early is a temporary fault, after the bytes that came: also when its end looks proper."""
    async with serve(streamed(LAYER[: CHUNK + 99], length=length, end=end)) as server, scripted.registry() as client:
        got, fault = await drained(client, server)
    assert isinstance(fault, TruncatedBlob)
    assert (fault.code, fault.temporary) == (CUT, True)
    assert LAYER.startswith(got)
    if end:
        assert len(got) == CHUNK + 99


async def test_a_blob_that_does_not_end_is_a_lie() -> None:
    """More bytes than the descriptor's size are refused."""
    async with serve(streamed(LAYER + b"x" * CHUNK, length=None, end=True)) as server, scripted.registry() as client:
        got, fault = await drained(client, server)
    assert isinstance(fault, RegistryProtocolError)
    assert not fault.temporary
    assert len(got) <= len(LAYER)


async def test_a_redirected_blob_gets_no_credentials() -> None:
    """A blob on another host is read without credentials and meta headers, with the range."""

    async def storage(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        headers = {"Content-Range": f"bytes 9-{len(LAYER) - 1}/{len(LAYER)}"}
        return web.Response(status=206, body=LAYER[9:], headers=headers)

    async with serve(storage) as other:

        def answer(seen: Seen) -> web.StreamResponse:
            if seen.auth is None:
                return scripted.challenge('Basic realm="r"')
            return web.Response(status=307, headers={"Location": f"{other.url}/data?X-Sig=a%2Fb"})

        async def work(fetcher: Fetcher, server: Server) -> None:
            async with fetcher.open(blob(LAYER), offset=9) as chunks:
                assert b"".join([chunk async for chunk in chunks]) == LAYER[9:]

        await with_answers(answer, work)
    (seen,) = other.seen
    assert seen.line == "GET /data?X-Sig=a%2Fb"
    assert seen.headers["Range"] == "bytes=9-"
    assert not {"Authorization", "X-Meta-Team", "Cookie"} & set(seen.headers)


async def test_a_redirect_target_cannot_ask_for_credentials() -> None:
    """A 401 from a redirect's target is no challenge: neither password nor token is given."""

    async def greedy(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return scripted.challenge(f'Bearer realm="{other.url}/token", Basic realm="x"')

    async with serve(greedy) as other:

        async def work(fetcher: Fetcher, server: Server) -> None:
            with pytest.raises(AccessDenied):
                async with fetcher.open(blob(LAYER)):
                    pass

        await with_answers(lambda _: web.Response(status=302, headers={"Location": other.url}), work)
    assert [seen.line for seen in other.seen] == ["GET /"]
    assert other.seen[0].auth is None


class TwoHosts(Hosts):
    """A mirror and a registry behind every name."""

    def __init__(self, mirror: str, own: str) -> None:
        super().__init__(certs_dirs=())
        self.pair = mirror, own

    async def endpoints(self, domain: str, *, push: bool) -> list[Endpoint]:
        mirror, own = self.pair
        return [
            Endpoint(host=mirror, schemes=("http",), mirror=True),
            Endpoint(host=own, schemes=("https", "http")),
        ]


def fixed(answer: Answer) -> scripted.Script:
    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return answer(seen)

    return script


async def test_mirrors_get_nothing_that_is_the_registrys() -> None:
    """A mirror that asks for a login gets none; the registry behind it does, and answers."""

    def mirror_answer(seen: Seen) -> web.StreamResponse:
        return scripted.challenge('Basic realm="m"')

    def own_answer(seen: Seen) -> web.StreamResponse:
        return manifest_answer(RAW) if seen.auth else scripted.challenge('Basic realm="m"')

    async with (
        serve(fixed(mirror_answer)) as mirror,
        serve(fixed(own_answer)) as own,
        scripted.registry(TwoHosts(mirror.host, own.host)) as client,
    ):
        fetcher = client.fetcher(reference("hub.test"), access())
        found = await fetcher.resolve()
        assert found.digest == DIGEST
        assert fetcher.source == "hub.test/foo/bar"
        asked = len(mirror.seen)
        assert await fetcher.fetch(found) == RAW
        assert len(mirror.seen) == asked  # it failed once and comes last now
    assert {seen.auth for seen in mirror.seen} == {None}
    assert not any("X-Meta-Team" in seen.headers for seen in mirror.seen)


async def test_mirror_tokens_are_anonymous() -> None:
    """A realm that a mirror names gets no password."""
    async with serve(fixed(lambda _: web.json_response({"token": "m"}))) as realm:

        def mirror_answer(seen: Seen) -> web.StreamResponse:
            if seen.auth:
                return manifest_answer(RAW)
            return scripted.challenge(f'Bearer realm="{realm.url}",service="m"')

        async with (
            serve(fixed(mirror_answer)) as mirror,
            scripted.registry(TwoHosts(mirror.host, "127.0.0.1:1")) as client,
        ):
            fetcher = client.fetcher(reference("hub.test"), access())
            await fetcher.resolve()
            assert fetcher.source == f"{mirror.host}/foo/bar"
        assert [(seen.method, seen.auth, seen.body) for seen in realm.seen] == [("GET", None, b"")]


@pytest.mark.parametrize(
    ("mirror_status", "own_status", "kind"),
    [(401, 404, ManifestUnknown), (404, 401, AccessDenied), (404, None, ManifestUnknown), (None, 404, ManifestUnknown)],
)
async def test_the_most_specific_error_of_several_hosts(
    mirror_status: int | None, own_status: int | None, kind: type[RegistryFault]
) -> None:
    """The registry's own answer is reported; a mirror's only when the registry gives none (REF 7.25)."""

    def answering(status: int | None) -> Answer:
        return lambda _: web.Response(status=status or 500)

    async with serve(fixed(answering(mirror_status))) as mirror, serve(fixed(answering(own_status))) as own:
        hosts = TwoHosts(mirror.host if mirror_status else "127.0.0.1:1", own.host if own_status else "127.0.0.1:1")
        async with scripted.registry(hosts) as client:
            with pytest.raises(kind):
                await client.fetcher(reference("hub.test"), access()).resolve()


async def test_a_cut_mirror_is_asked_last() -> None:
    """After a cut the next opening goes to the other host, at the offset reached."""
    tail: list[str | None] = []

    def own_answer(seen: Seen) -> web.StreamResponse:
        tail.append(seen.headers.get("Range"))
        start = int(re.sub(r"\D", "", seen.headers["Range"]))
        headers = {"Content-Range": f"bytes {start}-{len(LAYER) - 1}/{len(LAYER)}"}
        return web.Response(status=206, body=LAYER[start:], headers=headers)

    cut_off = streamed(LAYER[: CHUNK + 5], length=None, end=True)
    async with (
        serve(cut_off) as mirror,
        serve(fixed(own_answer)) as own,
        scripted.registry(TwoHosts(mirror.host, own.host)) as client,
    ):
        fetcher = client.fetcher(reference("hub.test"), access())
        got = bytearray()

        async def collect(chunks: AsyncIterator[bytes]) -> None:
            async for chunk in chunks:
                got.extend(chunk)

        with pytest.raises(TruncatedBlob):
            async with fetcher.open(blob(LAYER)) as chunks:
                await collect(chunks)
        client._schemes._known[own.host] = "http"  # our scripted answer needs a Range, the look for a scheme has none
        async with fetcher.open(blob(LAYER), offset=len(got)) as chunks:
            await collect(chunks)
    assert bytes(got) == LAYER
    assert tail == [f"bytes={CHUNK + 5}-"]


async def test_leaving_early_leaves_nothing_behind(registry: Running, tmp_path: Path) -> None:
    """A reader that stops in the middle, by its own error too, closes the connection and raises its own error."""
    file = tmp_path / "layer"
    file.write_bytes(LAYER)
    async with scripted.registry() as client:
        target = reference(registry.host, "fetch/early:v1")
        await client.pusher(target, access()).upload(blob(LAYER), file, lambda _: None)
        fetcher = client.fetcher(target, access())

        async def stop_early() -> None:
            async with fetcher.open(blob(LAYER)) as chunks:
                async for _chunk in chunks:
                    raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            await stop_early()
        assert client._wire._session is not None
        assert client._wire._session.connector is not None
        assert not client._wire._session.connector._acquired


async def test_busy_while_opening_is_the_callers_to_retry() -> None:
    """Opening a layer is one attempt; the fault says that another may help."""

    async def work(fetcher: Fetcher, server: Server) -> None:
        with pytest.raises(RegistryBusy) as failed:
            async with fetcher.open(Descriptor(media_type=DOCKER_LAYER, digest=DIGEST, size=5)):
                pass
        assert failed.value.temporary
        assert failed.value.retry_after == 7
        assert len(server.real()) == 1

    await with_answers(lambda _: web.Response(status=429, headers={"Retry-After": "7"}), work)

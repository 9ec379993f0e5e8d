"""Pushing: uploads through every form of location, mounts, retries, manifests."""

import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO

import anyio
import pytest
from aiohttp import web
from anyio import to_thread

from pluginsvc.model.auth import ANONYMOUS
from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import DOCKER_MANIFEST
from pluginsvc.registry import pusher as pusher_module
from pluginsvc.registry.errors import AccessDenied, RegistryBusy, RegistryFault, RegistryProtocolError
from pluginsvc.registry.pusher import BlobUnreadable, Pusher
from tests.support.registry import Registry as Running
from tests.unit.registry import scripted
from tests.unit.registry.scripted import Seen, Server, access, blob, challenge, cut, manifest_answer, reference, serve

pytestmark = pytest.mark.anyio

DATA = os.urandom(2 * 1024 * 1024 + 77)
BLOB = blob(DATA)
QUERY = f"digest=sha256%3A{BLOB.digest.hex}"
RAW = b'{"schemaVersion":2}'
Answer = Callable[[web.BaseRequest, Seen], Awaitable[web.StreamResponse]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    return path


async def with_answers(answer: Answer, work: Callable[[Pusher, Server], Awaitable[None]]) -> Server:
    """Run `work` against a registry that wants Basic first."""

    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.target == "/v2/":
            return web.Response()
        return await answer(request, seen) if seen.auth else challenge('Basic realm="r"')

    async with serve(script) as server, scripted.registry() as client:
        await work(client.pusher(reference(server.host), access()), server)
    return server


async def test_against_a_real_registry(registry: Running, file: Path) -> None:
    """A real registry takes blob and manifest; what is there is seen, mounted and not stored again."""
    async with scripted.registry() as client:
        pusher = client.pusher(reference(registry.host, "push/real:v1"), access(ANONYMOUS))
        assert await pusher.exists(BLOB) is False
        sent: list[int] = []
        await pusher.upload(BLOB, file, sent.append)
        assert sent == [1048576, 2097152, len(DATA)]
        assert await pusher.exists(BLOB) is True
        raw = scripted_manifest()
        first = await pusher.put_manifest(raw, DOCKER_MANIFEST)
        assert first == Digest.of(raw)
        assert await pusher.put_manifest(raw, DOCKER_MANIFEST) == first
        log = registry.proc.log.read_text()
        assert sum("PUT /v2/push/real/manifests/v1" in line for line in log.splitlines() if '"PUT ' in line) == 1
        other = client.pusher(reference(registry.host, "push/other:v1"), access(ANONYMOUS))
        assert await other.mount(BLOB, "push/real") is True
        assert await other.exists(BLOB) is True
        unknown = blob(b"never seen")
        (file.parent / "small").write_bytes(b"never seen")
        assert await other.mount(unknown, "push/real") is False
        await other.upload(unknown, file.parent / "small", lambda _: None)
        assert await other.exists(unknown) is True


def scripted_manifest() -> bytes:
    from pluginsvc.model.manifest import build_manifest  # noqa: PLC0415 - the one use

    return build_manifest(BLOB, [BLOB])


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("{url}/up/1?_state=a%2Fb%3D%3D", f"/up/1?_state=a%2Fb%3D%3D&{QUERY}"),
        ("/up/1", f"/up/1?{QUERY}"),
        ("session?x=+", f"/v2/foo/bar/blobs/uploads/session?x=+&{QUERY}"),
        ("/up/1#frag", f"/up/1?{QUERY}"),
    ],
)
async def test_locations_of_every_form(file: Path, location: str, expected: str) -> None:
    """The upload goes where the registry says, its query kept byte for byte, with type, length and credentials."""

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.method == "POST":
            url = f"http://{seen.headers['Host']}"
            return web.Response(status=202, headers={"Location": location.format(url=url)})
        return web.Response(status=201)

    async def work(pusher: Pusher, server: Server) -> None:
        await pusher.upload(BLOB, file, lambda _: None)
        put = server.seen[-1]
        assert put.line == f"PUT {expected}"
        assert put.body == DATA
        assert put.headers["Content-Length"] == str(len(DATA))
        assert put.headers["Content-Type"] == "application/octet-stream"
        assert "Transfer-Encoding" not in put.headers
        assert put.auth is not None

    await with_answers(answer, work)


async def test_a_file_opened_for_nobody_is_closed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push that is cancelled while a thread opens the blob leaves no file open."""
    opened: list[BinaryIO] = []
    opening, go = threading.Event(), threading.Event()
    really = pusher_module._open_blob

    def slowly(path: Path, size: int) -> BinaryIO:
        opening.set()
        go.wait(10)
        opened.append(really(path, size))
        return opened[0]

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response(status=201)

    async def work(pusher: Pusher, server: Server) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(pusher.upload, BLOB, file, lambda _: None)
            await to_thread.run_sync(opening.wait, 10)
            group.cancel_scope.cancel()
            go.set()

    monkeypatch.setattr(pusher_module, "_open_blob", slowly)
    await with_answers(answer, work)
    assert [found.closed for found in opened] == [True]


async def test_an_upload_to_another_host_gets_no_credentials(file: Path) -> None:
    """A location on another host gets the bytes, and neither credentials nor meta headers."""

    async def store(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response(status=201)

    async with serve(store) as other:

        async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
            return web.Response(status=202, headers={"Location": f"{other.url}/x?sig=1"})

        async def work(pusher: Pusher, server: Server) -> None:
            await pusher.upload(BLOB, file, lambda _: None)

        await with_answers(answer, work)
    (seen,) = other.seen
    assert seen.line == f"PUT /x?sig=1&{QUERY}"
    assert seen.body == DATA
    assert not {"Authorization", "X-Meta-Team"} & set(seen.headers)


async def test_another_host_cannot_ask_for_credentials(file: Path) -> None:
    """A 401 of the host that a location names ends the upload and is given nothing."""

    async def greedy(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return challenge(f'Bearer realm="{other.url}/t", Basic realm="x"')

    async with serve(greedy) as other:

        async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
            return web.Response(status=202, headers={"Location": f"{other.url}/x"})

        async def work(pusher: Pusher, server: Server) -> None:
            with pytest.raises(AccessDenied):
                await pusher.upload(BLOB, file, lambda _: None)

        await with_answers(answer, work)
    assert [(seen.method, seen.auth) for seen in other.seen] == [("PUT", None)]


async def test_a_registry_behind_a_tls_proxy_keeps_https(tmp_path: Path, file: Path) -> None:
    """A location that names our own host with http is used over https, as everything else."""
    tls, _, _, _ = scripted.certificates(tmp_path)

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.method == "POST":
            return web.Response(status=202, headers={"Location": f"http://{seen.headers['Host']}/up?s=1"})
        return web.Response(status=201)

    async with serve(answer, tls=tls) as server, scripted.registry() as client:
        await client.pusher(reference(server.host), access()).upload(BLOB, file, lambda _: None)
        assert server.seen[-1].line == f"PUT /up?s=1&{QUERY}"


async def test_a_post_that_mounts_is_the_end(file: Path) -> None:
    """201 on the POST means that the registry has the blob already; nothing is sent, all counts as sent."""

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response(status=201)

    async def work(pusher: Pusher, server: Server) -> None:
        sent: list[int] = []
        await pusher.upload(BLOB, file, sent.append)
        assert sent == [BLOB.size]
        assert [seen.method for seen in server.seen if seen.auth] == ["POST"]

    await with_answers(answer, work)


@pytest.mark.parametrize("failure", [503, 404, None])
async def test_a_failed_upload_starts_afresh(file: Path, failure: int | None) -> None:
    """After a busy registry, a lost session or a cut connection a new upload is opened and sent whole."""
    puts: list[str] = []

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.method == "POST":
            return web.Response(status=202, headers={"Location": f"/up/{len(puts)}"})
        puts.append(seen.target.partition("?")[0])
        if len(puts) < 3:
            return web.Response(status=failure) if failure else await cut(request, seen)
        return web.Response(status=201)

    async def work(pusher: Pusher, server: Server) -> None:
        sent: list[int] = []
        await pusher.upload(BLOB, file, sent.append)
        assert puts[-1] == "/up/2"
        assert server.seen[-1].body == DATA
        assert sent[-3:] == [1048576, 2097152, len(DATA)]

    await with_answers(answer, work)


async def test_a_registry_that_stays_busy_is_given_up(file: Path) -> None:
    """After five uploads the registry's answer is the error."""

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.method == "POST":
            return web.Response(status=202, headers={"Location": "/up"})
        return web.Response(status=502)

    async def work(pusher: Pusher, server: Server) -> None:
        with pytest.raises(RegistryBusy) as failed:
            await pusher.upload(BLOB, file, lambda _: None)
        assert failed.value.http_status == 502
        assert sum(seen.method == "PUT" for seen in server.seen) == 5

    await with_answers(answer, work)


@pytest.mark.parametrize("location", [None, "", "ftp://x/", "http://u:p@x/", "http://["])
async def test_locations_that_lead_nowhere(file: Path, location: str | None) -> None:
    """An upload without a usable place is a protocol error."""

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response(status=202, headers={} if location is None else {"Location": location})

    async def work(pusher: Pusher, server: Server) -> None:
        with pytest.raises(RegistryProtocolError):
            await pusher.upload(BLOB, file, lambda _: None)

    await with_answers(answer, work)


async def test_a_wrong_digest_is_final(file: Path) -> None:
    """A registry that finds another digest is not sent the same bytes again."""

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.method == "POST":
            return web.Response(status=202, headers={"Location": "/up"})
        body = {"errors": [{"code": "DIGEST_INVALID", "message": "provided digest did not match"}]}
        return web.json_response(body, status=400)

    async def work(pusher: Pusher, server: Server) -> None:
        with pytest.raises(RegistryProtocolError, match="digest invalid: provided digest") as failed:
            await pusher.upload(BLOB, file, lambda _: None)
        assert failed.value.code == "DIGEST_INVALID"
        assert sum(seen.method == "PUT" for seen in server.seen) == 1

    await with_answers(answer, work)


async def test_blobs_of_our_own_are_checked(file: Path) -> None:
    """A file that is missing or has another size than its descriptor is our fault, found before anything is sent."""

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        raise AssertionError

    async def work(pusher: Pusher, server: Server) -> None:
        with pytest.raises(BlobUnreadable):
            await pusher.upload(BLOB, file.with_name("missing"), lambda _: None)
        with pytest.raises(BlobUnreadable, match="its descriptor says 3"):
            await pusher.upload(blob(b"abc"), file, lambda _: None)
        assert server.seen == []

    await with_answers(answer, work)


async def test_a_file_that_shrinks_is_no_fault_of_the_registry(file: Path) -> None:
    """A blob that is cut while it is sent is reported as that, once."""

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response(status=202, headers={"Location": "/up"})

    async def work(pusher: Pusher, server: Server) -> None:
        with pytest.raises(BlobUnreadable, match="it ends after"):
            await pusher.upload(BLOB, file, lambda _: os.truncate(file, 10))

    await with_answers(answer, work)


async def test_mount_asks_for_the_source_as_well() -> None:
    """The token for a mount covers pulling from the source; the upload opened instead is used by the next upload."""
    asked: list[str] = []

    async def token(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        asked.append(seen.target)
        return web.json_response({"token": "t"})

    async with serve(token) as realm:

        async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
            if seen.target == "/v2/":
                return web.Response()
            if seen.auth is None:
                return challenge(f'Bearer realm="{realm.url}/"')
            if seen.method == "POST":
                return web.Response(status=202, headers={"Location": "/opened?s=1"})
            return web.Response(status=201)

        async with serve(script) as server, scripted.registry() as client:
            pusher = client.pusher(reference(server.host), access(ANONYMOUS))
            small = blob(b"small")
            assert await pusher.mount(small, "other/repo") is False
            assert f"POST /v2/foo/bar/blobs/uploads/?mount=sha256%3A{small.digest.hex}&from=other%2Frepo" in [
                seen.line for seen in server.seen
            ]
            assert "repository%3Aother%2Frepo%3Apull" in asked[0]


@pytest.mark.parametrize("status", [400, 403, 404, 405])
async def test_a_refused_mount_is_no_error(status: int) -> None:
    """A registry that does not mount is uploaded to."""

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response(status=status)

    async def work(pusher: Pusher, server: Server) -> None:
        assert await pusher.mount(BLOB, "other/repo") is False

    await with_answers(answer, work)


async def test_an_upload_opened_by_a_mount_is_used(file: Path) -> None:
    """The session that a failed mount leaves is filled instead of opening another."""

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.method == "POST":
            return web.Response(status=202, headers={"Location": "/opened?s=1"})
        return web.Response(status=201)

    async def work(pusher: Pusher, server: Server) -> None:
        assert await pusher.mount(BLOB, "other/repo") is False
        await pusher.upload(BLOB, file, lambda _: None)
        lines = [seen.line for seen in server.seen if seen.auth]
        assert [line.partition(" ")[0] for line in lines] == ["POST", "PUT"]
        assert lines[1] == f"PUT /opened?s=1&{QUERY}"

    await with_answers(answer, work)


async def test_a_manifest_that_is_there_is_not_sent() -> None:
    """HEAD with the same digest is enough."""

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return manifest_answer(RAW)

    async def work(pusher: Pusher, server: Server) -> None:
        assert await pusher.put_manifest(RAW, DOCKER_MANIFEST) == Digest.of(RAW)
        assert {seen.method for seen in server.real()} == {"HEAD"}

    await with_answers(answer, work)


@pytest.mark.parametrize("reported", [None, "right", "wrong", "nonsense"])
async def test_manifest_digests_must_agree(reported: str | None) -> None:
    """The manifest is sent byte for byte with its type; a registry that reports another digest is not believed."""
    digests = {"right": Digest.of(RAW), "wrong": Digest.of(b"other"), "nonsense": "x"}

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.method == "HEAD":
            return web.Response(status=404)
        return web.Response(status=201, headers={"Docker-Content-Digest": digests[reported]} if reported else {})

    async def work(pusher: Pusher, server: Server) -> None:
        if reported == "wrong":
            with pytest.raises(RegistryProtocolError, match="the registry reports"):
                await pusher.put_manifest(RAW, DOCKER_MANIFEST)
            return
        assert await pusher.put_manifest(RAW, DOCKER_MANIFEST) == Digest.of(RAW)
        put = server.seen[-1]
        assert put.line == "PUT /v2/foo/bar/manifests/v1"
        assert put.body == RAW
        assert put.headers["Content-Type"] == DOCKER_MANIFEST

    await with_answers(answer, work)


async def test_existence_is_yes_or_no_or_an_error() -> None:
    """200 and 404 are answers, anything else is not."""

    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response(status=403)

    async def work(pusher: Pusher, server: Server) -> None:
        with pytest.raises(RegistryFault, match="push access denied"):
            await pusher.exists(BLOB)

    await with_answers(answer, work)

"""Conversations: schemes, retries, refusals as errors."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from aiohttp import web

from pluginsvc.model.auth import ANONYMOUS
from pluginsvc.registry.auth import basic
from pluginsvc.registry.errors import (
    CONNECT,
    AccessDenied,
    ManifestUnknown,
    RegistryBusy,
    RegistryFault,
    RegistryForbidden,
    RegistryProtocolError,
    describe,
    most_specific,
    redact_url,
)
from tests.support.registry import start_registry
from tests.unit.registry import scripted
from tests.unit.registry.scripted import PASSWORD, Seen, Server, access, cut, manifest_answer, reference, serve

pytestmark = pytest.mark.anyio

RAW = b'{"schemaVersion":2}'


async def attempt(script: scripted.Script) -> tuple[Server, RegistryFault | None, float]:
    """Resolve once against `script`."""
    started = time.monotonic()
    async with serve(script) as server, scripted.registry() as client:
        try:
            await client.fetcher(reference(server.host), access()).resolve()
        except RegistryFault as exc:
            return server, exc, time.monotonic() - started
    return server, None, time.monotonic() - started


def failing(times: int, answer: scripted.Script) -> scripted.Script:
    """Answer `times` times with `answer`, then well."""
    left = times

    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        nonlocal left
        if seen.target == "/v2/":
            return web.Response()
        left -= 1
        return await answer(request, seen) if left >= 0 else manifest_answer(RAW)

    return script


def status(code: int, **headers: str) -> scripted.Script:
    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response(status=code, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return answer


@pytest.mark.parametrize("answer", [*map(status, (408, 429, 500, 502, 503, 504)), cut])
async def test_temporary_failures_are_tried_again(answer: scripted.Script) -> None:
    """A registry that is busy for a while is asked up to five times."""
    server, fault, _ = await attempt(failing(4, answer))
    assert fault is None
    assert len(server.real()) >= 5
    server, fault, _ = await attempt(failing(99, answer))
    assert isinstance(fault, RegistryBusy)
    assert fault.temporary


async def test_five_attempts_and_no_more() -> None:
    """The fifth failure is reported, with its status."""
    server, fault, _ = await attempt(failing(99, status(503)))
    assert isinstance(fault, RegistryBusy)
    assert fault.http_status == 503
    assert len(server.real()) == 5


@pytest.mark.parametrize(
    ("code", "kind", "requests"),
    [(403, RegistryForbidden, 1), (404, ManifestUnknown, 2), (400, RegistryProtocolError, 2), (501, RegistryBusy, 1)],
)
async def test_final_failures_are_not(code: int, kind: type[RegistryFault], requests: int) -> None:
    """What will not get better is asked once (and once more with separate Accept lines where REF 4.4 says so)."""
    server, fault, _ = await attempt(failing(99, status(code)))
    assert type(fault) is kind
    assert not fault.temporary
    assert len(server.real()) == requests


async def test_retry_after_is_waited_for() -> None:
    """A registry that asks for a second gets it."""
    _, fault, took = await attempt(failing(1, status(429, Retry_After="1")))
    assert fault is None
    assert took >= 1.0


@pytest.mark.parametrize(
    "value",
    # the date is made when tests are collected, and asked for minutes later
    ["3600", "99999999999999999999", format_datetime(datetime.now(UTC) + timedelta(hours=5), usegmt=True)],
    ids=["seconds", "for ever", "date"],
)
async def test_a_long_retry_after_is_an_error_at_once(value: str) -> None:
    """A wait beyond our patience is the user's to decide; the error says how long it is."""
    server, fault, took = await attempt(failing(99, status(429, Retry_After=value)))
    assert fault is not None
    assert fault.temporary
    assert fault.retry_after is not None
    assert 3500 < fault.retry_after <= 86400
    assert len(server.real()) == 1
    assert took < 5


@pytest.mark.parametrize("value", ["", "soon", "-1", "1e9", "²", "Mon, 99 Foo 2020"])
async def test_a_senseless_retry_after_is_ignored(value: str) -> None:
    """Nonsense in Retry-After does not stop the retries."""
    server, fault, _ = await attempt(failing(1, status(503, Retry_After=value)))
    assert fault is None
    assert len(server.real()) == 2


async def test_http_is_found_once_and_forgotten_with_the_server() -> None:
    """The scheme of an insecure host is looked for once, and again after the host went away."""
    async with scripted.registry() as client:
        async with serve(failing(0, cut)) as server:
            for _ in range(2):
                await client.fetcher(reference(server.host), access()).resolve()
            assert sum(seen.line == "GET /v2/" for seen in server.seen) == 1
        with pytest.raises(RegistryBusy) as failed:
            await client.fetcher(reference(server.host), access()).resolve()
        assert failed.value.code == CONNECT
        assert client._schemes._known == {}


async def test_https_on_loopback_needs_no_authority(tmp_path: Path) -> None:
    """An insecure registry that speaks TLS is spoken to over TLS, unverified."""
    with start_registry(tmp_path, tls=True) as running:
        async with scripted.registry() as client:
            fetcher = client.fetcher(reference(running.host), access())
            with pytest.raises(ManifestUnknown, match=f"^{running.host}/foo/bar:v1: not found$"):
                await fetcher.resolve()
            assert client._schemes._known == {running.host: "https"}


async def test_nobody_there_is_said_at_once() -> None:
    """A closed port is reported without five attempts."""
    async with serve(cut) as server:
        pass
    started = time.monotonic()
    async with scripted.registry() as client:
        with pytest.raises(RegistryBusy, match="no connection"):
            await client.fetcher(reference(server.host), access()).resolve()
    assert time.monotonic() - started < 2


async def test_errors_hold_no_secrets_and_little_text() -> None:
    """An error answer is capped, made printable and cleared of what was sent."""

    async def echo(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.target == "/v2/":
            return web.Response()
        if seen.auth is None:
            return scripted.challenge('Basic realm="x"')
        text = f"\x1b[31m {PASSWORD.password} {seen.auth} " + "x" * 100_000
        return web.json_response({"errors": [{"code": "DENIED", "message": text}]}, status=403)

    async with serve(echo) as server, scripted.registry() as client:
        with pytest.raises(RegistryForbidden) as failed:
            await client.fetcher(reference(server.host), access()).fetch(scripted.blob(RAW, "a/b"))
    fault = failed.value
    sent = basic(PASSWORD.username, PASSWORD.password).removeprefix("Basic ")
    for text in (str(fault), fault.body):
        assert "<redacted>" in text
        assert PASSWORD.password not in text
        assert sent not in text
        assert "\x1b" not in text
        assert len(text) < 2000


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"errors":[{"code":"DENIED","message":"no"}]}', ("DENIED", "no")),
        (b'{"details":"incorrect username or password"}', ("", "incorrect username or password")),
        (b'{"error":"invalid_grant","error_description":"bad"}', ("invalid_grant", "bad")),
        (b"plain <text>", ("", "plain <text>")),
        (b'{"errors":"x"}', ("", "")),
        (b'{"errors":[]}', ("", "")),
        (b'{"errors":[5]}', ("", "")),
        (b'{"errors":[{"code":null,"message":[1]}]}', ("None", "")),
        (b"[" * 60000, ("", "[" * 1024)),
        (b"\xff\xfe", ("", "\ufffd\ufffd")),
        (b"", ("", "")),
    ],
)
def test_error_bodies_of_every_shape(body: bytes, expected: tuple[str, str]) -> None:
    """Error answers are read whatever their shape."""
    assert describe(body, []) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://u:p@h:1/a?sig=s#f", "https://h:1/a"),
        ("/v2/x?state=s", "/v2/x"),
    ],
)
def test_urls_are_redacted(url: str, expected: str) -> None:
    """User, query and fragment are cut off."""
    assert redact_url(url) == expected


def test_the_most_specific_error_wins() -> None:
    """An answer beats no answer, the registry beats its mirror, the later beats the earlier."""
    denied, unknown = AccessDenied("d", http_status=401), ManifestUnknown("u", http_status=404)
    gone, slow = RegistryBusy("gone", code=CONNECT), RegistryBusy("slow")
    assert most_specific([(gone, False), (denied, False)]) is denied
    assert most_specific([(denied, False), (gone, False)]) is denied
    assert most_specific([(denied, True), (gone, False)]) is denied
    assert most_specific([(denied, True), (unknown, False)]) is unknown
    assert most_specific([(unknown, False), (denied, True)]) is unknown
    assert most_specific([(gone, False), (slow, False)]) is slow


async def test_anonymous_is_told_apart_from_missing() -> None:
    """401 without any way in is access denied, with the registry's own reason."""
    server, fault, _ = await attempt(failing(99, status(401)))
    assert isinstance(fault, AccessDenied)
    assert len(server.real()) == 1
    assert access(ANONYMOUS).credentials == ANONYMOUS

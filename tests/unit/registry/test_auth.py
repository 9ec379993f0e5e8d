"""Access: challenges, every way of logging in, the token cache, and where credentials must not go."""

import base64
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from aiohttp import web

from pluginsvc.model.auth import ANONYMOUS, Credentials
from pluginsvc.registry.auth import Challenge, parse_challenges
from pluginsvc.registry.errand import InvalidCredentials
from pluginsvc.registry.errors import AccessDenied, RegistryFault, RegistryProtocolError
from tests.support.registry import start_registry
from tests.unit.registry import scripted
from tests.unit.registry.scripted import PASSWORD, Seen, Server, access, challenge, manifest_answer, reference, serve

pytestmark = pytest.mark.anyio

RAW = b'{"schemaVersion":2}'
PULL = ["repository(plugin):foo/bar:pull", "repository:foo/bar:pull"]
BASIC = "Basic " + base64.b64encode(b"u:p4ss w&rd").decode()


@dataclasses.dataclass
class World:
    """A registry that wants tokens and the realm that gives them."""

    registry: Server
    realm: Server
    tokens: list[str]


def token_script(answers: Callable[[Seen], web.Response | None]) -> tuple[scripted.Script, list[str]]:
    """Give tokens t1, t2 … unless `answers` has something else to say."""
    given: list[str] = []

    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if (other := answers(seen)) is not None:
            return other
        given.append(f"t{len(given) + 1}")
        return web.json_response({"token": "old", "access_token": given[-1], "refresh_token": "ref"})

    return script, given


def guarded(realm: Callable[[], str], given: list[str], scope: str = "repository:foo/bar:pull") -> scripted.Script:
    """Be a registry that lets in who shows the newest token."""

    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if not given or seen.auth != f"Bearer {given[-1]}":
            return challenge(f'Bearer realm="{realm()}",service="reg & co",scope="{scope}"')
        return manifest_answer(RAW)

    return script


async def with_world(
    work: Callable[[World], Awaitable[None]], answers: Callable[[Seen], web.Response | None] = lambda _: None
) -> None:
    token, given = token_script(answers)
    async with serve(token) as realm, serve(guarded(lambda: f"{realm.url}/token?k=1", given)) as server:
        await work(World(server, realm, given))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            ['Bearer realm="https://a/t",service="s",scope="repository:x:pull,push repository:y:pull"'],
            [Challenge("bearer", "https://a/t", "s", frozenset({"repository:x:pull,push", "repository:y:pull"}))],
        ),
        (['Basic realm="r", Bearer realm="https://b"'], [Challenge("basic", "r"), Challenge("bearer", "https://b")]),
        (["basic", "BEARER REALM=x"], [Challenge("basic"), Challenge("bearer", "x")]),
        ([r'Bearer realm="a\"b,c"'], [Challenge("bearer", 'a"b,c')]),
        (["Negotiate abc==, Basic"], [Challenge("negotiate"), Challenge("basic")]),
        (['realm="lost"'], []),
        (['Bearer realm="unclosed'], [Challenge("bearer")]),
        (["", ",,,", '="', "\x00"], []),
        (['Bearer realm="first",realm="second"'], [Challenge("bearer", "first")]),
    ],
)
def test_challenges_are_parsed(headers: list[str], expected: list[Challenge]) -> None:
    """Several challenges, in one header or in many, are told apart; nonsense is left out."""
    assert parse_challenges(headers) == expected


def test_a_hostile_challenge_costs_no_time() -> None:
    """A long header of nonsense is parsed in linear time."""
    parse_challenges(["a=" * 20000, 'Bearer a="' + "\\" * 30000, " ," * 20000])


async def test_anonymous_token() -> None:
    """Without credentials the realm is asked by GET, and gets service, sorted scopes and nothing else."""

    async def work(world: World) -> None:
        async with scripted.registry() as client:
            await client.fetcher(reference(world.registry.host), access(ANONYMOUS)).resolve()
        (asked,) = world.realm.seen
        assert asked.method == "GET"
        path, _, query = asked.target.partition("?")
        assert path == "/token"
        assert parse_qsl(query) == [("k", "1"), ("service", "reg & co"), *(("scope", scope) for scope in PULL)]
        assert asked.auth is None
        assert "X-Meta-Team" not in asked.headers
        assert asked.headers["User-Agent"] == r"pluginsvc/test UpstreamClient(Docker-Client/28 \(linux\))"
        head = world.registry.real()
        assert [seen.auth for seen in head] == [None, "Bearer t1"]
        assert all(seen.headers["X-Meta-Team"] == "a" for seen in head)

    await with_world(work)


async def test_password_by_form() -> None:
    """A password goes to the realm as a POST form with all scopes in one member; the registry only sees the token."""

    async def work(world: World) -> None:
        async with scripted.registry() as client:
            await client.fetcher(reference(world.registry.host), access()).resolve()
        (asked,) = world.realm.seen
        assert asked.line == "POST /token?k=1"
        assert dict(parse_qsl(asked.body.decode())) == {
            "grant_type": "password",
            "username": "u",
            "password": PASSWORD.password,
            "service": "reg & co",
            "client_id": "pluginsvc",
            "scope": " ".join(PULL),
        }
        assert asked.headers["Content-Type"] == "application/x-www-form-urlencoded"
        assert {seen.auth for seen in world.registry.seen} == {None, "Bearer t1"}

    await with_world(work)


@pytest.mark.parametrize("status", [400, 401, 404, 405])
async def test_password_falls_back_to_get(status: int) -> None:
    """A realm that knows no form is asked again by GET with Basic."""

    async def work(world: World) -> None:
        async with scripted.registry() as client:
            await client.fetcher(reference(world.registry.host), access()).resolve()
        asked = world.realm.seen[-1]
        assert [seen.method for seen in world.realm.seen] == ["POST", "GET"]
        assert asked.auth == BASIC
        assert ("account", "u") in parse_qsl(asked.target.partition("?")[2])
        assert PASSWORD.password not in asked.target

    await with_world(work, lambda seen: web.Response(status=status) if seen.method == "POST" else None)


async def test_identity_token_by_form_only() -> None:
    """An identity token is sent as a refresh token and wins over a password; refusal is final."""
    login = Credentials(username="u", password="p", identity_token="idt")

    async def work(world: World) -> None:
        async with scripted.registry() as client:
            await client.fetcher(reference(world.registry.host), access(login)).resolve()
        form = dict(parse_qsl(world.realm.seen[0].body.decode()))
        assert (form["grant_type"], form["refresh_token"]) == ("refresh_token", "idt")
        assert "password" not in form

    async def refused(world: World) -> None:
        async with scripted.registry() as client:
            with pytest.raises(AccessDenied, match="pull access denied, repository does not exist or may require"):
                await client.fetcher(reference(world.registry.host), access(login)).resolve()
        assert [seen.method for seen in world.realm.seen] == ["POST"]

    await with_world(work)
    await with_world(refused, lambda _: web.Response(status=401))


async def test_registry_token_is_sent_as_bearer() -> None:
    """A registry token is shown to the registry at once and to nobody else; refusal is final."""

    async def work(world: World) -> None:
        world.tokens.append("rt")
        async with scripted.registry() as client:
            await client.fetcher(reference(world.registry.host), access(Credentials(registry_token="rt"))).resolve()
            assert [seen.auth for seen in world.registry.real()] == ["Bearer rt"]
            with pytest.raises(AccessDenied):
                await client.fetcher(reference(world.registry.host), access(Credentials(registry_token="x"))).resolve()
        assert world.realm.seen == []

    await with_world(work)


async def test_a_registry_token_cannot_smuggle_headers() -> None:
    """Control characters in a registry token are bad input."""
    async with scripted.registry() as client:
        fetcher = client.fetcher(reference("127.0.0.1:1"), access(Credentials(registry_token="a\r\nX: y")))
        with pytest.raises(InvalidCredentials):
            await fetcher.resolve()


async def test_basic_against_a_real_registry(tmp_path: Path) -> None:
    """Basic works with a real registry; wrong and missing credentials say so."""
    with start_registry(tmp_path, htpasswd=("u", PASSWORD.password)) as running:
        async with scripted.registry() as client:
            pusher = client.pusher(reference(running.host), access())
            assert await pusher.exists(scripted.blob(b"x")) is False
            with pytest.raises(AccessDenied, match=r"pull access denied.*no basic auth credentials"):
                await client.fetcher(reference(running.host), access(ANONYMOUS)).resolve()
            with pytest.raises(AccessDenied, match="push access denied"):
                await client.pusher(reference(running.host), access(Credentials(username="u", password="no"))).exists(
                    scripted.blob(b"x")
                )


async def test_tokens_are_shared_by_the_same_login_only() -> None:
    """A second fetcher of the same login uses the cached token, another login never does."""

    async def work(world: World) -> None:
        async with scripted.registry() as client:
            for _ in range(2):
                await client.fetcher(reference(world.registry.host), access()).resolve()
            assert len(world.realm.seen) == 1
            await client.fetcher(reference(world.registry.host), access(ANONYMOUS)).resolve()
            await client.fetcher(
                reference(world.registry.host), access(Credentials(username="u", password="other"))
            ).resolve()
            assert len(world.realm.seen) == 3

    await with_world(work)


async def test_scopes_part_the_cache() -> None:
    """A push asks for push rights, with a token of its own."""

    async def work(world: World) -> None:
        async with scripted.registry() as client:
            await client.fetcher(reference(world.registry.host), access(ANONYMOUS)).resolve()
            await client.pusher(reference(world.registry.host), access(ANONYMOUS)).exists(scripted.blob(b"x"))
        scopes = [v for k, v in parse_qsl(world.realm.seen[1].target.partition("?")[2]) if k == "scope"]
        assert scopes == [
            "repository(plugin):foo/bar:pull,push",
            "repository:foo/bar:pull",
            "repository:foo/bar:pull,push",
        ]

    await with_world(work)


@pytest.mark.parametrize(("member", "asked"), [(None, 1), (0, 2), (-5, 2), ("300", 1), (1e308, 1)])
async def test_tokens_expire(member: object, asked: int) -> None:
    """A token is used until it expires; without a word on that it lasts (60 s)."""

    def answer(seen: Seen) -> web.Response:
        return web.json_response({"token": "t", **({} if member is None else {"expires_in": member})})

    async with (
        serve(token_script(answer)[0]) as realm,
        serve(guarded(lambda: realm.url, ["t"])) as server,
        scripted.registry() as client,
    ):
        fetcher = client.fetcher(reference(server.host), access(ANONYMOUS))
        await fetcher.resolve()
        await fetcher.resolve()
        assert len(realm.seen) == asked
        if member is None:
            (token,) = client._tokens._tokens.values()
            assert 50 < token.expires - token.born <= 60


async def test_a_revoked_token_is_replaced() -> None:
    """A cached token that the registry no longer takes is replaced once, without the caller noticing."""

    async def work(world: World) -> None:
        async with scripted.registry() as client:
            fetcher = client.fetcher(reference(world.registry.host), access())
            await fetcher.resolve()
            world.tokens.append("revoked")
            await fetcher.resolve()
        assert [seen.auth for seen in world.registry.real()] == [None, "Bearer t1", "Bearer t1", "Bearer t3"]

    await with_world(work)


async def test_a_fresh_token_that_is_refused_ends_it() -> None:
    """A registry that refuses even a fresh token gets one more try at most, and the error shows no token."""

    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        answer = challenge(f'Bearer realm="{realm.url}"')
        answer.text = f"you sent {seen.auth}"
        return answer

    def token(seen: Seen) -> web.Response:
        return web.json_response({"token": "sEcReT"})

    async with serve(token_script(token)[0]) as realm, serve(script) as server, scripted.registry() as client:
        with pytest.raises(AccessDenied) as failed:
            await client.pusher(reference(server.host), access()).exists(scripted.blob(b"x"))
        assert len(server.real()) == 2
        assert "sEcReT" not in f"{failed.value} {failed.value.body}"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"token":""}', b'{"token":"a\\r\\nb"}', b'{"token":5}', b"x" * 2**21]
)
async def test_nonsense_from_the_realm(body: bytes) -> None:
    """A realm that gives no usable token is a protocol error."""

    def token(seen: Seen) -> web.Response:
        return web.Response(body=body)

    async with (
        serve(token_script(token)[0]) as realm,
        serve(guarded(lambda: realm.url, [])) as server,
        scripted.registry() as client,
    ):
        with pytest.raises(RegistryProtocolError):
            await client.fetcher(reference(server.host), access(ANONYMOUS)).resolve()


async def test_a_secure_registry_cannot_name_a_plain_realm(tmp_path: Path) -> None:
    """A password is not sent to an http realm that a verified registry names."""
    tls, ca, _, _ = scripted.certificates(tmp_path)
    token, given = token_script(lambda _: None)
    async with serve(token) as realm, serve(guarded(lambda: realm.url, given), tls=tls) as server:
        folder = tmp_path / "certs.d" / server.host
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes(ca.read_bytes())
        async with scripted.registry(scripted.strict_hosts(tmp_path / "certs.d")) as client:
            with pytest.raises(RegistryProtocolError, match="realm"):
                await client.fetcher(reference(server.host), access()).resolve()
        assert realm.seen == []


@pytest.mark.parametrize(
    "realm", ["ftp://x/", "//x/", "token", "http://u:p@127.0.0.1:1/", "http://127.0.0.1:1/ x", "http://[", "http://:1"]
)
async def test_odd_realms_are_refused(realm: str) -> None:
    """A realm that is no plain URL is refused before anything is sent."""
    async with serve(guarded(lambda: realm, [])) as server, scripted.registry() as client:
        with pytest.raises(RegistryFault) as failed:
            await client.fetcher(reference(server.host), access()).resolve()
        assert isinstance(failed.value, RegistryProtocolError)


async def test_password_form_does_not_follow_redirects() -> None:
    """A realm that redirects the form gets no second host to see the password."""
    async with serve(token_script(lambda _: None)[0]) as other:

        def away(seen: Seen) -> web.Response:
            return web.Response(status=307, headers={"Location": other.url})

        async with (
            serve(token_script(away)[0]) as realm,
            serve(guarded(lambda: realm.url, [])) as server,
            scripted.registry() as client,
        ):
            with pytest.raises(RegistryFault):
                await client.fetcher(reference(server.host), access()).resolve()
        assert other.seen == []

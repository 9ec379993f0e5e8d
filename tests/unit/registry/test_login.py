"""Login: server addresses, Basic, identity tokens."""

from pathlib import Path

import pytest
from aiohttp import web

from pluginsvc.model.auth import Credentials
from pluginsvc.registry.errors import AccessDenied
from pluginsvc.registry.hosts import InvalidHost
from pluginsvc.registry.login import server_domain
from tests.support.registry import start_registry
from tests.unit.registry import scripted
from tests.unit.registry.scripted import Seen, challenge, serve

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("Docker.io", "docker.io"),
        ("reg.test:5000", "reg.test:5000"),
        ("https://reg.test/v2/", "reg.test"),
        ("http://127.0.0.1:5000", "127.0.0.1:5000"),
        ("[::1]:5000", "[::1]:5000"),
    ],
)
def test_server_addresses(address: str, expected: str) -> None:
    """A server address is a URL or a host; Docker Hub has many names."""
    assert server_domain(address) == expected


@pytest.mark.parametrize(
    "address", ["u:p@reg.test", "reg test", "https://", "ftp://reg", "reg:port", "reg\r\n.test", "/x"]
)
def test_bad_server_addresses(address: str) -> None:
    """What is no host is bad input."""
    if address in {"https://", "/x"}:
        assert server_domain(address) == "docker.io"
        return
    with pytest.raises(InvalidHost):
        server_domain(address)


async def test_basic_login(tmp_path: Path) -> None:
    """A real registry takes the right password and refuses the wrong one, and none, with 401."""
    with start_registry(tmp_path, htpasswd=("u", "pw")) as running:
        async with scripted.registry() as client:
            login = Credentials(username="u", password="pw", server_address=running.url)
            assert await client.login(login) == ""
            for wrong in (Credentials(username="u", password="no", server_address=running.host),
                          Credentials(server_address=running.host)):  # fmt: skip
                with pytest.raises(AccessDenied, match=r"failed with status: 401 Unauthorized"):
                    await client.login(wrong)


@pytest.mark.parametrize("form", [True, False])
async def test_token_login_gives_an_identity_token(*, form: bool) -> None:
    """A realm that gives refresh tokens makes the login's identity token, by form or by GET."""

    async def token(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.method == "POST" and not form:
            return web.Response(status=405)
        offline = b"access_type=offline" in seen.body or "offline_token=true" in seen.target
        return web.json_response({"token": "t", **({"refresh_token": "identity"} if offline else {})})

    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response() if seen.auth == "Bearer t" else challenge(f'Bearer realm="{realm.url}/",service="s"')

    async with serve(token) as realm, serve(script) as server, scripted.registry() as client:
        login = Credentials(username="u", password="pw", server_address=server.host)
        assert await client.login(login) == "identity"
        if form:
            kept = Credentials(identity_token="identity", server_address=server.host)
            assert await client.login(kept) == ""

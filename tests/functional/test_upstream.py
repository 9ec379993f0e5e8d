"""Upstream's cases about the HTTP surface that no recorded exchange holds; docs/upstream-cases.md has them all."""

from __future__ import annotations

import aiohttp
import pytest

from pluginsvc.api.app import make_app, serve
from pluginsvc.api.listeners import TcpListener
from pluginsvc.api.params import MAX_API_VERSION
from tests.functional.conftest import FACTS
from tests.support.engine import Engine
from tests.support.memory_manager import MemoryManager

pytestmark = pytest.mark.anyio
TOO_OLD = "Minimum supported API version is 1.24, please upgrade your client to a newer version"
WITH_JSON = ["/plugins/foobar/set", "/plugins/foobar/upgrade", "/plugins/pull"]


@pytest.mark.parametrize("path", WITH_JSON)
@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("[]", "text/plain", "unsupported Content-Type header (text/plain): must be 'application/json'"),
        (
            "{invalid json",
            "application/json",
            "invalid JSON: invalid character 'i' looking for beginning of object key string",
        ),
        ("[] trailing content", "application/json", "unexpected content after JSON"),
    ],
)
async def test_invalid_json(engine: Engine, path: str, body: str, kind: str, message: str) -> None:
    """Each endpoint that takes JSON refuses, with Moby's text, what is not one document of it."""
    found = await engine.call("POST", path, data=body, headers={"Content-Type": kind})
    assert found == (400, {"message": message})


@pytest.mark.parametrize("path", WITH_JSON)
async def test_empty_body(engine: Engine, path: str) -> None:
    """An empty body is the caller's business at most, never a failure of ours."""
    status, _ = await engine.call("POST", path, data=b"", headers={"Content-Type": "application/json"})
    assert 400 <= status < 500


@pytest.mark.parametrize(
    ("kind", "status", "says"),
    [
        ("application/json; charset=utf-8", 204, ""),
        ("dockerapplication/json", 400, "unsupported Content-Type header (dockerapplication/json)"),
        ("foo;;;bar", 400, "malformed Content-Type header (foo;;;bar): mime: invalid media parameter"),
    ],
)
async def test_content_types(engine: Engine, kind: str, status: int, says: str) -> None:
    """A content type is JSON exactly, parameters aside; white space around the document is none of its content."""
    name = await engine.install("typed")
    body = b' \n["DEBUG=1"]\t\r\n '
    found = await engine.call("POST", f"/plugins/{name}/set", data=body, headers={"Content-Type": kind})
    assert found[0] == status
    assert says in str(found[1])


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("", ""),
        ("/v1.24", ""),
        (f"/v{MAX_API_VERSION}", ""),
        ("/v0.1", f"client version 0.1 is too old. {TOO_OLD}"),
        ("/v9999.9999", f"client version 9999.9999 is too new. Maximum supported API version is {MAX_API_VERSION}"),
    ],
)
async def test_versions(engine: Engine, prefix: str, message: str) -> None:
    """Any version between the two bounds is served, none means the highest; every answer names server and version."""
    async with engine.session() as session, session.get(f"{prefix}/version") as response:
        assert response.headers["Api-Version"] == MAX_API_VERSION
        assert response.headers["Ostype"] == "linux"
        assert response.headers["Server"].startswith("Docker/")
        # older clients than 1.24 get errors as text (REF 1.1)
        body = await response.text() if prefix == "/v0.1" else await response.json()
    if message:
        assert response.status == 400
        assert (body.strip() if isinstance(body, str) else body["message"]) == message
    else:
        assert response.status == 200


async def test_version_agrees_with_itself(engine: Engine) -> None:
    """The component Engine, the top level, the headers and /info tell the same versions."""
    _, version = await engine.call("GET", "/version")
    _, info = await engine.call("GET", "/info")
    (found,) = [component for component in version["Components"] if component["Name"] == "Engine"]
    for key in ("ApiVersion", "MinAPIVersion", "Os"):
        assert found["Details"][key] == version[key]
    assert found["Version"] == version["Version"] == info["ServerVersion"]
    assert found["Details"]["Experimental"] == str(info["ExperimentalBuild"]).lower()
    async with engine.session() as session, session.get("/v1.24/version") as response:
        assert response.headers["Content-Type"] == "application/json"
        assert await response.json() == version


async def test_registries(engine: Engine) -> None:
    """Configured networks and hosts are insecure beside loopback; Docker Hub is secure; mirrors end in a slash."""
    found = (await engine.call("GET", "/info"))[1]["RegistryConfig"]
    assert found["InsecureRegistryCIDRs"] == ["10.0.0.0/8", "::1/128", "127.0.0.0/8"]
    assert found["IndexConfigs"]["registry.test:5000"]["Secure"] is False
    hub = found["IndexConfigs"]["docker.io"]
    assert (hub["Secure"], hub["Official"]) == (True, True)
    assert found["Mirrors"] == hub["Mirrors"] == ["https://mirror.test/"]


async def test_log_plugins_are_not_listed(engine: Engine) -> None:
    """/info has the log drivers that are built in, and no managed plugin among them."""
    config = {"entrypoint": ["/x"], "interface": {"socket": "s.sock", "types": ["docker.logdriver/1.0"]}}
    name = await engine.install("logger", config)
    await engine.call("POST", f"/plugins/{name}/enable", params={"timeout": "0"})
    assert (await engine.call("GET", "/info"))[1]["Plugins"]["Log"] == ["json-file"]


async def test_plain_tcp_is_warned_of(memory: MemoryManager) -> None:
    """Who listens on plain TCP is told the address, and that whoever reaches it is as good as root."""
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
    async with serve(app, [TcpListener("127.0.0.1", 0)], grace=1) as (address,):
        url = address.replace("tcp:", "http:")
        async with aiohttp.ClientSession(url) as session, session.get("/info") as response:
            (warning,) = (await response.json())["Warnings"]
    assert address in warning
    assert "as good as root on this host" in warning


@pytest.mark.parametrize(("force", "status"), [("True", 200), ("False", 409), ("", 409), ("100", 200)])
async def test_booleans_of_every_client(engine: Engine, force: str, status: int) -> None:
    """docker-py writes True and False where others write 1 and 0."""
    name = await engine.install("forced")
    await engine.call("POST", f"/plugins/{name}/enable", params={"timeout": "0"})
    assert (await engine.call("DELETE", f"/plugins/{name}", params={"force": force}))[0] == status

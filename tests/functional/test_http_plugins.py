"""The plugin endpoints over HTTP: what each answers, checked against the OpenAPI document."""

import io
import json
import tarfile
from typing import Any

import pytest

from pluginsvc import log
from tests.support import openapi
from tests.support.engine import CONFIG, GRANTED, Engine
from tests.support.memory_manager import MemoryManager

pytestmark = pytest.mark.anyio
PLAIN: dict[str, Any] = {"entrypoint": ["/x"]}


def _archive(config: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("config.json", "rootfs/x"):
            data = json.dumps(config).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


async def test_life(engine: Engine) -> None:
    """A plugin is created, seen, set, enabled, disabled and removed."""
    assert await engine.call("POST", "/plugins/create", params={"name": "a/b"}, data=_archive(CONFIG)) == (204, "")
    status, found = await engine.call("GET", "/v1.44/plugins/a/b/json")
    assert status == 200
    openapi.check("Plugin", found)
    assert (found["Name"], found["Enabled"]) == ("a/b:latest", False)
    assert await engine.call("POST", "/plugins/a%2Fb%3Alatest/set", json=["DEBUG=1"]) == (204, "")
    assert await engine.call("POST", f"/plugins/{found['Id'][:6]}/enable", params={"timeout": "0"}) == (200, "")
    _, listed = await engine.call("GET", "/plugins", params={"filters": '{"enabled":{"true":true}}'})
    assert [(plugin["Id"], plugin["Settings"]["Env"]) for plugin in listed] == [(found["Id"], ["DEBUG=1"])]
    assert (await engine.call("DELETE", "/plugins/a/b"))[0] == 409
    assert await engine.call("POST", "/plugins/a/b/disable", json={}) == (200, "")
    assert await engine.call("DELETE", "/plugins/a/b", params={"force": "False"}) == (200, "")
    assert await engine.call("GET", "/plugins") == (200, [])


async def test_force(engine: Engine) -> None:
    """An enabled plugin goes when forced."""
    name = await engine.install("forced")
    await engine.call("POST", f"/plugins/{name}/enable", params={"timeout": "1"})
    assert await engine.call("DELETE", f"/plugins/{name}", params={"force": "1"}) == (200, "")


async def test_empty_answers_have_no_content_type(engine: Engine) -> None:
    """An answer without a body has length 0 and no content type (REF 1.1)."""
    name = await engine.install("empty")
    async with engine.session() as session, session.post(f"/plugins/{name}/enable?timeout=0") as response:
        assert response.headers["Content-Length"] == "0"
        assert "Content-Type" not in response.headers


async def test_privileges(engine: Engine) -> None:
    """Privileges are listed as the config asks; a plugin that asks for none gives an empty list."""
    remote = await engine.publish("asks", CONFIG)
    found = await engine.call("GET", "/plugins/privileges", params={"remote": remote})
    assert found == (200, GRANTED)
    openapi.check("Privileges", found[1])
    remote = await engine.publish("plain", PLAIN)
    assert await engine.call("GET", "/plugins/privileges", params={"remote": remote}) == (200, [])
    assert (await engine.call("GET", "/plugins/privileges", params={"remote": f"{remote}-not"}))[0] == 404


@pytest.mark.parametrize("body", ["[]", "null", "{}"])
async def test_nothing_granted(engine: Engine, body: str) -> None:
    """All forms of "nothing" install a plugin that asks for nothing (REF §0.4)."""
    remote = await engine.publish("plain", PLAIN)
    headers = {"Content-Type": "application/json"}
    lines = await engine.lines("POST", "/plugins/pull", params={"remote": remote}, data=body, headers=headers)
    assert not any("error" in line for line in lines)


async def test_nothing_granted_by_no_body(engine: Engine) -> None:
    """No body at all means the same."""
    remote = await engine.publish("plain", PLAIN)
    lines = await engine.lines("POST", "/plugins/pull", params={"remote": remote})
    assert not any("error" in line for line in lines)


async def test_pull_stream(engine: Engine) -> None:
    """A pull is one JSON object a line, chunked, with exactly the members and the content type that clients know."""
    remote = await engine.publish("streamed", CONFIG)
    async with (
        engine.session() as session,
        session.post("/v1.44/plugins/pull", params={"remote": remote, "name": "mine:1"}, json=GRANTED) as response,
    ):
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert response.headers["Docker-Plugin-Name"] == "mine:1"
        assert response.headers["Api-Version"] == "1.47"
        body = await response.read()
    assert body.endswith(b"\r\n")
    lines = [json.loads(line) for line in body.split(b"\r\n")[:-1]]
    for line in lines:
        openapi.check("ProgressLine", line)
    assert lines[0]["status"].startswith("Pulling from ")
    assert lines[1]["status"].startswith("Digest: sha256:")
    assert any(line["status"] == "Download complete" and line["progressDetail"] == {} for line in lines)


async def test_an_error_after_the_first_line(engine: Engine) -> None:
    """Once lines have gone out, the error is the last line, in both members that clients read."""
    remote = await engine.publish("refused", CONFIG)
    lines = await engine.lines("POST", "/plugins/pull", params={"remote": remote}, json=[])
    assert lines[-1] == {"error": "incorrect privileges", "errorDetail": {"message": "incorrect privileges"}}
    assert await engine.call("GET", "/plugins") == (200, [])


async def test_an_error_before_the_first_line(engine: Engine) -> None:
    """Before the first line it is an HTTP error, and names the plugin already."""
    remote = await engine.publish("there", PLAIN)
    async with engine.session() as session, session.post(f"/plugins/pull?name=x&remote={remote}-not") as response:
        assert response.status == 404
        assert response.headers["Docker-Plugin-Name"] == "x"
        assert response.headers["Content-Type"] == "application/json"
        assert (await response.json()).keys() == {"message"}


async def test_upgrade(engine: Engine) -> None:
    """An upgrade streams like a pull, keeps the name, and is refused while enabled."""
    name = await engine.install("old", PLAIN)
    remote = await engine.publish("new", PLAIN | {"description": "newer"})
    path = f"/plugins/{name}/upgrade"
    await engine.call("POST", f"/plugins/{name}/enable", params={"timeout": "0"})
    status, body = await engine.call("POST", path, params={"remote": remote})
    assert (status, "must be disabled before upgrading" in body["message"]) == (409, True)
    await engine.call("POST", f"/plugins/{name}/disable")
    async with engine.session() as session, session.post(path, params={"remote": remote}) as response:
        assert response.headers["Docker-Plugin-Name"] == name
        assert b'"error"' not in await response.read()
    assert (await engine.call("GET", f"/plugins/{name}/json"))[1]["Config"]["Description"] == "newer"


@pytest.mark.parametrize("verb", ["push", "pull"])
async def test_push(engine: Engine, verb: str) -> None:
    """A push works under its own path and under docker-py's, and ends with tag, digest and size."""
    remote = await engine.publish("pushed", PLAIN)
    await engine.lines("POST", "/plugins/pull", params={"remote": remote})
    lines = await engine.lines("POST", f"/plugins/{remote}/{verb}")
    for line in lines:
        openapi.check("ProgressLine", line)
    assert lines[-1]["aux"].keys() == {"Tag", "Digest", "Size"}


async def test_push_of_nothing(engine: Engine) -> None:
    """What does not exist cannot be pushed: an HTTP error."""
    assert (await engine.call("POST", "/plugins/nope/push"))[0] == 404


async def test_credentials_reach_the_registry_call(engine: Engine, memory: MemoryManager) -> None:
    """Credentials, X-Meta headers and the client's name go along with each registry call."""
    remote = await engine.publish("with-auth", PLAIN)
    headers = {
        "X-Registry-Auth": "eyJVc2VybmFtZSI6InUiLCJQYXNzd29yZCI6InAifQ==",
        "X-Meta-Job": "7",
        "User-Agent": "tester/1",
    }
    await engine.call("GET", "/plugins/privileges", params={"remote": remote}, headers=headers)
    await engine.lines("POST", "/plugins/pull", params={"remote": remote}, headers=headers)
    await engine.lines("POST", f"/plugins/{remote}/push", headers=headers)
    assert len(memory.accesses) == 3
    for access in memory.accesses:
        assert (access.credentials.username, access.credentials.password) == ("u", "p")
        assert access.meta == {"X-Meta-Job": "7"}
        assert access.client_agent == "tester/1"


async def test_secrets_stay_out_of_the_log(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither the login's body nor the header with credentials is logged, also when they are refused."""
    log.configure(level="debug")
    header = {"X-Registry-Auth": "eyJwYXNzd29yZCI6InZlcnktc2VjcmV0In0="}
    await engine.call("GET", "/plugins/privileges", params={"remote": "nope"}, headers=header)
    await engine.call("POST", "/auth", json={"username": "u", "password": "very-secret"})
    await engine.call("GET", "/_ping", headers={"X-Registry-Auth": "very-secret" * 9000})
    shown = "".join(capfd.readouterr())
    assert "request" in shown
    assert "very-secret" not in shown
    assert header["X-Registry-Auth"] not in shown

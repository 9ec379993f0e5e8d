"""The endpoints about the daemon itself."""

import json
import os

import pytest

from tests.support import openapi
from tests.support.engine import Engine

pytestmark = pytest.mark.anyio


async def test_version(engine: Engine) -> None:
    """Versions are as described, and the component's details are all text."""
    status, found = await engine.call("GET", "/v1.24/version")
    assert status == 200
    openapi.check("Version", found)
    assert found["Components"][0]["Name"] == "Engine"


async def test_info(engine: Engine) -> None:
    """The facts that clients read are there and not empty."""
    status, found = await engine.call("GET", "/info")
    assert status == 200
    openapi.check("Info", found)
    assert found["NCPU"] == os.cpu_count()
    assert {"::1/128", "127.0.0.0/8"} <= set(found["RegistryConfig"]["InsecureRegistryCIDRs"])
    assert found["Warnings"] == []
    assert "json-file" in found["Plugins"]["Log"]


async def test_info_counts_network_drivers(engine: Engine) -> None:
    """An enabled network driver is listed, a disabled one and a volume driver are not."""
    driver = {"entrypoint": ["/x"], "interface": {"socket": "s.sock", "types": ["docker.networkdriver/1.0"]}}
    name = await engine.install("net", driver)
    assert (await engine.call("GET", "/info"))[1]["Plugins"]["Network"] == []
    await engine.call("POST", f"/plugins/{name}/enable", params={"timeout": "0"})
    found = (await engine.call("GET", "/info"))[1]["Plugins"]
    assert (found["Network"], found["Volume"]) == ([name], [])


async def test_disk_usage(engine: Engine) -> None:
    """The size of the layers grows with a plugin."""
    before = (await engine.call("GET", "/system/df"))[1]
    await engine.install("sized")
    after = (await engine.call("GET", "/v1.41/system/df"))[1]
    openapi.check("DiskUsage", after)
    assert after["LayersSize"] > before["LayersSize"]


async def test_login(engine: Engine) -> None:
    """A login is checked: accepted with the identity token, or 401."""
    body = {"Username": "u", "password": "right", "serveraddress": "r.test"}
    assert await engine.call("POST", "/auth", json=body) == (
        200,
        {"IdentityToken": "token-of-identity", "Status": "Login Succeeded"},
    )
    status, found = await engine.call("POST", "/auth", json=body | {"password": "wrong"})
    assert (status, "unauthorized" in found["message"]) == (401, True)
    assert (await engine.call("POST", "/auth", json=[]))[0] == 400


async def test_openapi(engine: Engine) -> None:
    """The description is served as JSON."""
    async with engine.session() as session, session.get("/pluginsvc/v1/openapi.json") as response:
        assert response.headers["Content-Type"] == "application/json"
        assert json.loads(await response.read()) == openapi.document()


@pytest.mark.parametrize(("query", "dry"), [("", False), ("?dry-run=1", True), ("?dry-run=false", False)])
async def test_collect(engine: Engine, query: str, dry: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A collection tells what it removed; a dry run only what it would."""
    status, found = await engine.call("POST", f"/pluginsvc/v1/gc{query}")
    assert status == 200
    assert found.keys() == {"Removed", "Bytes"}
    again = (await engine.call("POST", "/pluginsvc/v1/gc?dry-run=1"))[1]["Removed"]
    assert (found["Removed"] == again) == dry

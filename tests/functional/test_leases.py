"""Leases and mounts through the socket, and by pluginctl."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from anyio import to_thread
from click.testing import CliRunner, Result

from pluginsvc.client.pluginctl import main
from tests.support import openapi
from tests.support.engine import Engine

pytestmark = pytest.mark.anyio
V1 = "/pluginsvc/v1"


@pytest.fixture
async def name(engine: Engine) -> str:
    """Give an enabled plugin."""
    found = await engine.install("leased")
    await engine.call("POST", f"/plugins/{found}/enable", params={"timeout": "0"})
    return found


async def test_life_of_a_lease(engine: Engine, name: str) -> None:
    """A lease is taken, counted, shown, stands in the way of disable and remove, and is given back."""
    body = {"Holder": "web", "Purpose": "volume a", "Seconds": 60, "Capability": "volumedriver"}
    status, lease = await engine.call("POST", f"{V1}/plugins/{name}/acquire", json=body)
    assert status == 200
    openapi.check("PluginLease", lease)
    assert (lease["Holder"], lease["Purpose"], lease["Count"]) == ("web", "volume a", 1)
    body = {"Holder": "web", "Purpose": "volume a"}
    assert (await engine.call("POST", f"{V1}/plugins/{name}/acquire", json=body))[1]["Count"] == 2
    _, listed = await engine.call("GET", f"{V1}/plugins/{name}/leases")
    assert [(found["Holder"], found["Count"], found["ExpiresNs"]) for found in listed] == [("web", 2, None)]
    for method, path in (("POST", f"/plugins/{name}/disable"), ("DELETE", f"/plugins/{name}")):
        status, refused = await engine.call(method, path)
        assert status == 409
        assert refused["message"].startswith(f"plugin {name} is in use by web (volume a)")
    released = [await engine.call("POST", f"{V1}/plugins/{name}/release", json=body) for _ in range(3)]
    assert released == [(200, {"Count": 1}), (200, {"Count": 0}), (200, {"Count": 0})]
    assert await engine.call("GET", f"{V1}/plugins/{name}/leases") == (200, [])


async def test_release_all(engine: Engine, name: str) -> None:
    """A holder gives back all it has at once, whatever for; others keep theirs."""
    for holder in ("web", "web", "db"):
        body = {"Holder": holder, "Purpose": "x"}
        await engine.call("POST", f"{V1}/plugins/{name}/acquire", json=body)
    assert await engine.call("POST", f"{V1}/plugins/{name}/release", json={"Holder": "web", "All": True}) == (
        200,
        {"Count": 0},
    )
    _, listed = await engine.call("GET", f"{V1}/plugins/{name}/leases")
    assert [found["Holder"] for found in listed] == ["db"]


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"Holder": "a"},
        {"Holder": "a", "Purpose": ""},
        {"Holder": "a\n", "Purpose": "x"},
        {"Holder": "a", "Purpose": "x", "Seconds": 0},
        {"Holder": "a", "Purpose": "x", "Seconds": 1e30},
        {"Holder": "a", "Purpose": "x", "Seconds": "1"},
        {"Holder": "a", "Purpose": "x", "Capability": "authz"},
        {"Holder": "a", "Purpose": "x", "All": True},
    ],
)
async def test_bad_acquire(engine: Engine, name: str, body: object) -> None:
    """A body that is not what it has to be is a 400 that says why, and no lease is taken."""
    status, refused = await engine.call("POST", f"{V1}/plugins/{name}/acquire", json=body)
    assert (status, bool(refused["message"])) == (400, True)
    assert await engine.call("GET", f"{V1}/plugins/{name}/leases") == (200, [])


async def test_disabled_and_missing(engine: Engine, name: str) -> None:
    """A disabled plugin can be released and not acquired; what is no plugin is a 404."""
    body = {"Holder": "a", "Purpose": "x"}
    await engine.call("POST", f"/plugins/{name}/disable")
    status, refused = await engine.call("POST", f"{V1}/plugins/{name}/acquire", json=body)
    assert (status, refused["message"]) == (409, f"plugin {name} found but disabled")
    assert await engine.call("POST", f"{V1}/plugins/{name}/release", json=body) == (200, {"Count": 0})
    for method, what in (("POST", "acquire"), ("POST", "release"), ("GET", "leases")):
        sent = {"json": body} if method == "POST" else {}
        assert (await engine.call(method, f"{V1}/plugins/nothing/{what}", **sent))[0] == 404


async def test_mounts(engine: Engine, name: str) -> None:
    """The mounts are listed as the description says."""
    status, listed = await engine.call("GET", f"{V1}/mounts")
    assert status == 200
    for mount in listed:
        openapi.check("HostMount", mount)
    assert [mount["Plugin"] for mount in listed] == [name]


@pytest.fixture
def ctl(engine: Engine) -> Callable[..., Awaitable[Result]]:
    """Give a function that runs pluginctl and checks its exit status."""

    async def run(*words: str, status: int = 0) -> Result:
        invoke = lambda: CliRunner().invoke(main, ["--host", engine.host, *words])  # noqa: E731 - a thread's body
        result = await to_thread.run_sync(invoke)
        assert result.exit_code == status, result.output
        return result

    return run


async def test_pluginctl(ctl: Callable[..., Awaitable[Result]], name: str) -> None:
    """pluginctl acquires, shows and releases leases, and shows mounts, for people and for programs."""
    words = ("acquire", name, "--holder", "web")
    assert (await ctl(*words, "--purpose", "volume a", "--seconds", "3600")).stdout == "1\n"
    assert (await ctl(*words, "--purpose", "volume b", "--capability", "volumedriver")).stdout == "1\n"
    refused = await ctl(*words, "--purpose", "volume c", "--capability", "authz", status=1)
    assert refused.stderr == 'pluginctl: plugin does not provide "authz" capability\n'
    await ctl(*words, status=2)
    header, first, second = (await ctl("leases", name)).stdout.splitlines()
    assert header.split() == ["HOLDER", "PURPOSE", "COUNT", "SINCE", "EXPIRES"]
    assert first.startswith("web")
    assert second.split()[-1] == "never"
    lines = (await ctl("leases", name, "--format", "json")).stdout.splitlines()
    assert [json.loads(line)["Purpose"] for line in lines] == ["volume a", "volume b"]
    assert "in use by web" in (await ctl("rm", name, status=1)).stderr
    assert (await ctl("release", name, "--holder", "web", "--purpose", "volume b")).stdout == "0\n"
    assert (await ctl("release", name, "--holder", "web", "--all")).stdout == "0\n"
    assert (await ctl("mounts")).stdout.splitlines()[0].split() == ["PLUGIN", "STATE", "SINCE", "PATH", "TROUBLE"]
    assert msgspec.json.decode((await ctl("mounts", "--format", "json")).stdout)["Plugin"] == name

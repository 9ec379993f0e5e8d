"""Volumes of plugins through the socket, and by ``pluginctl volume``."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from tests.functional.conftest import Ctl
from tests.support import openapi
from tests.support.engine import CONFIG, Engine
from tests.support.memory_manager import MemoryManager
from tests.support.volume_driver import Driver

pytestmark = pytest.mark.anyio

V1 = "/pluginsvc/v1"


@pytest.fixture
async def memory(tmp_path: Path) -> MemoryManager:
    return MemoryManager(place=tmp_path)


async def enabled(engine: Engine, memory: MemoryManager, name: str) -> Path:
    """Install and enable a volume plugin; return its directory."""
    found = await engine.install(name, CONFIG | {"propagatedMount": "/mnt/vol"})
    await engine.call("POST", f"/plugins/{found}/enable", params={"timeout": "0"})
    place = memory.place / memory.find(found).id
    (place / "rootfs").mkdir(parents=True)
    (place / "propagated-mount").mkdir()
    return place


@pytest.fixture
async def place(engine: Engine, memory: MemoryManager) -> Path:
    """Give the directory of an enabled volume plugin called ``vol``."""
    return await enabled(engine, memory, "vol")


@pytest.fixture
async def driver(place: Path) -> AsyncIterator[Driver]:
    """Give what answers for it."""
    found = Driver()
    async with found.at(place / "sample.sock"):
        yield found


@pytest.fixture
def ctl(ctl: Ctl) -> Ctl:
    """Give a function that runs ``pluginctl volume``."""
    return partial(ctl, "volume")


async def test_life_of_a_volume(engine: Engine, driver: Driver, place: Path) -> None:
    """A volume is made, shown, listed, mounted, unmounted and removed, and keeps its plugin meanwhile."""
    vol = f"{V1}/plugins/vol/volumes"
    created = await engine.call("POST", f"{vol}/create", json={"Name": "v", "Options": {"size": "1m"}})
    assert created == (200, {"Name": "v", "Plugin": "vol:latest"})
    _, shown = await engine.call("POST", f"{vol}/inspect", json={"Name": "v"})
    openapi.check("Volume", shown)
    assert (shown["Name"], shown["Plugin"], shown["Scope"]) == ("v", "vol:latest", "local")
    assert await engine.call("GET", vol) == (200, [shown])
    assert await engine.call("GET", f"{V1}/volumes") == (200, {"Volumes": [shown], "Failed": []})
    driver.answers["Mount"] = {"Mountpoint": "/mnt/vol/v"}
    (place / "propagated-mount" / "v").mkdir()
    body = {"Name": "v", "ID": "web"}
    mounted = await engine.call("POST", f"{vol}/mount", json=body)
    assert mounted == (200, {"Mountpoint": str(place / "propagated-mount" / "v")})
    status, refused = await engine.call("POST", "/plugins/vol/disable")
    assert (status, refused["message"]) == (
        409,
        "plugin vol:latest is in use by volumes (volume v), volumes (mount of v by web)",
    )
    assert await engine.call("POST", f"{vol}/remove", json={"Name": "v"}) == (
        409,
        {"message": "volume v of plugin vol:latest is mounted by web: unmount it, or use --force"},
    )
    assert (await engine.call("POST", f"{vol}/unmount", json=body | {"ID": "db"}))[0] == 409
    assert (await engine.call("POST", f"{vol}/unmount", json=body))[0] == 204
    assert (await engine.call("POST", f"{vol}/remove", json={"Name": "v"}))[0] == 204
    assert (await engine.call("POST", "/plugins/vol/disable"))[0] == 200


@pytest.mark.parametrize("name", ["vol/volumes", "vol/volumes/create", "volumes/volumes"])
async def test_plugins_with_words_of_the_path(engine: Engine, memory: MemoryManager, name: str) -> None:
    """A plugin whose name looks like the end of a path is found like any other."""
    found = Driver()
    async with found.at(await enabled(engine, memory, name) / "sample.sock"):
        one = f"{V1}/plugins/{name}"
        assert (await engine.call("POST", f"{one}/volumes/create", json={"Name": "v"}))[0] == 200
        assert [volume["Name"] for volume in (await engine.call("GET", f"{one}/volumes"))[1]] == ["v"]
        assert (await engine.call("POST", f"{one}/volumes/remove", json={"Name": "v"}))[0] == 204
        assert (await engine.call("GET", f"{one}/json"))[1]["Name"] == f"{name}:latest"
    assert [call for call in found.calls if call[0] != "Capabilities"] == [
        ("Create", "v"),
        ("List", ""),
        ("Remove", "v"),
    ]


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("create", None),
        ("create", {}),
        ("create", {"Name": ""}),
        ("create", {"Name": "v", "Options": {"size": 1}}),
        ("create", {"Name": "v", "Options": None}),
        ("create", {"Name": "v", "ID": "x"}),
        ("create", {"Name": "a\n"}),
        ("inspect", {"Name": 4097 * "a"}),
        ("remove", {"Name": ["v"]}),
        ("remove", {"Name": "v", "Force": 1}),
        ("mount", {"Name": "v"}),
        ("mount", {"Name": "v", "ID": ""}),
        ("unmount", {"Name": "v", "ID": "a b"}),
    ],
)
async def test_bad_bodies(engine: Engine, driver: Driver, what: str, body: object) -> None:
    """A body that is not what it has to be is a 400 that says why, and no plugin is asked."""
    status, refused = await engine.call("POST", f"{V1}/plugins/vol/volumes/{what}", json=body)
    assert (status, bool(refused["message"])) == (400, True)
    assert driver.calls == []


async def test_refusals(engine: Engine, memory: MemoryManager, driver: Driver) -> None:
    """Each kind of refusal has its status: unknown plugin and volume, wrong plugin, disabled, and the plugin's own."""
    create = f"{V1}/plugins/%s/volumes/create"
    await engine.install("net", CONFIG | {"interface": {"socket": "s", "types": ["docker.networkdriver/1.0"]}})
    await engine.call("POST", "/plugins/net/enable", params={"timeout": "0"})
    await engine.install("off")
    status, refused = await engine.call("POST", create % "this-plugin-does-not-exist", json={"Name": "v"})
    assert status == 404
    assert "this-plugin-does-not-exist" in refused["message"]
    assert (await engine.call("POST", create % "net", json={"Name": "v"}))[0] == 400
    assert await engine.call("POST", create % "off", json={"Name": "v"}) == (
        409,
        {"message": "plugin off:latest found but disabled"},
    )
    driver.errors["Create"] = "no space"
    assert await engine.call("POST", create % "vol", json={"Name": "v"}) == (
        500,
        {"message": "VolumeDriver.Create: no space"},
    )
    driver.answers["Get"] = {}
    status, refused = await engine.call("POST", f"{V1}/plugins/vol/volumes/inspect", json={"Name": "v"})
    assert status == 404
    assert refused["message"].startswith("no such volume 'v' of plugin vol:latest")
    assert await memory.leases("vol") == []


async def test_pluginctl(ctl: Ctl, driver: Driver, memory: MemoryManager, place: Path) -> None:
    """pluginctl does all of it with docker's words, for people and for programs."""
    assert (await ctl("create", "-d", "vol", "-o", "size=1m", "--opt", "a=b=c", "-o", "flag", "v")).stdout == "v\n"
    assert (await ctl("mount", "--driver", "vol", "v")).stdout == f"{place}/rootfs/v\n"
    assert [lease.purpose for lease in await memory.leases("vol")] == ["volume v", "mount of v by pluginctl"]
    header, row = (await ctl("ls")).stdout.splitlines()
    assert header.split() == ["PLUGIN", "NAME", "SCOPE", "MOUNTPOINT"]
    assert row.split() == ["vol:latest", "v", "local"]
    assert (await ctl("list", "-d", "vol", "-q")).stdout == "v\n"
    listed = json.loads((await ctl("ls", "--format", "json")).stdout)
    openapi.check("Volume", listed)
    assert json.loads((await ctl("inspect", "-d", "vol", "v")).stdout) == [listed]
    assert (await ctl("unmount", "-d", "vol", "v")).stdout == "v\n"
    assert (await ctl("mount", "-d", "vol", "--id", "web", "v")).exit_code == 0
    assert (await ctl("umount", "-d", "vol", "--id", "web", "v")).stdout == "v\n"
    assert (await ctl("rm", "-d", "vol", "v")).stdout == "v\n"
    assert await memory.leases("vol") == []


async def test_force(ctl: Ctl, driver: Driver, memory: MemoryManager) -> None:
    """rm of a mounted volume is refused with who has it mounted, and done with --force."""
    await ctl("create", "-d", "vol", "v")
    await ctl("mount", "-d", "vol", "v")
    refused = await ctl("rm", "-d", "vol", "v", status=1)
    assert refused.stderr.endswith("is mounted by pluginctl: unmount it, or use --force\n")
    assert (await ctl("rm", "-f", "-d", "vol", "v")).stdout == "v\n"
    assert await memory.leases("vol") == []


async def test_one_value_is_one_line(ctl: Ctl, driver: Driver, place: Path) -> None:
    """Ends of lines and tabs in names and paths are escaped where a line is one of them."""
    name = "a\n\tb"
    (place / "rootfs" / name).mkdir()
    driver.volumes = [name]
    driver.answers["Mount"] = {"Mountpoint": f"/{name}"}
    assert (await ctl("ls", "-q")).stdout == "a\\u000a\\u0009b\n"
    assert (await ctl("mount", "-d", "vol", "v")).stdout == f"{place}/rootfs/a\\u000a\\u0009b\n"
    assert (await ctl("rm", "-d", "vol", name)).stdout == "a\\u000a\\u0009b\n"


async def test_options(ctl: Ctl, driver: Driver) -> None:
    """Options come to the plugin as docker sends them, and one without a key is refused."""
    await ctl("create", "-d", "vol", "-o", "size=1m", "-o", "a=b=c", "-o", "flag", "v")
    assert driver.options == {"size": "1m", "a": "b=c", "flag": ""}
    await ctl("create", "-d", "vol", "-o", "=1", "v", status=2)
    await ctl("create", "v", status=2)


async def test_pluginctl_goes_on(ctl: Ctl, driver: Driver) -> None:
    """Of several volumes those that fail are complained about, with status 1, and the others are done."""
    driver.volumes = ["a", "b"]
    driver.errors["Get"] = "no \x1b[2J idea"
    shown = await ctl("inspect", "-d", "vol", "a", "b", status=1)
    assert json.loads(shown.stdout) == []
    assert shown.stderr.splitlines() == 2 * ["pluginctl: VolumeDriver.Get: no  [2J idea"]
    removed = await ctl("rm", "-d", "vol", "", "b", status=1)
    assert removed.stdout == "b\n"
    assert removed.stderr.startswith("pluginctl: invalid volume name")


async def test_ls_with_a_broken_plugin(ctl: Ctl, engine: Engine, memory: MemoryManager, driver: Driver) -> None:
    """A broken plugin does not hide the others' volumes, and is named with status 1; a disabled one is not asked."""
    await engine.install("off")
    broken = Driver()
    broken.answers["List"] = {"Volumes": 7}
    driver.volumes = ["v", "\x1b[31mw"]
    async with broken.at(await enabled(engine, memory, "broken") / "sample.sock"):
        listed = await ctl("ls", "-q", status=1)
    assert listed.stdout.splitlines() == ["\\u001b[31mw", "v"]
    assert listed.stderr.startswith("pluginctl: no volumes of plugin broken:latest: VolumeDriver.List: the answer of ")

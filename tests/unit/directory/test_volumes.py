"""Typed calls to volume plugins (REF 3.13)."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.directory.provider import Provider, Scope
from pluginsvc.directory.rpc import BadAnswer, Client, PluginFault, PluginRefused
from pluginsvc.directory.volumes import BadMountpoint, NoSuchVolume, VolumeDriver
from tests.unit.directory.peers import Peer, answer, plugin

pytestmark = pytest.mark.anyio

CALLS: dict[str, Callable[[VolumeDriver], Awaitable[object]]] = {
    "Create": lambda driver: driver.create("v", {"size": "1"}),
    "Remove": lambda driver: driver.remove("v"),
    "Mount": lambda driver: driver.mount("v", "web"),
    "Path": lambda driver: driver.path("v"),
    "Unmount": lambda driver: driver.unmount("v", "web"),
    "Get": lambda driver: driver.get("v"),
    "List": lambda driver: driver.list(),
    "Capabilities": lambda driver: driver.scope(),
}


class Asked(Client):
    """A client that is answered with a document and keeps what it was asked."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__("unix:///s", name="p")
        self.document = document
        self.asked: list[tuple[str, object, float | None]] = []

    async def call(
        self, method: str, argument: object = None, *, timeout: float | None = None, retry_for: float = 0.0
    ) -> dict[str, Any]:
        self.asked.append((method, argument, timeout))
        return self.document


def driver(client: Client | Peer, *, scope: Scope | None = None, timeout: float = 0.0) -> VolumeDriver:
    provider = Provider(
        name="p",
        plugin_id="",
        capabilities=(),
        address="",
        enabled=True,
        state="running",
        up=True,
        run="1",
        client=Client(client.address, name="p") if isinstance(client, Peer) else client,
        timeout=timeout,
        scope=scope,
    )
    return VolumeDriver(provider)


def says(**document: Any) -> VolumeDriver:
    return driver(Asked(document))


async def test_what_is_sent() -> None:
    """Each call has Docker's words, two minutes for Create and Mount, and one for the rest."""
    client = Asked({"Mountpoint": "/x", "Volume": {"Name": "v"}})
    for call in CALLS.values():
        await call(driver(client))
    assert client.asked == [
        ("VolumeDriver.Create", {"Name": "v", "Opts": {"size": "1"}}, 120),
        ("VolumeDriver.Remove", {"Name": "v"}, 60),
        ("VolumeDriver.Mount", {"Name": "v", "ID": "web"}, 120),
        ("VolumeDriver.Path", {"Name": "v"}, 60),
        ("VolumeDriver.Unmount", {"Name": "v", "ID": "web"}, 60),
        ("VolumeDriver.Get", {"Name": "v"}, 60),
        ("VolumeDriver.List", {}, 60),
        ("VolumeDriver.Capabilities", {}, 60),
    ]
    client.asked.clear()
    await driver(client, timeout=30).create("v", {})
    await driver(client, timeout=90).remove("v")
    assert [timeout for _, _, timeout in client.asked] == [30, 60]


@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
@pytest.mark.parametrize("call", CALLS)
async def test_err_is_an_error(call: str, status: str) -> None:
    """An ``Err`` in any answer becomes an error with that text (upstream TestVolumeRequestError)."""
    async with plugin(answer(status, b'{"Err": "no \\u001b space"}')) as peer:
        with pytest.raises(PluginRefused) as failed:
            await CALLS[call](driver(peer))
    assert str(failed.value) == f"VolumeDriver.{call}: no   space"
    assert failed.value.http_status == int(status[:3])


@pytest.mark.parametrize("key", ["Err", "err", "ERR"])
async def test_err_beside_what_is_wrong(key: str) -> None:
    """What a plugin says went wrong comes before what is wrong with the rest of its answer, and need not be a text."""
    with pytest.raises(PluginRefused, match="nothing there"):
        await says(**{key: "nothing there", "Volume": 7}).get("v")
    with pytest.raises(PluginRefused, match="an error without a word"):
        await says(**{key: "\n"}).remove("v")


@pytest.mark.parametrize(
    ("call", "document"),
    [
        *((call, {"Err": 7}) for call in CALLS),
        ("Mount", {"Mountpoint": ["/x"]}),
        ("Path", {"Mountpoint": {}}),
        ("Get", {"Volume": "v"}),
        ("Get", {"Volume": {"Name": "v", "Mountpoint": 1}}),
        ("Get", {"Volume": {"Name": "v", "Status": "fine"}}),
        ("List", {"Volumes": {}}),
        ("List", {"Volumes": [None]}),
        ("List", {"Volumes": [{"Name": 1}]}),
        ("Capabilities", {"Capabilities": "local"}),
        ("Capabilities", {"Capabilities": {"Scope": 1}}),
    ],
)
async def test_wrong_types(call: str, document: dict[str, Any]) -> None:
    """An answer of other types is an error that names plugin and call, and no crash."""
    with pytest.raises(BadAnswer, match=rf"^VolumeDriver.{call}: the answer of plugin p is of no use: "):
        await CALLS[call](says(**document))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_keys = st.sampled_from(["Err", "Mountpoint", "mountpoint", "Volume", "Volumes", "Capabilities", "Scope", "Name"])


@given(document=st.dictionaries(_keys, _json | st.dictionaries(_keys, _json)), call=st.sampled_from(sorted(CALLS)))
def test_any_answer(document: dict[str, Any], call: str) -> None:
    """Whatever a plugin answers is used or is an error of its own kind."""

    async def ask() -> None:
        scope = Scope(Path("/nonexistent/rootfs"), "/mnt", Path("/nonexistent/propagated-mount"))
        try:
            found = await CALLS[call](driver(Asked(document), scope=scope))
        except (PluginFault, NoSuchVolume):
            return
        if call == "Mount":
            assert str(found).startswith("/nonexistent/")

    asyncio.run(ask())


async def test_nothing_is_said() -> None:
    """Nothing and null mean what they mean to Docker: no volume, no mountpoint, and for List none at all."""
    documents: list[dict[str, Any]] = [{}, {"Volume": None}, {"Volume": {}}]
    for document in documents:
        with pytest.raises(NoSuchVolume, match=r"^no such volume 'v' of plugin p"):
            await says(**document).get("v")
    assert await says(Volumes=None).list() == []
    assert await says(Mountpoint=None, Err=None).path("v") == ""
    (found,) = await says(Volumes=[{}]).list()
    assert (found.name, found.mountpoint, found.created_at, found.status) == ("", "", "", None)


async def test_volumes() -> None:
    """Volumes are read in whatever case, what is unknown is left out, and the status is passed on as it is."""
    document = {"name": "other", "MountPoint": "/x", "CreatedAt": "2026-01-01", "Status": {"Hello": [1]}, "More": 1}
    found = await says(VOLUME=document).get("v")
    assert (found.name, found.mountpoint, found.created_at, found.status) == (
        "v",
        "/x",
        "2026-01-01",
        {"Hello": [1]},
    )
    (listed,) = await says(volumes=[document]).list()
    assert listed.name == "other"


@pytest.mark.parametrize(
    ("document", "scope"),
    [
        ({}, "local"),
        ({"Capabilities": None}, "local"),
        ({"Capabilities": {}}, "local"),
        ({"Capabilities": {"Scope": ""}}, "local"),
        ({"Capabilities": {"Scope": "Global"}}, "global"),
        ({"capabilities": {"scope": "GLOBAL"}}, "global"),
        ({"Capabilities": {"Scope": "LOCAL"}}, "local"),
        ({"Capabilities": {"Scope": "everywhere"}}, "local"),
    ],
)
async def test_scope(document: dict[str, Any], scope: str) -> None:
    """The scope is global only where the plugin says so, in any case."""
    assert await says(**document).scope() == scope


@pytest.mark.parametrize(("status", "text"), [("500 Oops", "oops"), ("403 No", "oops")])
async def test_capabilities_that_fail(status: str, text: str) -> None:
    """A plugin that does not know Capabilities is local, and any other refusal is an error."""
    async with plugin(answer("404 Not Found", b"404 page not found\n")) as peer:
        assert await driver(peer).scope() == "local"
    async with plugin(answer(status, text.encode())) as peer:
        with pytest.raises(PluginRefused, match=r"^VolumeDriver\.Capabilities: oops$"):
            await driver(peer).scope()


@pytest.fixture
def scope(tmp_path: Path) -> Scope:
    """Give a plugin's directories."""
    found = Scope(tmp_path / "rootfs", "/mnt/vol", tmp_path / "propagated-mount")
    (found.rootfs / "mnt" / "vol").mkdir(parents=True)
    (found.propagated / "v").mkdir(parents=True)
    return found


async def test_mountpoints_are_the_hosts(scope: Scope) -> None:
    """Mountpoints of a managed plugin are told as the host has them, there or not, and none stays none."""
    client = Asked({"Mountpoint": "/mnt/vol/v", "Volume": {"Mountpoint": "/mnt/vol/gone"}})
    client.document["Volumes"] = [{"Mountpoint": "/data"}, {"Name": "b"}]
    found = driver(client, scope=scope)
    assert await found.mount("v", "web") == await found.path("v") == str(scope.propagated / "v")
    assert (await found.get("v")).mountpoint == str(scope.propagated / "gone")
    assert [each.mountpoint for each in await found.list()] == [str(scope.rootfs / "data"), ""]


@pytest.mark.parametrize("target", ["/", "/etc", "/nowhere/x", "../..", "../rootfs-of-another", "/proc/self/root"])
async def test_links_out(scope: Scope, target: str) -> None:
    """A mountpoint that leads out of the plugin by a symbolic link, anywhere in it, is refused, and hidden in lists."""
    (scope.propagated / "link").symlink_to(target)
    for path in ("/mnt/vol/link", "/mnt/vol/link/below"):
        document = {"Mountpoint": path, "Volume": {"Mountpoint": path}, "Volumes": [{}, {"Mountpoint": path}]}
        for call in ("Mount", "Path", "Get"):
            with pytest.raises(BadMountpoint, match="leads out of the plugin"):
                await CALLS[call](driver(Asked(document), scope=scope))


async def test_one_bad_mountpoint(scope: Scope) -> None:
    """A list has all volumes, those whose mountpoint is of no use without it; names are told whatever that is."""
    (scope.propagated / "link").symlink_to("/etc")
    volumes = [{"Name": name, "Mountpoint": f"/mnt/vol/{name}"} for name in ("v", "link", "a\0")]
    found = driver(Asked({"Volumes": volumes}), scope=scope)
    listed = [(each.name, each.mountpoint) for each in await found.list()]
    assert listed == [("v", str(scope.propagated / "v")), ("link", ""), ("a\0", "")]
    assert await driver(Asked({"Volumes": [{"Name": "v", "Mountpoint": 7}]}), scope=scope).names() == ["v"]


@pytest.mark.parametrize("path", ["/mnt/vol/none", "/mnt/vol/file", "/mnt/vol/file/v", "/nowhere/v"])
async def test_a_mount_nobody_sees(scope: Scope, path: str) -> None:
    """What is mounted at no directory of the host is an error that says what the plugin lacks; to ask is none."""
    (scope.propagated / "file").touch()
    found = driver(Asked({"Mountpoint": path}), scope=scope)
    with pytest.raises(BadMountpoint, match=r"no directory on the host: .*propagatedMount, or in a mount of type bind"):
        await found.mount("v", "web")
    assert await found.path("v") == str(scope.host(path))


async def test_no_mountpoint() -> None:
    """A mount without a mountpoint is an error."""
    for document in ({}, {"Mountpoint": None}):
        with pytest.raises(BadMountpoint, match="there is none"):
            await driver(Asked(document)).mount("v", "web")


async def test_binds(scope: Scope, tmp_path: Path) -> None:
    """What is below a directory that the operator has bound is where that is, and links do not lead out of it."""
    (tmp_path / "given" / "v").mkdir(parents=True)
    (tmp_path / "given" / "in").symlink_to("v")
    (tmp_path / "given" / "out").symlink_to("/etc")
    bound = Scope(scope.rootfs, "", scope.propagated, (("/x", tmp_path / "given"),))
    for path in ("/x/v", "/x/in"):
        found = await driver(Asked({"Mountpoint": path}), scope=bound).mount("v", "web")
        assert found == str(tmp_path / "given" / path.removeprefix("/x/"))
    with pytest.raises(BadMountpoint, match="leads out"):
        await driver(Asked({"Mountpoint": "/x/out"}), scope=bound).mount("v", "web")


async def test_links_inside(scope: Scope, tmp_path: Path) -> None:
    """A link that stays inside is fine, as is one on the way to the daemon's own directory."""
    (scope.propagated / "link").symlink_to("v")
    (scope.rootfs / "state").symlink_to("mnt")
    (tmp_path / "moved").symlink_to(tmp_path)
    moved = Scope(tmp_path / "moved" / "rootfs", "/mnt/vol", tmp_path / "moved" / "propagated-mount")
    for each in (scope, moved):
        for path in ("/mnt/vol/link", "/state", "/state/new"):
            assert await driver(Asked({"Mountpoint": path}), scope=each).path("v") == str(each.host(path))


@pytest.mark.parametrize("path", ["/mnt/vol/loop", "/mnt/vol/\0", "/mnt/vol/" + 300 * "a", "/a" * 3000])
async def test_paths_that_cannot_be(scope: Scope, path: str) -> None:
    """A mountpoint that the kernel refuses to look at is an error of the plugin's."""
    (scope.propagated / "loop").symlink_to("loop")
    with pytest.raises(BadMountpoint, match="of no use"):
        await driver(Asked({"Mountpoint": path}), scope=scope).mount("v", "web")


async def test_legacy_paths() -> None:
    """Paths of a plugin that runs on the host are its own business."""
    assert await says(Mountpoint="/mnt/../etc").mount("v", "web") == "/mnt/../etc"


async def test_no_file_system_is_asked(scope: Scope) -> None:
    """A named pipe at a mountpoint, which to open would hang, is not opened."""
    os.mkfifo(scope.propagated / "pipe")
    assert (await driver(Asked({"Mountpoint": "/mnt/vol/pipe"}), scope=scope).path("v")).endswith("/pipe")


async def test_over_the_wire(tmp_path: Path) -> None:
    """What a real plugin gets is Docker's JSON."""
    async with plugin(answer(), tmp_path / "s") as peer:
        await driver(peer).create("v", {"size": "1m"})
    (head, body), = peer.seen  # fmt: skip
    assert head.startswith("POST /VolumeDriver.Create HTTP/1.1")
    assert json.loads(body) == {"Name": "v", "Opts": {"size": "1m"}}

"""Volumes and the leases that go with them, whatever the plugin does (REF 3.13, 7.38)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec
import pytest

from pluginsvc.directory.provider import NoCapability, PluginDisabled
from pluginsvc.directory.rpc import BadAnswer, PluginRefused, PluginUnreachable
from pluginsvc.directory.volume_leases import InvalidVolume, NotMounted, VolumeMounted
from pluginsvc.directory.volume_use import MayBeDone, Volumes
from pluginsvc.directory.volumes import BadMountpoint, NoSuchVolume
from pluginsvc.model.plugin import Interface, Plugin, PluginConfig, PluginSettings
from pluginsvc.tasks import Job, JobGroup, KeyedLock
from tests.support.memory_manager import MemoryManager
from tests.support.volume_driver import Driver
from tests.unit.directory.peers import plugin, raw

pytestmark = pytest.mark.anyio

T = TypeVar("T")


class Host(MemoryManager):
    """Plugins in memory, whose changes are jobs as in the daemon."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.jobs, self.locks = JobGroup(), KeyedLock()

    async def finish(self, name: str, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        async def locked(job: Job) -> T:
            async with self.locks(key):
                job.detached = True
                return await work()

        return await self.jobs.run(name, locked)

    def add(self, name: str, *types: str) -> str:
        """Add an enabled plugin and return its ID."""
        plugin_id = f"{len(self.plugins):064x}"
        config = PluginConfig(interface=Interface(socket="s", types=list(types or ("docker.volumedriver/1.0",))))
        self.plugins[plugin_id] = Plugin(
            config=config, enabled=True, id=plugin_id, name=f"{name}:latest", settings=PluginSettings()
        )
        (self.place / plugin_id / "rootfs").mkdir(parents=True)
        return plugin_id

    def used(self, plugin_id: str) -> dict[str, int]:
        """Return what a plugin is in use for, and how often."""
        return {lease.purpose: lease.count for lease in self.in_use.get(plugin_id, [])}


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    found = Host(place=tmp_path)
    async with found.jobs.opened():
        yield found


@pytest.fixture
async def driver(host: Host) -> AsyncIterator[Driver]:
    """Give the plugin behind ``p``, which has the first ID."""
    found = Driver()
    async with found.at(host.place / host.add("p") / "s"):
        yield found


@pytest.fixture
def volumes(host: Host, driver: Driver) -> Volumes:
    return Volumes(host.directory, host, patience=0.3)


P = f"{0:064x}"


async def test_one_lease_for_one_volume(host: Host, driver: Driver, volumes: Volumes) -> None:
    """A volume is one lease however often it is created, and none that fails (TestDefererencePluginOnCreateError)."""
    for _ in range(3):
        assert await volumes.create("p", "good", {}) == "p:latest"
    driver.errors["Create"] = "no space"
    for name in ("bad", "good"):
        with pytest.raises(PluginRefused, match="no space"):
            await volumes.create("p", name, {})
    assert host.used(P) == {"volume good": 1}
    driver.errors.clear()
    await volumes.remove("p", "good")
    assert host.used(P) == {}


async def test_creates_at_once(host: Host, driver: Driver, volumes: Volumes) -> None:
    """Creates of one volume at one time, of which the first fails, leave one lease."""
    driver.held = anyio.Event()
    driver.creates = ["not yet"]
    failed = []

    async def create() -> None:
        try:
            await volumes.create("p", "v", {})
        except PluginRefused as exc:
            failed.append(exc.reason)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(create)
        await driver.holding.wait()
        await anyio.wait_all_tasks_blocked()
        driver.held.set()
    assert failed == ["not yet"]
    assert host.used(P) == {"volume v": 1}


async def test_mounts(host: Host, driver: Driver, volumes: Volumes) -> None:
    """Each mount is a lease until its unmount, a mount that fails is none, and is not followed by an unmount.

    An unmount that is refused says how to let go all the same.
    """
    place = str(host.place / P / "rootfs" / "v")
    assert [await volumes.mount("p", "v", "web"), await volumes.mount("p", "v", "web")] == [place, place]
    await volumes.mount("p", "v", "db")
    assert host.used(P) == {"mount of v by web": 2, "mount of v by db": 1}
    await volumes.unmount("p", "v", "web")
    await volumes.unmount("p", "v", "db")
    assert host.used(P) == {"mount of v by web": 1}
    driver.calls.clear()
    driver.errors["Mount"] = "no"
    with pytest.raises(PluginRefused):
        await volumes.mount("p", "v", "other")
    assert driver.calls == [("Mount", "v")]
    driver.errors["Unmount"] = "busy"
    with pytest.raises(PluginRefused) as refused:
        await volumes.unmount("p", "v", "web")
    assert str(refused.value) == (
        "VolumeDriver.Unmount: busy: if it is not mounted any more, say so with "
        "`pluginctl release p:latest --holder volumes --purpose 'mount of v by web'`"
    )
    assert host.used(P) == {"mount of v by web": 1}


@pytest.mark.parametrize("answer", [{}, {"Mountpoint": "/nowhere"}, {"Mountpoint": "/\0"}])
async def test_a_mount_of_no_use(host: Host, driver: Driver, volumes: Volumes, answer: dict[str, str]) -> None:
    """What is mounted where nobody can use it is unmounted, and its lease given back once the plugin has done that."""
    driver.answers["Mount"] = answer
    with pytest.raises(BadMountpoint):
        await volumes.mount("p", "v", "web")
    assert (driver.calls, host.used(P)) == ([("Mount", "v"), ("Unmount", "v")], {})
    driver.errors["Unmount"] = "busy"
    with pytest.raises(MayBeDone, match=r"of no use: .*: `pluginctl volume unmount -d p:latest --id web v` takes away"):
        await volumes.mount("p", "v", "web")
    assert host.used(P) == {"mount of v by web": 1}


async def test_nobody_knows_what_was_done(host: Host, driver: Driver, volumes: Volumes) -> None:
    """A call whose answer is broken may have been done: its lease stays, and the error says what takes it away."""
    driver.garbled = {"Create", "Mount"}
    with pytest.raises(
        MayBeDone, match=r"no JSON .* done all the same: `pluginctl volume rm -d p:latest v` takes away"
    ):
        await volumes.create("p", "v", {})
    with pytest.raises(MayBeDone, match=r"`pluginctl volume unmount -d p:latest --id web -- '-a b'` takes away"):
        await volumes.mount("p", "-a b", "web")
    assert host.used(P) == {"volume v": 1, "mount of -a b by web": 1}
    # held already: once is enough
    with pytest.raises(BadAnswer):
        await volumes.create("p", "v", {})
    await volumes.unmount("p", "-a b", "web")
    await volumes.remove("p", "v")
    assert host.used(P) == {}


@pytest.mark.parametrize("sent", [False, True])
async def test_no_answer(
    host: Host, volumes: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, sent: bool
) -> None:
    """A plugin that took no connection has done nothing; one that did and gave no answer may have."""
    # one try
    monkeypatch.setattr("pluginsvc.directory.rpc.Client.call.__kwdefaults__", {"timeout": None, "retry_for": 0.0})
    place = host.place / host.add("dead") / "s"
    async with plugin(raw(b""), place if sent else place.with_name("other")):
        for call in (volumes.create("dead", "v", {}), volumes.mount("dead", "v", "web")):
            with pytest.raises(MayBeDone if sent else PluginUnreachable):
                await call
    assert host.used(place.parent.name) == ({"volume v": 1, "mount of v by web": 1} if sent else {})


async def test_remove_takes_what_is_left(host: Host, driver: Driver, volumes: Volumes) -> None:
    """A volume that is removed by force takes along its mounts' leases, and none of another volume's or holder's."""
    for name in ("v", "v by x", "w"):
        await volumes.create("p", name, {})
        await volumes.mount("p", name, "web")
    await host.acquire("p", holder="other", purpose="volume v", seconds=None, capability="")
    await volumes.remove("p", "v", force=True)
    others = {"volume v by x": 1, "mount of v by x by web": 1, "volume w": 1, "mount of w by web": 1, "volume v": 1}
    assert host.used(P) == others
    assert {lease.holder for lease in host.in_use[P] if lease.purpose == "volume v"} == {"other"}
    await volumes.remove("p", "v by x", force=True)
    assert host.used(P) == {"volume w": 1, "mount of w by web": 1, "volume v": 1}


async def test_remove_while_mounted(host: Host, driver: Driver, volumes: Volumes) -> None:
    """A volume that somebody has mounted is not removed, unless by force, and the plugin is not asked."""
    await volumes.create("p", "v", {})
    for user in ("a", "b"):
        await volumes.mount("p", "v", user)
    await host.acquire("p", holder="other", purpose="mount of v by c", seconds=None, capability="")
    driver.calls.clear()
    with pytest.raises(VolumeMounted) as refused:
        await volumes.remove("p", "v")
    assert str(refused.value) == "volume v of plugin p:latest is mounted by a, b: unmount it, or use --force"
    assert (driver.calls, driver.volumes) == ([], ["v"])
    await volumes.remove("p", "v", force=True)
    assert host.used(P) == {"mount of v by c": 1}


@pytest.mark.parametrize("enabled", [True, False])
async def test_unmount_by_another(host: Host, driver: Driver, volumes: Volumes, *, enabled: bool) -> None:
    """Who has not mounted a volume does not unmount it, and is told who has, whether the plugin is enabled or not."""
    for user in ("a", "b"):
        await volumes.mount("p", "v", user)
    host.plugins[P] = msgspec.structs.replace(host.plugins[P], enabled=enabled)
    driver.calls.clear()
    with pytest.raises(NotMounted) as refused:
        await volumes.unmount("p", "v", "c")
    assert str(refused.value) == "volume 'v' of plugin p:latest is not mounted by c: a, b mounted it: use that ID"
    with pytest.raises(NotMounted, match="nobody has mounted it"):
        await volumes.unmount("p", "w\n", "c")
    assert (driver.calls, host.used(P)) == ([], {"mount of v by a": 1, "mount of v by b": 1})


async def test_remove_with_a_bad_mountpoint(host: Host, driver: Driver, volumes: Volumes) -> None:
    """A volume that is gone gives back its lease whatever the mountpoints of the others are."""
    await volumes.create("p", "v", {})
    driver.errors["Remove"] = "no such volume"
    driver.answers["List"] = {"Volumes": [{"Name": "w", "Mountpoint": 7}]}
    with pytest.raises(NoSuchVolume):
        await volumes.remove("p", "v")
    assert host.used(P) == {}


async def test_remove_that_is_refused(host: Host, driver: Driver, volumes: Volumes) -> None:
    """A volume that the plugin keeps, or does not say that it is gone, keeps its lease; one it does not have, not."""
    await volumes.create("p", "v", {})
    driver.errors["Remove"] = "it is mounted"
    with pytest.raises(PluginRefused, match="it is mounted"):
        await volumes.remove("p", "v")
    driver.errors["List"] = "no idea"
    with pytest.raises(PluginRefused, match="it is mounted"):
        await volumes.remove("p", "v")
    assert host.used(P) == {"volume v": 1}
    del driver.errors["List"]
    driver.volumes.clear()
    with pytest.raises(NoSuchVolume):
        await volumes.remove("p", "v")
    assert host.used(P) == {}


async def test_unmount_of_a_disabled_plugin(host: Host, driver: Driver, volumes: Volumes) -> None:
    """A release always works (REF 7.38): who unmounts from a disabled plugin lets go of it, and nobody is called."""
    await volumes.mount("p", "v", "web")
    host.plugins[P] = msgspec.structs.replace(host.plugins[P], enabled=False)
    driver.calls.clear()
    await volumes.unmount("p", "v", "web")
    assert (host.used(P), driver.calls) == ({}, [])
    for call in (volumes.create("p", "v", {}), volumes.remove("p", "v"), volumes.mount("p", "v", "web")):
        with pytest.raises(PluginDisabled):
            await call


@pytest.mark.parametrize("fails", [False, True])
async def test_the_caller_goes_away(host: Host, driver: Driver, volumes: Volumes, *, fails: bool) -> None:
    """A call that has begun ends without its caller: its lease stays if it went well, and goes if not."""
    driver.held = anyio.Event()
    if fails:
        driver.errors["Create"] = "no"
    async with anyio.create_task_group() as group:
        group.start_soon(volumes.create, "p", "v", {})
        await driver.holding.wait()
        group.cancel_scope.cancel()
    assert host.used(P) == {"volume v": 1}
    driver.held.set()
    driver.held = None
    # behind it, since it is about the same volume
    await volumes.mount("p", "v", "web")
    assert host.used(P) == ({} if fails else {"volume v": 1}) | {"mount of v by web": 1}


async def test_the_caller_goes_away_in_the_queue(host: Host, driver: Driver, volumes: Volumes) -> None:
    """A call that has not begun is not made when its caller is gone, and leaves no lease."""
    driver.held = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(volumes.create, "p", "v", {})
        await driver.holding.wait()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as second:
                second.start_soon(volumes.mount, "p", "v", "web")
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        driver.held.set()
    assert host.used(P) == {"volume v": 1}
    assert driver.calls == [("Create", "v")]


async def test_the_daemon_ends(tmp_path: Path) -> None:
    """A call that hangs is not waited for when the daemon ends, and its lease stays."""
    host, driver = Host(place=tmp_path), Driver()
    driver.held = anyio.Event()
    async with driver.at(host.place / host.add("p") / "s"), anyio.create_task_group() as group, host.jobs.opened():
        group.start_soon(Volumes(host.directory, host).create, "p", "v", {})
        await driver.holding.wait()
        group.cancel_scope.cancel()
    assert host.used(P) == {"volume v": 1}


async def test_all(host: Host, driver: Driver, volumes: Volumes) -> None:
    """All plugins are asked at once, each for so long; who hangs, fails or is disabled does not hide the others'."""
    hangs, fails, off, other = Driver(), Driver(), Driver(), Driver()
    hangs.held = anyio.Event()
    fails.errors["List"] = "broken"
    driver.volumes = ["b", "a"]
    other.volumes = ["o"]
    other.answers["Capabilities"] = {"Capabilities": {"Scope": "Global"}}
    ids = [host.add(name) for name in ("hangs", "fails", "off", "other")]
    host.add("network", "docker.networkdriver/1.0")
    host.plugins[ids[2]] = msgspec.structs.replace(host.plugins[ids[2]], enabled=False)
    async with (
        hangs.at(host.place / ids[0] / "s"),
        fails.at(host.place / ids[1] / "s"),
        off.at(host.place / ids[2] / "s"),
        other.at(host.place / ids[3] / "s"),
    ):
        with anyio.fail_after(20):
            found = await volumes.all()
    assert [(view.plugin, view.name, view.scope) for view in found.volumes] == [
        ("other:latest", "o", "global"),
        ("p:latest", "a", "local"),
        ("p:latest", "b", "local"),
    ]
    assert [(failure.plugin, failure.error) for failure in found.failed] == [
        ("fails:latest", "VolumeDriver.List: broken"),
        ("hangs:latest", "no list of volumes within 0.3 s: see `pluginctl logs hangs:latest`"),
    ]
    assert off.calls == []
    # once for all of its volumes, and never Path
    assert driver.calls == [("List", ""), ("Capabilities", "")]


async def test_one(driver: Driver, volumes: Volumes) -> None:
    """A plugin's volumes are listed by name; one is shown, or is not there."""
    driver.volumes = ["b", "a"]
    assert [view.name for view in await volumes.of("p")] == ["a", "b"]
    view = await volumes.inspect(P[:12], "x")
    assert (view.name, view.plugin, view.scope) == ("x", "p:latest", "local")
    driver.answers["Get"] = {}
    with pytest.raises(NoSuchVolume):
        await volumes.inspect("p", "x")


async def test_who_is_no_volume_plugin(host: Host, volumes: Volumes) -> None:
    """Only a plugin of volume drivers 1.0 is asked."""
    host.add("network", "docker.networkdriver/1.0")
    host.add("next", "docker.volumedriver/2.0")
    for name in ("network", "next"):
        with pytest.raises(NoCapability):
            await volumes.create(name, "v", {})


@pytest.mark.parametrize("name", ["", " ", "a" * 161, "a\n", "\x1b[2J", "a\u202eb"])
async def test_names(driver: Driver, volumes: Volumes, name: str) -> None:
    """A name that could not be shown is refused for what is new, and no plugin is asked."""
    for call in (volumes.create("p", name, {}), volumes.mount("p", name, "web")):
        with pytest.raises(InvalidVolume):
            await call
    assert driver.calls == []


@pytest.mark.parametrize("name", [" ", "a" * 4096, "a\n\t", "\x1b[2J", "a\u202eb"])
async def test_foreign_names(driver: Driver, volumes: Volumes, name: str) -> None:
    """A volume that its plugin has from elsewhere is shown and removed whatever it is called."""
    driver.volumes = [name]
    assert (await volumes.inspect("p", name)).name == name
    await volumes.remove("p", name)
    assert driver.volumes == []


@pytest.mark.parametrize("name", ["", "a" * 4097])
async def test_names_that_none_has(driver: Driver, volumes: Volumes, name: str) -> None:
    """No name and one without end are refused everywhere."""
    for call in (volumes.remove("p", name), volumes.inspect("p", name), volumes.unmount("p", name, "web")):
        with pytest.raises(InvalidVolume):
            await call
    assert driver.calls == []


@pytest.mark.parametrize("user", ["", " ", "a b", "a" * 65, "a\n", "\x00"])
async def test_users(driver: Driver, volumes: Volumes, user: str) -> None:
    """The ID of who mounts is one printable word."""
    for call in (volumes.mount("p", "v", user), volumes.unmount("p", "v", user)):
        with pytest.raises(InvalidVolume):
            await call
    assert driver.calls == []


async def test_longest_names(host: Host, driver: Driver, volumes: Volumes) -> None:
    """The longest names there can be make a lease that there can be."""
    name, user = "n" * 160, "u" * 64
    await volumes.create("p", name, {})
    await volumes.mount("p", name, user)
    assert host.used(P) == {f"volume {name}": 1, f"mount of {name} by {user}": 1}

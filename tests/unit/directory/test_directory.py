"""Who provides what, managed and legacy plugins beside each other; the legacy ones are real, on real sockets."""

import asyncio
import itertools
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import structlog

from pluginsvc.directory.directory import Change, Directory, Following
from pluginsvc.directory.discovery import BadPluginFile
from pluginsvc.directory.legacy import Legacy, LegacyNotFound
from pluginsvc.directory.provider import NoCapability, PluginDisabled, Provider
from pluginsvc.directory.rpc import Client, PluginRefused
from pluginsvc.errors import InvalidParameter, NotFound
from pluginsvc.model.lease import PluginLease
from pluginsvc.model.plugin import Capability, InvalidCapability
from tests.unit.directory.peers import Clock, answer, bound, plugin

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]

VOLUMES = answer(body=b'{"Implements": ["VolumeDriver"]}')
AUTHZ = answer(body=b'{"Implements": ["authz"]}')


class Unknown(NotFound):
    """No managed plugin."""


class Ambiguous(InvalidParameter):
    """Several."""


@dataclass
class Fake:
    """Managed plugins by name, without the plugins.

    Attributes:
        looks: how often somebody wanted all of them.
        looked: called when that was found.
    """

    plugins: dict[str, Provider] = field(default_factory=dict)
    watchers: list[Callable[[], None]] = field(default_factory=list)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    looks: int = 0
    looked: Callable[[], object] = lambda: None

    def put(self, name: str, *capabilities: str, enabled: bool = True, up: bool = True, run: str = "1") -> Provider:
        """Add one, or change it, and have that noticed."""
        plugin_id = f"{sum(name.encode()):064x}"
        address = f"unix:///nonexistent/{plugin_id}"
        self.plugins[name] = Provider(
            name=name,
            plugin_id=plugin_id,
            capabilities=tuple(map(Capability.parse, capabilities)),
            address=address,
            enabled=enabled,
            state="running" if up else "stopped",
            up=up,
            run=run,
            client=Client(address, name=name),
        )
        self.notice()
        return self.plugins[name]

    def notice(self) -> None:
        for call in self.watchers:
            call()

    def provider(self, name: str) -> Provider:
        found = self.plugins.get(name) or self.plugins.get(f"{name}:latest")
        if found is not None:
            return found
        matching = [one for one in self.plugins.values() if name and one.plugin_id.startswith(name)]
        if not matching:
            raise Unknown(name)
        if len(matching) > 1:
            raise Ambiguous(name)
        return matching[0]

    def providers(self) -> list[Provider]:
        self.looks += 1
        found = [self.plugins[name] for name in sorted(self.plugins)]
        self.looked()
        return found

    async def acquire(
        self, name: str, *, holder: str, purpose: str, seconds: float | None, capability: str
    ) -> PluginLease:
        self.calls.append(("acquire", name, holder, purpose, seconds, capability))
        return PluginLease(holder=holder, purpose=purpose, count=1, since_ns=1, expires_ns=None)

    async def release(self, name: str, *, holder: str, purpose: str | None, everything: bool) -> int:
        self.calls.append(("release", name, holder, purpose, everything))
        return 7


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give the directory of the legacy plugins."""
    with tempfile.TemporaryDirectory(prefix="p-") as path:
        yield Path(path).resolve()


@pytest.fixture
def managed() -> Fake:
    """Give the managed plugins."""
    return Fake()


@pytest.fixture
def legacy(folder: Path) -> Legacy:
    """Give the legacy ones, which are looked for without waiting."""
    clock = Clock()
    return Legacy([folder], folder / "run", clock=clock, sleep=clock.sleep)


@pytest.fixture
def directory(managed: Fake, legacy: Legacy) -> Directory:
    """Give who knows them all."""
    return Directory(managed, managed.watchers.append, legacy)


async def test_managed_by_name_id_or_prefix(managed: Fake, directory: Directory) -> None:
    """A managed plugin is found by name, ID or prefix, in any spelling of its capability, also while it is not up."""
    vol = managed.put("vol:latest", "docker.volumedriver/2.0", "docker.authz/1.0", up=False)
    for name in ("vol", "vol:latest", vol.plugin_id, vol.plugin_id[:62]):
        for capability in ("volumedriver", "VolumeDriver", "docker.volumedriver/2.0", "authz/1.0"):
            assert await directory.lookup(name, capability) is vol


async def test_version_counts_where_one_is_asked_for(managed: Fake, directory: Directory) -> None:
    """Without a version any fits, and with one that one only."""
    managed.put("vol", "docker.volumedriver/2.0")
    assert (await directory.lookup("vol", "volumedriver")).name == "vol"
    with pytest.raises(NoCapability, match=r'plugin does not provide "volumedriver/1\.0" capability'):
        await directory.lookup("vol", "VolumeDriver/1.0")


async def test_legacy_by_name(folder: Path, directory: Directory) -> None:
    """A legacy plugin is found by its name and by what it implements."""
    async with plugin(VOLUMES, folder / "old.sock"):
        found = await directory.lookup("old", "volumedriver/1.0")
        assert (found.name, found.state) == ("old", "legacy")
        with pytest.raises(NoCapability, match='plugin does not provide "networkdriver" capability'):
            await directory.lookup("old", "NetworkDriver")


async def test_managed_hides_legacy(folder: Path, managed: Fake, directory: Directory) -> None:
    """The managed plugin is the one of its name, also disabled or of another kind."""
    async with plugin(VOLUMES, folder / "vol.sock") as peer:
        mine = managed.put("vol:latest", "docker.volumedriver/1.0")
        assert await directory.lookup("vol", "volumedriver") is mine
        assert await directory.providers("volumedriver") == [mine]
        managed.put("vol:latest", "docker.authz/1.0")
        with pytest.raises(NoCapability):
            await directory.lookup("vol", "volumedriver")
        managed.put("vol:latest", "docker.volumedriver/1.0", enabled=False)
        with pytest.raises(PluginDisabled, match="plugin vol:latest found but disabled"):
            await directory.lookup("vol", "volumedriver")
        assert await directory.providers() == []
        assert await directory.providers("", legacy=False) == []
        del managed.plugins["vol:latest"]
        assert (await directory.lookup("vol", "volumedriver")).state == "legacy"
    assert len(peer.seen) == 1


async def test_failures_are_kept_apart(folder: Path, managed: Fake, directory: Directory) -> None:
    """Not found, of another capability, disabled, ambiguous, unusable and unanswered are errors of their own."""
    managed.put("off", "docker.volumedriver/1.0", enabled=False)
    managed.put("other", "docker.authz/1.0")
    (folder / "bad.spec").write_text("nowhere")
    async with plugin(answer("500 Oops", b"no"), folder / "ill.sock"):
        for name, kind in (
            ("none", LegacyNotFound),
            ("off", PluginDisabled),
            ("other", NoCapability),
            ("0", Ambiguous),
            ("bad", BadPluginFile),
            ("ill", PluginRefused),
            ("../ill", LegacyNotFound),
        ):
            with pytest.raises(kind):
                await directory.lookup(name, "volumedriver")
    for capability in ("", "a b", "docker."):
        with pytest.raises(InvalidCapability):
            await directory.lookup("off", capability)


async def test_typo_is_told_at_once(folder: Path, managed: Fake) -> None:
    """A name that nobody has is waited for only by who says so."""
    clock = Clock()
    directory = Directory(managed, managed.watchers.append, Legacy([folder], folder, clock=clock, sleep=clock.sleep))
    for wait, waits in ((False, []), (True, [1, 2, 4, 8])):
        with pytest.raises(LegacyNotFound):
            await directory.find("typo", wait=wait)
        assert clock.waits == waits


async def test_acquire_and_release(folder: Path, managed: Fake, directory: Directory) -> None:
    """A lease is taken on a managed plugin by its ID, none on a legacy one, and none on what cannot be used."""
    vol = managed.put("vol", "docker.volumedriver/1.0")
    async with plugin(VOLUMES, folder / "old.sock"):
        found, lease = await directory.acquire("vol", "VolumeDriver", holder="h", purpose="p", seconds=5)
        assert (found, lease and lease.holder) == (vol, "h")
        found, lease = await directory.acquire("old", "volumedriver", holder="h", purpose="p")
        assert (found.name, lease) == ("old", None)
        with pytest.raises(NoCapability):
            await directory.acquire("vol", "authz", holder="h", purpose="p")
    assert managed.calls == [("acquire", vol.plugin_id, "h", "p", 5, "VolumeDriver")]
    managed.calls.clear()
    managed.put("vol", "docker.authz/1.0", enabled=False)
    assert await directory.release("vol", holder="h", purpose="p") == 7
    assert await directory.release("old", holder="h", everything=True) == 0
    assert await directory.release("none", holder="h") == 0
    assert managed.calls == [("release", vol.plugin_id, "h", "p", False)]


async def test_providers(folder: Path, managed: Fake, directory: Directory) -> None:
    """All that provide something are the enabled managed ones, then the legacy ones that answer, if they are wanted."""
    managed.put("b", "docker.volumedriver/1.0")
    managed.put("a", "docker.volumedriver/2.0", up=False)
    managed.put("off", "docker.volumedriver/1.0", enabled=False)
    managed.put("x", "docker.authz/1.0")
    bound(folder / "dead.sock").close()
    (folder / "off.sock").symlink_to("old.sock")
    async with plugin(VOLUMES, folder / "old.sock"), plugin(AUTHZ, folder / "c.sock"):
        for capability, names in (
            ("volumedriver", ["a", "b", "old"]),
            ("volumedriver/1.0", ["b", "old"]),
            ("volumedriver/3.0", []),
            ("authz", ["x", "c"]),
            ("", ["a", "b", "x", "c", "old"]),
        ):
            assert [found.name for found in await directory.providers(capability)] == names
        assert [found.name for found in await directory.providers("volumedriver", legacy=False)] == ["a", "b"]


def shown(changes: list[Change]) -> list[str]:
    return [f"{kind} {provider.name}#{provider.run}" for kind, provider in changes]


async def test_follow_managed(managed: Fake, directory: Directory) -> None:
    """Those that are ready come first; then each start is told, a restart as gone and ready, and what goes."""
    managed.put("a", "docker.volumedriver/1.0")
    managed.put("b", "docker.volumedriver/1.0")
    managed.put("down", "docker.volumedriver/1.0", up=False)
    managed.put("x", "docker.authz/1.0")
    changes = directory.follow("volumedriver")
    assert aiter(changes) is changes
    assert shown(await anext(changes)) == ["ready a#1", "ready b#1"]
    managed.put("down", "docker.volumedriver/1.0")
    assert shown(await anext(changes)) == ["ready down#1"]
    managed.put("a", "docker.volumedriver/1.0", run="3")
    assert shown(await anext(changes)) == ["gone a#1", "ready a#3"]
    managed.put("a", "docker.volumedriver/1.0", up=False, run="")
    managed.put("x", "docker.volumedriver/1.0")
    assert shown(await anext(changes)) == ["gone a#3", "ready x#1"]
    managed.put("x", "docker.volumedriver/1.0", enabled=False)
    del managed.plugins["down"]
    managed.notice()
    assert sorted(shown(await anext(changes))) == ["gone down#1", "gone x#1"]


async def test_follow_tells_first_that_nobody_is_ready(managed: Fake, directory: Directory) -> None:
    """The first list may be empty, and no other is: what changes nothing for the follower is not told."""
    changes = directory.follow("volumedriver")
    assert await anext(changes) == []
    waiting = asyncio.ensure_future(anext(changes))
    for name, capability, up in (("x", "docker.authz/1.0", True), ("a", "docker.volumedriver/1.0", False)):
        looks = managed.looks
        managed.put(name, capability, up=up)
        with anyio.fail_after(10):
            while managed.looks == looks:
                await anyio.lowlevel.checkpoint()
        assert not waiting.done()
    managed.put("a", "docker.volumedriver/1.0")
    assert shown(await waiting) == ["ready a#1"]


async def test_follow_is_told_what_happens_while_it_is_slow(managed: Fake, directory: Directory) -> None:
    """What changes between two questions is not missed: of several restarts the last is told."""
    managed.put("a", "docker.volumedriver/1.0")
    changes = directory.follow("volumedriver")
    assert shown(await anext(changes)) == ["ready a#1"]
    for run in ("2", "3", "4", "5"):
        managed.put("a", "docker.volumedriver/1.0", up=False, run="")
        managed.put("a", "docker.volumedriver/1.0", run=run)
    assert shown(await anext(changes)) == ["gone a#1", "ready a#5"]


async def test_follow_is_told_what_happens_while_it_looks(managed: Fake, directory: Directory) -> None:
    """What changes after a look has begun is told next, though the look has not seen it."""
    managed.put("a", "docker.volumedriver/1.0")
    changes = directory.follow("volumedriver")
    managed.looked = lambda: managed.put("b", "docker.volumedriver/1.0")
    assert shown(await anext(changes)) == ["ready a#1"]
    managed.looked = lambda: None
    with anyio.fail_after(10):
        assert shown(await anext(changes)) == ["ready b#1"]


@pytest.mark.parametrize(
    "change",
    [
        {"address": "unix:///y"},
        {"capabilities": tuple(map(Capability.parse, ("docker.volumedriver/1.0", "docker.authz/1.0")))},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_follow_tells_what_became_another(managed: Fake, directory: Directory, change: dict[str, Any]) -> None:
    """One that is called elsewhere, or provides something more, is another; one in another state is not."""
    before = managed.put("a", "docker.volumedriver/1.0")
    changes = directory.follow("volumedriver")
    assert shown(await anext(changes)) == ["ready a#1"]
    managed.plugins["a"] = after = replace(before, **change)
    managed.notice()
    assert await anext(changes) == [("gone", before), ("ready", after)]
    managed.plugins["a"] = after = replace(after, state="unhealthy")
    managed.put("b", "docker.volumedriver/1.0")
    assert shown(await anext(changes)) == ["ready b#1"]
    managed.put("a", "docker.volumedriver/1.0", up=False)
    assert await anext(changes) == [("gone", after)]


async def cancelled_by_asyncio(changes: Following, asked: Callable[[], bool]) -> None:
    task = asyncio.ensure_future(anext(changes))
    while not asked():
        await anyio.lowlevel.checkpoint()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancelled_by_anyio(changes: Following, asked: Callable[[], bool]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anext, changes)
        while not asked():
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()


@pytest.mark.parametrize("cancelled", [cancelled_by_asyncio, cancelled_by_anyio])
async def test_follow_loses_nothing_when_cancelled(
    folder: Path, managed: Fake, directory: Directory, cancelled: Callable[..., Awaitable[None]]
) -> None:
    """A wait that is cancelled, while it waits or while it looks, by either library's way, can be begun again."""
    changes = directory.follow("volumedriver")
    managed.put("a", "docker.volumedriver/1.0")
    answered, asked = asyncio.Event(), asyncio.Event()

    async def slow(writer: asyncio.StreamWriter) -> None:
        asked.set()
        await answered.wait()
        await VOLUMES(writer)

    async with plugin(slow, folder / "old.sock"):
        for _ in range(2):
            await cancelled(changes, asked.is_set)
            asked.clear()
        answered.set()
        assert [change.provider.name for change in await anext(changes)] == ["a", "old"]
        for _ in range(2):
            await cancelled(changes, lambda: directory.next.statistics().tasks_waiting > 0)
        (folder / "old.sock").unlink()
        managed.put("a", "docker.volumedriver/1.0", run="2")
        looks = managed.looks
        await cancelled(changes, lambda: managed.looks > looks)
        found = [(kind, provider.name) for kind, provider in await anext(changes)]
        assert found == [("gone", "a"), ("gone", "old"), ("ready", "a")]


async def test_follow_looks_once_for_all(managed: Fake, directory: Directory) -> None:
    """However many follow, whatever they want, one look tells all of them of a change."""
    managed.put("a", "docker.volumedriver/1.0")
    managed.put("x", "docker.authz/1.0")
    followers = {text: directory.follow(text) for text in ("volumedriver", "VolumeDriver", "volumedriver/1.0", "authz")}
    for changes in followers.values():
        await anext(changes)
    looks = managed.looks
    managed.put("a", "docker.volumedriver/1.0", run="2")
    managed.put("x", "docker.authz/1.0", run="2")
    found = {text: shown(await anext(changes)) for text, changes in followers.items()}
    assert found == {text: [f"gone {name}#1", f"ready {name}#2"] for text, name in zip(followers, "aaax", strict=True)}
    assert managed.looks == looks + 1


async def test_follow_when_who_looks_for_all_is_cancelled(folder: Path, managed: Fake, directory: Directory) -> None:
    """Whoever looks may be cancelled: the next one looks, and he himself when he asks again."""
    one, two = directory.follow("volumedriver"), directory.follow("volumedriver")
    assert await anext(one) == await anext(two) == []
    answered, asked = asyncio.Event(), asyncio.Event()

    async def slow(writer: asyncio.StreamWriter) -> None:
        asked.set()
        await answered.wait()
        await VOLUMES(writer)

    async with plugin(slow, folder / "old.sock"):
        managed.put("a", "docker.volumedriver/1.0")
        looking = asyncio.ensure_future(anext(one))
        await asked.wait()
        waiting = asyncio.ensure_future(anext(two))
        await anyio.lowlevel.checkpoint()
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking
        answered.set()
        for changes in (await waiting, await anext(one)):
            assert [change.provider.name for change in changes] == ["a", "old"]


async def test_follow_sees_at_first_what_nobody_has_told_of(managed: Fake, directory: Directory) -> None:
    """Who begins to follow looks himself: what others have found may be what was there before."""
    one = directory.follow("volumedriver")
    assert await anext(one) == []
    managed.put("x", "docker.authz/1.0")
    waiting = asyncio.ensure_future(anext(one))
    looks = managed.looks
    while managed.looks == looks:
        await anyio.lowlevel.checkpoint()
    watchers, managed.watchers = managed.watchers, []
    managed.put("a", "docker.volumedriver/1.0")
    assert shown(await anext(directory.follow("volumedriver"))) == ["ready a#1"]
    managed.watchers = watchers
    managed.notice()
    assert shown(await waiting) == ["ready a#1"]


async def test_follow_refuses_what_nobody_can_provide(directory: Directory) -> None:
    """An invalid capability is refused at once."""
    with pytest.raises(InvalidCapability):
        directory.follow("a b")


@pytest.fixture
def real(folder: Path) -> Legacy:
    """Give legacy plugins by the real clock, for those that are watched."""
    return Legacy([folder / "plugins"], folder / "run")


async def test_follow_legacy(folder: Path, managed: Fake, real: Legacy) -> None:
    """A legacy plugin is ready when its socket comes, gone and ready when it is another, and gone without it."""
    directory = Directory(managed, managed.watchers.append, real)
    managed.put("a", "docker.volumedriver/1.0")
    place = folder / "plugins" / "old.sock"
    numbers = itertools.count()

    @asynccontextmanager
    async def started() -> AsyncIterator[None]:
        new = folder / f"new{next(numbers)}"
        async with plugin(VOLUMES, new):
            place.parent.mkdir(exist_ok=True)
            new.rename(place)
            yield

    changes = directory.follow("volumedriver")

    async def some() -> list[str]:
        return [f"{kind} {provider.name}" for kind, provider in await anext(changes)]

    async with anyio.create_task_group() as group:
        await group.start(real.serve)
        assert await some() == ["ready a"]
        async with started():
            assert await some() == ["ready old"]
            async with started():
                assert await some() == ["gone old", "ready old"]
                place.unlink()
                assert await some() == ["gone old"]
        async with started():
            assert await some() == ["ready old"]
            managed.put("old:latest", "docker.volumedriver/1.0", enabled=False)
            assert await some() == ["gone old"]
            managed.put("old:latest", "docker.volumedriver/1.0")
            assert await some() == ["ready old:latest"]
        group.cancel_scope.cancel()


async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    await VOLUMES(writer)
    writer.close()


async def test_follow_legacy_that_listens_late(folder: Path, managed: Fake, real: Legacy) -> None:
    """A legacy plugin whose socket is there before it listens is ready when it does, though no file changes then."""
    directory = Directory(managed, managed.watchers.append, real)
    (folder / "plugins").mkdir()
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))
        changes = directory.follow("volumedriver")
        async with anyio.create_task_group() as group:
            await group.start(real.serve)
            managed.put("a", "docker.volumedriver/1.0")
            assert shown(await anext(changes)) == ["ready a#1"]
            with structlog.testing.capture_logs() as logs:
                (folder / "plugins" / "old.spec").write_text(f"tcp://127.0.0.1:{late.getsockname()[1]}")
                change = asyncio.ensure_future(anext(changes))
                while not logs:
                    await anyio.lowlevel.checkpoint()
            server = await asyncio.start_server(answering, sock=late)
            assert [(kind, provider.name) for kind, provider in await change] == [("ready", "old")]
            server.close()
            group.cancel_scope.cancel()
    # it looks when something has happened, and not all the while
    assert managed.looks < 20


async def test_key_tells_plugins_apart(folder: Path, managed: Fake, directory: Directory) -> None:
    """A plugin is the same over its starts, and another one than that of its name of the other kind."""
    mine = managed.put("vol", "docker.volumedriver/1.0")
    async with plugin(VOLUMES, folder / "old.sock"), plugin(VOLUMES, folder / "new.sock"):
        others = [await directory.lookup(name, "volumedriver") for name in ("old", "new")]
    assert len({one.key for one in (mine, replace(mine, name="renamed", run="9"), *others)}) == 3

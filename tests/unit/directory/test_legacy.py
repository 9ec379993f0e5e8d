"""Legacy plugins: looked up by name, activated once, listed."""

import asyncio
import json
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import structlog

from pluginsvc.directory import discovery, legacy, lookout
from pluginsvc.directory.discovery import BadPluginFile, Found, Listing, Plan, scan
from pluginsvc.directory.legacy import Legacy, LegacyNotFound
from pluginsvc.directory.provider import Provider
from pluginsvc.directory.rpc import BadAnswer, Client, PluginRefused, PluginUnreachable, PluginUntrusted
from pluginsvc.model.plugin import Capability
from pluginsvc.watches import Watches
from tests.unit.directory.peers import Clock, Peer, Script, answer, bound, endless, plugin, raw
from tests.unit.registry.scripted import certificates

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]

VOLUMES = answer(body=b'{"Implements": ["VolumeDriver"]}')
NONE = Path("/nonexistent")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a directory with a short, real name."""
    with tempfile.TemporaryDirectory(prefix="p-") as path:
        yield Path(path).resolve()


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    """Give what is logged."""
    with structlog.testing.capture_logs() as found:
        yield found


@pytest.fixture
def clock() -> Clock:
    """Give a clock that only waits move on."""
    return Clock()


@pytest.fixture
def found(folder: Path, clock: Clock) -> Legacy:
    """Give what finds plugins in the directory."""
    return Legacy([folder], NONE, clock=clock, sleep=clock.sleep)


async def never(_seconds: float) -> None:
    await anyio.sleep_forever()


@asynccontextmanager
async def served(one: Legacy) -> AsyncIterator[Legacy]:
    """Serve it inside the block, from its first look on."""
    looked = anyio.Event()
    one.watch(looked.set)
    async with anyio.create_task_group() as group:
        await group.start(one.serve)
        await looked.wait()
        yield one
        group.cancel_scope.cancel()


class Gate:
    """A script that says when it was asked, and goes on when told to."""

    def __init__(self, then: Script = VOLUMES) -> None:
        self.asked, self.open = asyncio.Event(), asyncio.Event()
        self._then = then

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        self.asked.set()
        await self.open.wait()
        await self._then(writer)


async def silent(_writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


def in_turn(*scripts: Script) -> Script:
    """Return a script that does as each of these, one for each connection."""
    rest = iter(scripts)

    async def script(writer: asyncio.StreamWriter) -> None:
        await next(rest)(writer)

    return script


def spec(folder: Path, name: str, address: str) -> None:
    (folder / f"{name}.spec").write_text(address)


async def test_activated_at_first_use(folder: Path, found: Legacy) -> None:
    """A plugin without manifest is asked by POST /Plugin.Activate with an empty body, once, and its answer is kept."""
    async with plugin(VOLUMES, folder / "vol.sock") as peer:
        assert peer.seen == []
        provider = await found.get("vol")
        assert await found.get("vol") is provider
        assert await found.all() == [provider]
    (head, body), = peer.seen  # fmt: skip
    assert head.startswith("POST /Plugin.Activate HTTP/1.1\r\nHost: plugin.moby.localhost\r\n")
    assert body == b""
    assert (provider.name, provider.plugin_id, provider.enabled) == ("vol", "", True)
    assert (provider.state, provider.up, provider.scope) == ("legacy", True, None)
    assert provider.address == f"unix://{folder}/vol.sock"
    assert provider.capabilities == (Capability("docker", "volumedriver", "1.0"),)
    assert provider.provides(Capability.wanted("VolumeDriver"))
    assert not provider.provides(Capability.wanted("volumedriver/2.0"))


async def test_called_through_a_link(folder: Path, found: Legacy) -> None:
    """A plugin behind a symbolic link, or behind a file that leads to one, is called."""
    async with plugin(VOLUMES, folder / "real") as peer:
        (folder / "vol.sock").symlink_to("real")
        spec(folder, "other", f"unix://{folder}/vol.sock")
        assert (await found.get("vol")).address == (await found.get("other")).address == f"unix://{folder}/real"
    assert len(peer.seen) == 2


@pytest.mark.parametrize(
    ("document", "names"),
    [
        (
            {"Implements": ["VolumeDriver", "authz", "NetworkDriver", "VolumeDriver"]},
            ["volumedriver", "authz", "networkdriver"],
        ),
        ({"Implements": None}, []),
        ({"Implements": [], "More": 1}, []),
        ({}, []),
    ],
)
async def test_implements(folder: Path, found: Legacy, document: object, names: list[str]) -> None:
    """What a plugin implements are its capabilities, in lower case and once each; it may be nothing, as in Docker."""
    async with plugin(answer(body=json.dumps(document).encode()), folder / "vol.sock"):
        provider = await found.get("vol")
    assert [str(capability) for capability in provider.capabilities] == [f"docker.{name}/1.0" for name in names]


def implements(value: object) -> Script:
    return answer(body=json.dumps({"Implements": value}).encode())


@pytest.mark.parametrize(
    ("script", "kind", "reason"),
    [
        (implements("VolumeDriver"), BadAnswer, r"Expected `array \| null`, got `str` - at `\$.Implements`"),
        (implements(["VolumeDriver", 7]), BadAnswer, r"Expected `str`, got `int` - at `\$.Implements\[1\]`"),
        (implements(["x"] * 65), BadAnswer, "Expected `array` of length <= 64"),
        (implements(["x" * 257]), BadAnswer, "Expected `str` of length <= 256"),
        (implements(["VolumeDriver"] * 70_000), BadAnswer, "larger than 1048576 bytes"),
        (endless(b"HTTP/1.1 200 OK\r\n\r\n[", b"1," * 30_000), BadAnswer, "larger than 1048576 bytes"),
        (answer(body=b"[" * 100_000), BadAnswer, "no JSON object"),
        (answer(body=b'"x"'), BadAnswer, "no JSON object"),
        (answer("404 Not Found", b"what?"), PluginRefused, "what?"),
        (raw(b"SSH-2.0-OpenSSH\r\n"), BadAnswer, "no HTTP"),
    ],
)
async def test_failure_forgets_the_plugin(
    folder: Path, found: Legacy, script: Script, kind: type[Exception], reason: str
) -> None:
    """A plugin that does not say what it implements, in few words and small ones, is an error, and is asked anew."""
    async with plugin(in_turn(script, VOLUMES), folder / "vol.sock") as peer:
        with pytest.raises(kind, match=reason) as failed:
            await found.get("vol")
        assert str(failed.value).startswith("Plugin.Activate: ")
        assert (await found.get("vol")).name == "vol"
    assert len(peer.seen) == 2


@pytest.mark.parametrize("name", ["vol", "../up", "x/../../up", "", ".", "..", "a\0b", "a" * 300, "\ud800"])
@pytest.mark.parametrize("wait", [True, False])
async def test_not_found(folder: Path, name: str, *, wait: bool) -> None:
    """A name that nobody has is not found, in Docker's words; one that leads elsewhere is not even looked for."""
    bound(folder / "up.sock").close()
    (folder / "inner" / "x").mkdir(parents=True)
    clock = Clock()
    with pytest.raises(LegacyNotFound) as failed:
        await Legacy([folder / "inner"], NONE, clock=clock, sleep=clock.sleep).get(name, wait=wait)
    if name == "vol":
        assert str(failed.value).endswith("could not find plugin vol in v1 plugin registry: plugin not found")
    elif not name:
        assert str(failed.value) == "Unable to find plugin without name"
    assert clock.waits == ([1, 2, 4, 8] if wait and name == "vol" else [])


async def test_ours_is_no_legacy_plugin(folder: Path) -> None:
    """A published socket of our own is neither found nor listed, nor called."""
    (folder / "run" / "id").mkdir(parents=True)
    (folder / "vol.sock").symlink_to("run/id/s")
    async with plugin(VOLUMES, folder / "run" / "id" / "s") as peer:
        one = Legacy([folder], folder / "run")
        with pytest.raises(LegacyNotFound):
            await one.get("vol")
        assert await one.all() == []
    assert peer.seen == []


async def test_found_by_a_later_look(folder: Path, clock: Clock) -> None:
    """Who waits gets a plugin whose file appears between two looks, and that file may be unusable before."""
    waits = []

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        waits.append(seconds)
        if len(waits) == 1:
            await anyio.Path(folder / "vol.json").write_text("{")
        if len(waits) == 2:
            await anyio.Path(folder / "vol.json").write_text(json.dumps({"Addr": peer.address}))

    async with plugin(VOLUMES) as peer:
        await Legacy([folder], NONE, clock=clock, sleep=sleep).get("vol", wait=True)
    assert waits == [1, 2]
    assert len(peer.seen) == 1


async def test_unusable_file(folder: Path, found: Legacy, clock: Clock) -> None:
    """A file of no use is an error that names it: at once, or after 15 s for who waits."""
    os.mkfifo(folder / "vol.spec")
    for wait, waits in ((False, []), (True, [1, 2, 4, 8])):
        with pytest.raises(BadPluginFile, match=f"{folder}/vol.spec is of no use: it is no regular file; mend it"):
            await found.get("vol", wait=wait)
        assert clock.waits == waits


@pytest.mark.parametrize(("wait", "waits"), [(False, [1, 2]), (True, [1, 2, 4, 8])])
async def test_nobody_listens(folder: Path, found: Legacy, clock: Clock, *, wait: bool, waits: list[float]) -> None:
    """Where a file leads to nobody it is tried again for a moment, for who waits as long as Docker does."""
    bound(folder / "vol.sock").close()
    with pytest.raises(PluginUnreachable, match=f"from plugin vol at unix://{folder}/vol.sock: Connection refused"):
        await found.get("vol", wait=wait)
    assert clock.waits == waits


def a_file(folder: Path, address: str) -> None:
    spec(folder, "vol", address)


def a_file_written_slowly(folder: Path, address: str) -> None:
    with (folder / "vol.spec").open("w") as file:
        file.write(address[:3])
        file.flush()
        file.write(address[3:])


def a_file_moved_in(folder: Path, address: str) -> None:
    (folder.parent / "vol.spec").write_text(address)
    (folder.parent / "vol.spec").rename(folder / "vol.spec")


def a_folder(folder: Path, address: str) -> None:
    (folder / "vol").mkdir()
    spec(folder / "vol", "vol", address)


def a_directory_that_was_missing(folder: Path, address: str) -> None:
    (folder.parent / "gone" / "deep").mkdir(parents=True)
    spec(folder.parent / "gone" / "deep", "vol", address)


def a_directory_made_again(folder: Path, address: str) -> None:
    folder.rename(folder.parent / "other")
    folder.mkdir()
    spec(folder, "vol", address)


COMINGS = [
    a_file,
    a_file_written_slowly,
    a_file_moved_in,
    a_folder,
    a_directory_that_was_missing,
    a_directory_made_again,
]


@pytest.mark.parametrize("put", COMINGS, ids=lambda put: put.__name__)
async def test_wait_ends_with_the_change(folder: Path, put: Callable[[Path, str], None]) -> None:
    """Who waits is woken by the change and by no clock, wherever it happens, and the plugin is activated once."""
    directory = folder / "there"
    directory.mkdir()
    asleep: list[float] = []
    all_asleep = anyio.Event()
    got: list[Provider] = []

    async def sleep(seconds: float) -> None:
        asleep.append(seconds)
        if len(asleep) == 3:
            all_asleep.set()
        await anyio.sleep_forever()

    one = Legacy([directory, folder / "gone" / "deep"], NONE, sleep=sleep)

    async def get() -> None:
        got.append(await one.get("vol", wait=True))

    async with plugin(VOLUMES) as peer, served(one), anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(get)
        await all_asleep.wait()
        put(directory, peer.address)
    assert len(got) == 3
    assert len(peer.seen) == 1


async def test_other_changes_do_not_shorten_the_wait(folder: Path) -> None:
    """A change that brings nothing is a look more: the next one that is due comes when it was due."""
    clock = Clock()
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if 2 < len(waits) < 6:
            clock.now += 0.5
            await anyio.Path(folder / f"other{len(waits)}").touch()
            await anyio.sleep_forever()
        clock.now += seconds

    async with served(Legacy([folder], NONE, clock=clock, sleep=sleep)) as one:
        with pytest.raises(LegacyNotFound):
            await one.get("vol", wait=True)
    assert waits == [1, 2, 4, 3.5, 3, 2.5, 8]
    assert clock.now == 115


async def test_one_activation_for_all(folder: Path, found: Legacy) -> None:
    """Those who want a plugin at the same time, by name or in a list, share one activation."""
    gate = Gate()
    got: list[Provider] = []

    async def get() -> None:
        got.append(await found.get("vol"))

    async def everything() -> None:
        got.extend(await found.all())

    async with plugin(gate, folder / "vol.sock") as peer, anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(get)
            group.start_soon(everything)
        await gate.asked.wait()
        gate.open.set()
    assert len(got) == 20
    assert len(set(map(id, got))) == len(peer.seen) == 1


async def test_one_failure_for_all(folder: Path, found: Legacy) -> None:
    """Those who wait for one activation share its failure, instead of each failing after the other."""
    gate = Gate(answer("500 Oops", b"no"))
    failed: list[Exception] = []

    async def get() -> None:
        try:
            await found.get("vol")
        except PluginRefused as exc:
            failed.append(exc)

    async with plugin(gate, folder / "vol.sock") as peer, anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(get)
        await gate.asked.wait()
        (flight,) = found._flights.values()
        with anyio.fail_after(10):
            # some may still be looking for the file, in threads
            while flight.done.statistics().tasks_waiting < 4:
                await anyio.lowlevel.checkpoint()
        gate.open.set()
    assert len(failed) == 5
    assert len(peer.seen) == 1


async def test_cancelled_among_others(folder: Path, found: Legacy) -> None:
    """Who is cancelled while he activates takes nothing from the others: one of them activates."""
    gate = Gate()
    got: list[Provider] = []

    async def get() -> None:
        got.append(await found.get("vol"))

    async with plugin(gate, folder / "vol.sock") as peer, anyio.create_task_group() as others:
        async with anyio.create_task_group() as first:
            first.start_soon(get)
            await gate.asked.wait()
            for _ in range(3):
                others.start_soon(get)
            await anyio.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
        gate.open.set()
    assert len(got) == 3
    assert len(set(map(id, got))) == 1
    assert len(peer.seen) == 2
    assert found._flights == {}


async def test_lists_only_try_does_not_count_for_others(folder: Path, found: Legacy, clock: Clock) -> None:
    """Who joins the only try of a list, and it fails, has his own tries all the same."""
    gate = Gate(raw(b""))
    got: list[Any] = []

    async def everything() -> None:
        got.append(await found.all())

    async def get() -> None:
        got.append((await found.get("vol")).name)

    script = in_turn(gate, raw(b""), VOLUMES)
    async with plugin(script, folder / "vol.sock") as peer, anyio.create_task_group() as group:
        group.start_soon(everything)
        await gate.asked.wait()
        group.start_soon(get)
        await anyio.wait_all_tasks_blocked()
        gate.open.set()
    assert got == [[], "vol"]
    assert clock.waits == [1]
    assert len(peer.seen) == 3


async def test_lookup_blocks_no_other(folder: Path) -> None:
    """While one plugin is asked, or waited for, and says nothing, others are found."""
    gate = Gate()
    one = Legacy([folder], NONE, sleep=never)

    async def get(name: str) -> None:
        await one.get(name, wait=True)

    peers = plugin(gate, folder / "hung.sock"), plugin(VOLUMES, folder / "vol.sock")
    async with peers[0], peers[1], anyio.create_task_group() as group:
        group.start_soon(get, "hung")
        group.start_soon(get, "missing")
        await gate.asked.wait()
        assert (await one.get("vol")).name == "vol"
        group.cancel_scope.cancel()


async def test_silent_plugin_is_given_up(folder: Path, found: Legacy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that takes the connection and says nothing is an error after a while."""
    monkeypatch.setattr(legacy, "ACTIVATE_TIMEOUT", 0.02)
    async with plugin(silent, folder / "vol.sock") as peer:
        with pytest.raises(PluginUnreachable, match="it took too long"):
            await found.get("vol")
        assert len(peer.seen) == 3


async def test_replaced_and_gone(folder: Path, found: Legacy) -> None:
    """A socket in the place of one is a new run of the plugin, without one it is gone, and watchers are told."""
    told: list[bool] = []
    found.watch(lambda: told.append(True))
    async with plugin(VOLUMES, folder / "vol.sock"):
        first = await found.get("vol")
        assert told == []
    (folder / "vol.sock").unlink()
    async with plugin(answer(body=b'{"Implements": ["authz"]}'), folder / "new"):
        (folder / "new").rename(folder / "vol.sock")
        second = await found.get("vol")
        assert len(told) == 1
        assert second.run != first.run
        assert [str(capability) for capability in second.capabilities] == ["docker.authz/1.0"]
        (folder / "vol.sock").unlink()
        with pytest.raises(LegacyNotFound):
            await found.get("vol")
        assert len(told) == 2


async def run_after_a_restart_of_ours(folder: Path) -> str:
    return (await Legacy([folder], NONE).get("vol")).run


@pytest.mark.parametrize("kind", ["sock", "spec"])
async def test_run_is_that_of_the_process(folder: Path, found: Legacy, kind: str) -> None:
    """A process that listens on is one run, for daemons after us too and whatever its file says; another is another."""
    socket = folder / "there"
    runs = set[str]()
    for number in range(2):
        async with plugin(VOLUMES, socket):
            if kind == "spec":
                spec(folder, "vol", f"unix://{socket}")
            elif not number:
                (folder / "vol.sock").symlink_to(socket)
            first = await found.get("vol")
            if kind == "spec":
                # it is asked again then
                spec(folder, "vol", f"unix://{socket}\n")
            assert ((again := await found.get("vol")) is first) == (kind == "sock")
            assert first.run == again.run == await run_after_a_restart_of_ours(folder)
            runs.add(first.run)
            # kept, so that its inode is not given to the next
            socket.rename(folder / f"before{number}")
    assert len(runs) == 2


async def test_run_without_a_socket_file(folder: Path, found: Legacy) -> None:
    """Of a plugin behind a port a start is told by its file that is written anew, and by nothing else."""
    async with plugin(VOLUMES) as peer:
        spec(folder, "vol", peer.address)
        first = await found.get("vol")
        assert first.run == await run_after_a_restart_of_ours(folder) != ""
        (folder / "new").write_text(peer.address)
        (folder / "new").rename(folder / "vol.spec")
        assert (await found.get("vol")).run != first.run


async def test_gone_from_the_list(folder: Path, found: Legacy) -> None:
    """A list without a plugin that was active tells the watchers, and the plugin is asked again when it is back."""
    told: list[bool] = []
    found.watch(lambda: told.append(True))
    async with plugin(VOLUMES) as peer:
        for number in range(3):
            spec(folder, "vol", peer.address)
            assert [provider.name for provider in await found.all()] == ["vol"]
            (folder / "vol.spec").unlink()
            assert await found.all() == []
            assert len(told) == len(peer.seen) == number + 1


async def test_list_takes_nothing_from_who_came_meanwhile(
    folder: Path, found: Legacy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin that comes back and is activated while a list is made stays active, though the list has not seen it."""

    def slow(directories: tuple[Path, ...], sockets: Path) -> Listing:
        listing = scan(directories, sockets)
        spec(folder, "vol", peer.address)
        asyncio.run_coroutine_threadsafe(found.get("vol"), loop).result()
        return listing

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(legacy, "scan", slow)
    async with plugin(VOLUMES) as peer:
        spec(folder, "vol", peer.address)
        await found.get("vol")
        (folder / "vol.spec").unlink()
        assert await found.all() == []
        await found.get("vol")
    assert len(peer.seen) == 2


async def test_unusable_file_in_the_place_of_one(folder: Path, found: Legacy) -> None:
    """A plugin whose file became unusable is not called any more."""
    async with plugin(VOLUMES) as peer:
        spec(folder, "vol", peer.address)
        await found.get("vol")
        (folder / "vol.spec").write_text("nowhere")
        with pytest.raises(BadPluginFile):
            await found.get("vol")
        assert await found.all() == []
        assert found._active == {}


async def test_all(folder: Path, found: Legacy, clock: Clock, logs: list[Any]) -> None:
    """A list has each plugin that answers, by name, after one try each; the others are told of once."""
    bound(folder / "dead.sock").close()
    (folder / "bad.json").write_text("{")
    async with plugin(VOLUMES, folder / "b.sock"), plugin(implements(["authz"]), folder / "a.sock"):
        for _ in range(3):
            assert [provider.name for provider in await found.all()] == ["a", "b"]
    assert clock.waits == []
    assert [line["event"] for line in logs] == ["legacy.trouble", "legacy.silent"]
    assert f"{folder}/bad.json" in logs[0]["error"]
    assert (logs[1]["plugin"], logs[1]["file"]) == ("dead", f"{folder}/dead.sock")
    assert logs[1]["error"] == "Connection refused"


async def test_all_are_asked_at_once(folder: Path, found: Legacy) -> None:
    """The plugins of a list are asked beside each other: they answer when the last of them was asked."""
    asked: list[Peer] = []
    complete = asyncio.Event()

    async def script(writer: asyncio.StreamWriter) -> None:
        asked.append(peer)
        if len(asked) == 20:
            complete.set()
        await complete.wait()
        await VOLUMES(writer)

    async with plugin(script) as peer:
        for number in range(20):
            spec(folder, f"p{number:02}", peer.address)
        assert [provider.name for provider in await found.all()] == [f"p{number:02}" for number in range(20)]


async def test_failed_one_is_left_alone_for_longer_and_longer(
    folder: Path, found: Legacy, clock: Clock, logs: list[Any]
) -> None:
    """A plugin that failed is asked by lists again after 1, 2, 4 s and so on up to a minute, and told of once."""
    async with plugin(answer("500 Oops", b"no")) as peer:
        spec(folder, "vol", peer.address)
        for hold in (1, 2, 4, 8, 16, 32, 60, 60):
            seen = len(peer.seen)
            assert await found.all() == []
            assert len(peer.seen) == seen + 1
            clock.now += hold - 0.1
            assert await found.all() == []
            assert len(peer.seen) == seen + 1
            clock.now += 0.2
    assert [line["event"] for line in logs] == ["legacy.silent"]


async def test_silent_one_makes_few_lists_late(
    folder: Path, found: Legacy, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin that took 5 s to say nothing is left alone for a minute, and the others are listed all the while."""
    monkeypatch.setattr(legacy, "ACTIVATE_TIMEOUT", 0.02)

    async def script(_writer: asyncio.StreamWriter) -> None:
        clock.now += 5
        await asyncio.sleep(3600)

    async with plugin(script, folder / "hung.sock") as peer, plugin(VOLUMES, folder / "vol.sock"):
        for late in (1, 1, 2):
            assert [provider.name for provider in await found.all()] == ["vol"]
            assert len(peer.seen) == late
            clock.now += 50 / late


async def test_failed_one_that_changes_is_asked_at_once(folder: Path, found: Legacy, logs: list[Any]) -> None:
    """A plugin that failed is asked again as soon as its socket is another, and told of again if it fails."""
    held = bound(folder / "vol.sock")
    assert await found.all() == []
    held.close()
    (folder / "vol.sock").unlink()
    with bound(folder / "new"):
        (folder / "new").rename(folder / "vol.sock")
        assert await found.all() == []
    assert [line["event"] for line in logs] == ["legacy.silent"] * 2
    (folder / "vol.sock").unlink()
    async with plugin(VOLUMES, folder / "newer"):
        (folder / "newer").rename(folder / "vol.sock")
        assert [provider.name for provider in await found.all()] == ["vol"]


async def test_found_by_name_after_it_failed(folder: Path, found: Legacy, clock: Clock) -> None:
    """A plugin that failed in a list is asked when somebody wants it by name, and is in the next list."""
    async with plugin(in_turn(answer("500 Oops"), VOLUMES)) as peer:
        spec(folder, "vol", peer.address)
        assert await found.all() == []
        await found.get("vol")
        assert [provider.name for provider in await found.all()] == ["vol"]


async def test_list_waits_for_no_patient_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that joins the activation of one who waits long gives that up in time, and the other goes on."""
    monkeypatch.setattr(legacy, "ACTIVATE_TIMEOUT", -0.9)
    gate = Gate()
    one = Legacy([folder], NONE, sleep=never)
    got: list[str] = []

    async def get() -> None:
        got.append((await one.get("vol", wait=True)).name)

    async with plugin(gate, folder / "vol.sock"), anyio.create_task_group() as group:
        with monkeypatch.context() as patch:
            patch.setattr(legacy, "ACTIVATE_TIMEOUT", 15)
            group.start_soon(get)
            await gate.asked.wait()
        assert await one.all() == []
        assert got == []
        gate.open.set()
    assert got == ["vol"]
    assert [provider.name for provider in await one.all()] == ["vol"]


async def test_lists_share_looks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants a list while one is made shares the next look with all others; what came before he asked is in it."""
    looks: list[threading.Event] = []
    began = [asyncio.Event() for _ in range(2)]
    loop = asyncio.get_running_loop()

    def slow(directories: tuple[Path, ...], sockets: Path) -> Listing:
        listing = scan(directories, sockets)
        looks.append(threading.Event())
        loop.call_soon_threadsafe(began[len(looks) - 1].set)
        looks[-1].wait(10)
        return listing

    monkeypatch.setattr(legacy, "scan", slow)
    one = Legacy([folder], NONE)
    got: list[list[str]] = []

    async def everything() -> None:
        got.append([provider.name for provider in await one.all()])

    async with plugin(VOLUMES) as peer, anyio.create_task_group() as group:
        group.start_soon(everything)
        await began[0].wait()
        spec(folder, "vol", peer.address)
        for _ in range(50):
            group.start_soon(everything)
        await anyio.wait_all_tasks_blocked()
        assert len(looks) == 1
        looks[0].set()
        await began[1].wait()
        looks[1].set()
    assert got == [[]] + [["vol"]] * 50
    assert len(looks) == 2


async def test_look_that_hangs_holds_nobody_up(folder: Path, monkeypatch: pytest.MonkeyPatch, logs: list[Any]) -> None:
    """Where the directories hang a list is that of before, in time, with one thread however many lists there are."""
    monkeypatch.setattr(legacy, "ACTIVATE_TIMEOUT", 1)
    release, looks = threading.Event(), []

    def hung(_directories: tuple[Path, ...], _sockets: Path) -> Listing:
        looks.append(True)
        release.wait(20)
        return Listing([], frozenset())

    one = Legacy([folder], NONE)
    async with plugin(VOLUMES, folder / "vol.sock"):
        assert [provider.name for provider in await one.all()] == ["vol"]
        monkeypatch.setattr(legacy, "ACTIVATE_TIMEOUT", -0.9)
        monkeypatch.setattr(legacy, "scan", hung)
        try:
            with anyio.fail_after(10):
                for _ in range(3):
                    assert [provider.name for provider in await one.all()] == ["vol"]
        finally:
            release.set()
    assert len(looks) == 1
    assert [line["event"] for line in logs] == ["legacy.late"] * 3


async def test_list_ends_in_time(folder: Path, monkeypatch: pytest.MonkeyPatch, logs: list[Any]) -> None:
    """A list with silent plugins ends in time, and they are kept in mind, so that the next list is not late as well."""
    monkeypatch.setattr(legacy, "ACTIVATE_TIMEOUT", -0.5)
    one = Legacy([folder], NONE)
    async with plugin(silent) as peer:
        for number in range(4):
            spec(folder, f"p{number}", peer.address)
        with anyio.fail_after(10), monkeypatch.context() as patch:
            # each try would take as long as it takes
            patch.setattr(Client, "call", partialmethod(_call_for_ever, Client.call))
            assert await one.all() == []
            assert len(one._silent._failures) == 4
            seen = len(peer.seen)
            assert await one.all() == []
            assert len(peer.seen) == seen
    assert [line["error"] for line in logs] == ["it took too long"] * 4


async def _call_for_ever(client: Client, call: Any, method: str, **_more: object) -> Any:
    return await call(client, method, timeout=None)


async def test_any_failure_is_that_of_one(folder: Path, monkeypatch: pytest.MonkeyPatch, logs: list[Any]) -> None:
    """Whatever goes wrong with one plugin the others are listed, and its traceback is in the log."""
    activated = Legacy._activated

    async def broken(self: Legacy, found: Found, patience: float) -> Provider:
        if found.name == "bad":
            raise ValueError("oh")
        return await activated(self, found, patience)

    monkeypatch.setattr(Legacy, "_activated", broken)
    one = Legacy([folder], NONE)
    async with plugin(VOLUMES, folder / "vol.sock") as peer:
        spec(folder, "bad", peer.address)
        for _ in range(2):
            assert [provider.name for provider in await one.all()] == ["vol"]
    assert [(line["event"], line.get("exc_info")) for line in logs] == [
        ("legacy.failed", True),
        ("legacy.silent", None),
    ]


async def test_look_that_hangs_holds_up_neither_start_nor_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is served before its first look, and can be stopped while that hangs."""
    release, began = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hung(*_args: object) -> None:
        loop.call_soon_threadsafe(began.set)
        release.wait(20)

    monkeypatch.setattr(lookout, "places", hung)
    try:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                await group.start(Legacy([folder], NONE).serve)
                await began.wait()
                group.cancel_scope.cancel()
    finally:
        release.set()


async def test_looks_come_to_an_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is something else to watch at each look, there are a few in a row and then it is told of."""
    looks: list[Plan] = []

    def others(*_args: object) -> Plan:
        looks.append(Plan({folder / str(len(looks)): None}, 0))
        return looks[-1]

    monkeypatch.setattr(lookout, "places", others)
    with anyio.fail_after(10):
        async with served(Legacy([folder], NONE)):
            assert len(looks) == 3


async def test_too_many_folders_are_told_of_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    """Where there are more sub-directories than are watched the log says so, once, and the rest is served."""
    monkeypatch.setattr(discovery, "MAX_FOLDERS", 1)
    one = Legacy([folder], NONE)
    ear = Ear(one)
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    async with served(one):
        await ear.after(lambda: spec(folder, "vol", "tcp://h:1"))
    assert [(line["event"], line["count"]) for line in logs] == [("legacy.unwatched", 1)]


class Ear:
    """Hears of changes."""

    def __init__(self, one: Legacy) -> None:
        self._heard = anyio.Event()
        one.watch(self._hear)

    def _hear(self) -> None:
        self._heard.set()

    async def after(self, change: Callable[[], object]) -> None:
        """Change something, and return when it was heard of."""
        self._heard = anyio.Event()
        change()
        await self._heard.wait()


async def test_watchers_hear_of_changes(folder: Path) -> None:
    """While it is served, watchers are told when a file comes or goes, or a socket that one leads to."""
    (folder / "there").mkdir()
    one = Legacy([folder / "there"], NONE)
    ear = Ear(one)
    async with served(one), plugin(VOLUMES, folder / "s"), anyio.create_task_group() as group:
        await ear.after(lambda: spec(folder / "there", "vol", f"unix://{folder}/s"))
        # the activation itself is heard of, after which the socket is watched
        await ear.after(lambda: group.start_soon(one.get, "vol"))
        await ear.after((folder / "s").unlink)
        await ear.after((folder / "there" / "vol.spec").unlink)


async def test_directories_come_and_go(folder: Path) -> None:
    """A directory is watched again whatever became of it and of those above it, and nothing else is."""
    above, place = folder / "a", folder / "a" / "b"
    one = Legacy([place], NONE)
    ear = Ear(one)

    def make_another() -> None:
        place.rename(folder / "old")
        place.mkdir()

    async with served(one):
        for change in (above.mkdir, above.rmdir, lambda: place.mkdir(parents=True), make_another):
            await ear.after(change)
        assert set(one._lookout._watches._wanted) == {place}
        await ear.after(lambda: spec(place, "vol", "tcp://h:1"))


async def test_watchers_hear_when_it_is_time_to_ask_again(folder: Path) -> None:
    """While it is served, watchers are told when a plugin that failed may be asked again, though no file changes."""
    heard: list[float] = []
    one = Legacy([folder], NONE)
    done = anyio.Event()

    def hear() -> None:
        heard.append(anyio.current_time())
        if len(heard) == 2:
            done.set()

    bound(folder / "vol.sock").close()
    async with served(one):
        one.watch(hear)
        assert await one.all() == []
        await done.wait()
    # at the failure, and then not before its time
    assert heard[1] > one._silent._failures["vol"].until - 0.1


async def test_without_inotify(folder: Path, monkeypatch: pytest.MonkeyPatch, logs: list[Any]) -> None:
    """Without an instance of inotify it is served all the same, and changes are looked for now and then."""

    async def refuse(_self: Watches, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Watches, "serve", refuse)
    monkeypatch.setattr(lookout, "_INTERVAL", 0.01)
    heard = anyio.Event()
    one = Legacy([folder], NONE)
    one.watch(heard.set)
    async with served(one):
        await heard.wait()
    assert [line["event"] for line in logs] == ["legacy.unwatched"]


async def test_tls(folder: Path, found: Legacy) -> None:
    """A .json file says whom to trust; without TLSConfig the machine says so; a .spec trusts anybody."""
    context, ca, _, _ = certificates(folder)
    async with plugin(VOLUMES, tls=context) as peer:
        for name, tls in (("own", {"CAFile": str(ca)}), ("any", {}), ("machine", None)):
            document = {"Addr": peer.address} | ({} if tls is None else {"TLSConfig": tls})
            (folder / f"{name}.json").write_text(json.dumps(document))
        spec(folder, "spec", peer.address)
        # another file is read when it is put in the place of one
        wrong = folder / "wrong"
        wrong.mkdir()
        (folder / "new").write_bytes(certificates(wrong)[1].read_bytes())
        (folder / "kept").write_bytes(ca.read_bytes())
        assert (await found.get("own")).name == "own"
        (folder / "new").rename(ca)
        with pytest.raises(PluginUntrusted, match="certificate verify failed"):
            await found.get("own")
        (folder / "kept").rename(ca)
        for name in ("own", "any", "spec"):
            assert (await found.get(name)).name == name
        with pytest.raises(PluginUntrusted, match="certificate verify failed"):
            await found.get("machine")
        assert [provider.name for provider in await found.all()] == ["any", "own", "spec"]

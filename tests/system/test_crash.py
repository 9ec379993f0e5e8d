"""The interruption sweep: the daemon is killed at each step of each operation; nothing half made stays (design §5)."""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import procs, remains
from tests.support.crashing import MortalDaemon, mortal_daemon
from tests.support.registry import Registry
from tests.support.sample import build_sample_plugin
from tests.support.wire import Answer, Api, pack

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

LIVES = 12
"""Deaths per operation; an operation with more kinds of steps has some of them left out, evenly."""

numbers = itertools.count(1)


@dataclass
class World:
    """One daemon with what its plugins are made of.

    Attributes:
        daemon: dies.
        api: calls it.
        archive: of a plugin that runs.
        remote: two versions of it in a registry.
        repository: a prefix for names that can be pushed.
    """

    daemon: MortalDaemon
    api: Api
    archive: bytes
    remote: tuple[str, str]
    repository: str

    def plugin(self, name: str = "p:latest") -> dict[str, Any] | None:
        """Return a plugin as it is listed, None when there is none of that name."""
        return next((found for found in self.api.plugins() if found["Name"] == name), None)

    def fresh(self, *, enabled: bool = False) -> None:
        """Make sure that there is a plugin ``p`` as it was created."""
        self.nothing()
        assert self.api.create("p", self.archive).status == 204
        if enabled:
            assert self.api.act("enable", "p", timeout=5).status == 200

    def nothing(self) -> None:
        """Make sure that there is no plugin ``p``."""
        if self.plugin():
            assert self.api.call("DELETE", "/plugins/p:latest", {"force": 1}).status == 200

    def pulled(self) -> None:
        """Make sure that ``p`` is the first version of the remote plugin, with a setting of its own."""
        self.nothing()
        assert not self.api.pull(self.remote[0], "p").error
        assert self.api.call("POST", "/plugins/p/set", document=["DEBUG=7"]).status == 204


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[World]:
    """Give one daemon, which has died many times when the tests end, and leaves nothing."""
    top = tmp_path_factory.mktemp("crash")
    with mortal_daemon(top) as daemon:
        daemon.start()
        api = Api(daemon.socket)
        remote = []
        for version in ("1", "2"):
            folder = build_sample_plugin(top / f"plugin{version}", version=version)
            (folder / "rootfs" / "version").write_text(version)
            name = f"{registry.host}/crash/remote:{version}"
            assert api.create(name, pack(folder)).status == 204
            assert not api.act("push", name).error
            assert api.call("DELETE", f"/plugins/{name}").status == 200
            remote.append(name)
        archive = pack(build_sample_plugin(top / "local", version="0"))
        yield World(daemon, api, archive, (remote[0], remote[1]), f"{registry.host}/crash/push")
        for plugin in api.plugins():
            assert api.call("DELETE", f"/plugins/{plugin['Id']}", {"force": 1}).status == 200
        assert daemon.stop() == 0
        assert daemon.mounts() == []
        assert daemon.processes() == {}


@dataclass(frozen=True)
class Operation:
    """Something that is interrupted.

    Attributes:
        prepare: makes the state it starts from.
        act: does it.
        done: whether its outcome is visible in what `World.plugin` gives.
    """

    prepare: Callable[[World], None]
    act: Callable[[World], Answer]
    done: Callable[[dict[str, Any] | None], bool]


def _version(plugin: dict[str, Any] | None) -> str:
    """Return the VERSION that a plugin's config names."""
    assert plugin
    found = next(variable["Value"] for variable in plugin["Config"]["Env"] if variable["Name"] == "VERSION")
    assert isinstance(found, str)
    return found


def _set(plugin: dict[str, Any] | None) -> bool:
    return plugin is not None and "DEBUG=1" in plugin["Settings"]["Env"]


def _enabled(plugin: dict[str, Any] | None) -> bool:
    return plugin is not None and plugin["Enabled"]


OPERATIONS = {
    "create": Operation(World.nothing, lambda w: w.api.create("p", w.archive), lambda p: p is not None),
    "pull": Operation(World.nothing, lambda w: w.api.pull(w.remote[0], "p"), lambda p: p is not None),
    "upgrade": Operation(World.pulled, lambda w: w.api.upgrade("p", w.remote[1]), lambda p: _version(p) == "2"),
    "set": Operation(World.fresh, lambda w: w.api.call("POST", "/plugins/p/set", document=["DEBUG=1"]), _set),
    "enable": Operation(World.fresh, lambda w: w.api.act("enable", "p", timeout=5), _enabled),
    "disable": Operation(
        lambda w: w.fresh(enabled=True), lambda w: w.api.act("disable", "p"), lambda p: not _enabled(p)
    ),
    "remove": Operation(
        lambda w: w.fresh(enabled=True),
        lambda w: w.api.call("DELETE", "/plugins/p:latest", {"force": 1}),
        lambda p: p is None,
    ),
}


def _check_rootfs(world: World) -> None:
    """Assert that config, reference and files of ``p`` are of one version."""
    plugin = world.plugin()
    if plugin is None:
        return
    (rootfs,) = (world.daemon.root / "plugins" / plugin["Id"]).glob("gen-*/rootfs")
    assert (rootfs / "sample-volume-plugin").stat().st_size > 0
    if (version := _version(plugin)) != "0":
        assert (rootfs / "version").read_text() == version
        assert plugin["PluginReference"].endswith(f":{version}")


def _chosen(steps: list[str]) -> list[str]:
    """Return which steps to die at: the first of each kind, then the last of each; `LIVES` at most, evenly taken."""
    kinds: dict[str, list[str]] = {}
    for step in steps:
        kinds.setdefault(step.rpartition(" #")[0], []).append(step)
    ends = {step for found in kinds.values() for step in (found[0], found[-1])}
    wanted = [step for step in steps if step in ends]
    if len(wanted) <= LIVES:
        return wanted
    return [wanted[i * (len(wanted) - 1) // (LIVES - 1)] for i in range(LIVES)]


def eventually(answers: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not answers():
        assert time.monotonic() < deadline
        time.sleep(procs.POLL)


def _interrupted(world: World, act: Callable[[World], Answer]) -> Answer | None:
    """Do the operation; return its answer, None when the daemon died before there was one."""
    world.daemon.arm()
    try:
        return act(world)
    except (OSError, http.client.HTTPException, ValueError):
        # ValueError: a line of the stream was cut
        assert world.daemon.at, world.daemon.log()[-4000:]
        return None


def _live_again(world: World, at: str) -> None:
    assert world.daemon.proc
    old = world.daemon.proc.pid
    world.daemon.kill()
    world.daemon.at = at
    world.daemon.start()
    # one that was just being started notices as soon as it runs
    eventually(lambda: remains.workers(old) == [])


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_every_step(world: World, name: str) -> None:
    """Killed anywhere, the daemon comes back with the operation done whole or not at all, and can then do it."""
    operation = OPERATIONS[name]
    _live_again(world, "")
    operation.prepare(world)
    assert _interrupted(world, operation.act)
    steps = world.daemon.steps()
    assert len(steps) >= 2, steps
    deaths = _chosen(steps)
    _live_again(world, deaths[0])
    for at, following in zip(deaths, [*deaths[1:], ""], strict=True):
        operation.prepare(world)
        before = world.plugin()
        assert not operation.done(before)
        answer = _interrupted(world, operation.act)
        _live_again(world, following)
        after = world.plugin()
        if answer is not None and answer.status < 300 and not answer.error:
            assert operation.done(after), f"what was acknowledged is lost after {at}"
        if not operation.done(after):
            assert after == before, f"half done after {at}"
        remains.check(world.daemon)
        _check_rootfs(world)
        if not operation.done(after):
            redone = operation.act(world)
            assert redone.status < 300, f"after {at}: {redone}"
            assert not redone.error, f"after {at}: {redone}"
            assert operation.done(world.plugin())


def _push(world: World, name: str) -> Answer:
    return world.api.act("push", name)


def test_killed_at_every_step_of_a_push(world: World) -> None:
    """A push that was killed can be done again, whatever of it has reached the registry."""
    world.nothing()
    at, deaths = "", [""]
    for at in deaths:
        _live_again(world, at)
        name = f"{world.repository}{next(numbers)}"
        assert world.api.create(name, world.archive).status == 204
        _interrupted(world, partial(_push, name=name))
        if not at:
            deaths += _chosen(world.daemon.steps())
        _live_again(world, "")
        remains.check(world.daemon)
        assert not world.api.act("push", name).error
        assert world.api.call("DELETE", f"/plugins/{name}").status == 200


def test_a_mount_that_is_in_use(world: World) -> None:
    """What a process of the host holds busy below a propagated mount keeps nobody from disabling and removing."""
    world.fresh(enabled=True)
    plugin = world.plugin()
    assert plugin
    volume = world.daemon.root / "plugins" / plugin["Id"] / "propagated-mount" / "volume"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", volume], check=True)
    (volume / "data").write_text("mine")
    user = subprocess.Popen(["sleep", "60"], cwd=volume)
    try:
        assert world.api.act("disable", "p").status == 200
        assert world.api.call("DELETE", "/plugins/p").status == 200
        remains.check(world.daemon)
        # detached, not emptied: what is mounted is nobody's to delete
        assert Path(f"/proc/{user.pid}/cwd/data").read_text() == "mine"
    finally:
        user.kill()
        user.wait()


def test_killed_while_it_recovers(world: World) -> None:
    """A daemon that dies at a step of its own start does as well when it starts the next time."""
    deaths = [""]
    for at in deaths:
        _live_again(world, "")
        world.fresh(enabled=True)
        plugin = world.plugin()
        assert plugin
        world.daemon.kill()
        # what deaths elsewhere leave behind, all at once: the process gone, its files there
        pid = int((world.daemon.run / "instances" / plugin["Id"] / "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        for left in ("staging/abc/rootfs/x", f"plugins/{'a' * 64}/gen-1/rootfs", f"plugins/{'b' * 64}-removing/gen-1"):
            (world.daemon.root / left).mkdir(parents=True)
        (world.daemon.root / "plugins" / plugin["Id"] / "gen-2" / "rootfs").mkdir(parents=True)
        (world.daemon.root / "content" / "ingest" / "abc").mkdir()
        (world.daemon.root / "content" / "ingest" / "abc" / "data").write_bytes(b"half")
        (world.daemon.root / "content" / "blobs" / "sha256" / ("c" * 64)).write_bytes(b"nobody's")
        world.daemon.at = at
        try:
            world.daemon.start(armed=True)
            world.api.plugins()
        except (procs.ProcessFailedError, ConnectionError):  # it died before it listened, or just after
            assert at
        if not at:
            deaths += _chosen(world.daemon.steps())[::2]
        _live_again(world, "")
        eventually(lambda: len(remains.names(world.daemon.run / "runtime")) == 1)
        remains.check(world.daemon)
        assert _enabled(world.plugin())

"""Published sockets: other engines find a plugin by its name for as long as it is enabled, and find it alive."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import procs
from tests.support.daemon import Daemon, running_daemon
from tests.support.registry import Registry
from tests.support.unruly import Plugin
from tests.support.wire import Api, Connection, pack

pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]


def call(path: Path, method: str, **body: str) -> object:
    """Call a plugin as an engine does, by a path."""
    connection = Connection(path)
    try:
        connection.request("POST", f"/{method}", json.dumps(body).encode() if body else b"")
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def answers(path: Path) -> bool:
    return call(path, "Plugin.Activate") == {"Implements": ["VolumeDriver"]}


def names(daemon: Daemon) -> set[str]:
    return set(os.listdir(daemon.published)) if daemon.published.exists() else set()


@pytest.fixture
def own() -> Iterator[Daemon]:
    """Give a daemon of its own to a test that counts links."""
    with running_daemon() as found:
        yield found


@pytest.fixture
def plugin(own: Daemon, folder: Callable[..., Path]) -> Plugin:
    """Give an enabled plugin on it."""
    return added(own, "pub/vol", folder)


def added(daemon: Daemon, name: str, folder: Callable[..., Path], **config: object) -> Plugin:
    assert Api(daemon.socket).create(name, pack(folder(**config))).status == 204
    made = Plugin(daemon, name)
    made.enable()
    return made


def test_from_enable_to_disable(own: Daemon, plugin: Plugin) -> None:
    """The link is there with the answer to enable, leads to the plugin, and is gone with that to disable or remove."""
    link = own.published / "pub-vol.sock"
    assert os.readlink(link) == str(own.run / "plugins" / plugin.id / "sample.sock")
    assert answers(link)
    assert plugin.api.act("disable", plugin.name).status == 200
    assert names(own) == set()
    plugin.enable()
    assert answers(link)
    assert plugin.api.call("DELETE", f"/plugins/{plugin.id}", {"force": 1}).status == 200
    assert names(own) == set()


def test_over_crashes(own: Daemon, plugin: Plugin) -> None:
    """The link is the same over crashes of the plugin, of the daemon and of both, and what it leads to answers."""
    link = own.published / "pub-vol.sock"
    made = link.lstat()
    plugin.signal(signal.SIGKILL)
    plugin.until(lambda now: now["Restarts"] == 1 and now["State"] in {"running", "healthy"})
    assert answers(link)
    own.kill()
    assert answers(link)
    own.start()
    assert answers(link)
    pid = plugin.state()["Pid"]
    own.kill()
    os.kill(pid, signal.SIGKILL)
    own.start()
    plugin.until(lambda now: now["Pid"] not in {0, pid} and now["State"] in {"running", "healthy"})
    assert answers(link)
    assert link.lstat() == made


def test_upgraded_and_installed_again(own: Daemon, registry: Registry, folder: Callable[..., Path]) -> None:
    """The same path leads to the new version after an upgrade, and to the new plugin when it was installed again."""
    api = Api(own.socket)
    remotes = [f"{registry.host}/test/published:{version}" for version in ("1", "2")]
    for version, remote in enumerate(remotes, 1):
        # a new version may call its socket otherwise
        socket = f"v{version}.sock"
        entrypoint = ["/sample-volume-plugin", f"/run/docker/plugins/{socket}"]
        interface = {"socket": socket, "types": ["docker.volumedriver/1.0"]}
        assert api.create(remote, pack(folder(entrypoint=entrypoint, interface=interface))).status == 204
        assert not api.act("push", remote).error
        assert api.call("DELETE", f"/plugins/{remote}").status == 200
    link = own.published / "data.sock"
    before = ""
    for _ in range(2):
        assert not api.pull(remotes[0], "data").error
        plugin = Plugin(own, "data")
        assert plugin.id != before
        before = plugin.id
        plugin.enable()
        assert (link.readlink().parent.name, link.readlink().name) == (plugin.id, "v1.sock")
        assert answers(link)
        assert api.act("disable", "data").status == 200
        assert not api.upgrade("data", remotes[1]).error
        plugin.enable()
        assert (link.readlink().parent.name, link.readlink().name) == (plugin.id, "v2.sock")
        assert answers(link)
        assert api.call("DELETE", "/plugins/data", {"force": 1}).status == 200
    assert names(own) == set()


def test_what_was_left_goes_and_what_is_not_ours_stays(own: Daemon, plugin: Plugin) -> None:
    """At the start links into our RUN that nobody wishes go, those that are missing come, and all else stays."""
    own.kill()
    (own.published / "pub-vol.sock").unlink()
    (own.published / "old.sock").symlink_to(own.run / "plugins" / ("0" * 64) / "p.sock")
    (own.published / "theirs.sock").symlink_to("/run/other/plugins/p.sock")
    (own.published / "spec").write_text("theirs")
    own.start()
    assert names(own) == {"pub-vol.sock", "theirs.sock", "spec"}
    assert answers(own.published / "pub-vol.sock")
    assert plugin.state()["Desired"] == "enabled"


def test_a_place_that_is_taken(own: Daemon, plugin: Plugin, folder: Callable[..., Path]) -> None:
    """A plugin whose place is taken is enabled, not published, and published when the place is free."""
    (own.published / "taken.sock").write_text("theirs")
    second = added(own, "taken", folder)
    third = added(own, "pub-vol", folder)
    assert (own.published / "taken.sock").read_text() == "theirs"
    assert (own.published / "pub-vol.sock").readlink().parent.name == plugin.id
    assert own.log().count("published.trouble") == 2
    (own.published / "taken.sock").unlink()
    assert plugin.api.act("disable", plugin.name).status == 200
    assert (own.published / "taken.sock").readlink().parent.name == second.id
    assert (own.published / "pub-vol.sock").readlink().parent.name == third.id


@pytest.mark.parametrize("shutdown", ["keep", "stop"])
def test_shutdown(tmp_path: Path, folder: Callable[..., Path], shutdown: str) -> None:
    """A daemon that keeps its plugins leaves their links; one that stops them takes those away until its next READY."""
    config = tmp_path / "c.toml"
    config.write_text(f'shutdown = "{shutdown}"\n')
    with running_daemon("--config", str(config)) as daemon:
        added(daemon, "vol", folder)
        assert daemon.stop() == 0
        assert names(daemon) == ({"vol.sock"} if shutdown == "keep" else set())
        if shutdown == "stop":
            # as a reboot does
            shutil.rmtree(daemon.published)
        daemon.start()
        # whoever waits for READY finds it, though no event tells of a start that follows the daemon's
        procs.wait_until(lambda: daemon.log().count("daemon.ready") == 2)
        assert names(daemon) == {"vol.sock"}
        assert answers(daemon.published / "vol.sock")


def test_none(folder: Callable[..., Path]) -> None:
    """With ``none`` nothing is published, and nothing of it is looked at."""
    with running_daemon("--publish-dir", "none") as daemon:
        added(daemon, "vol", folder)
        assert not daemon.published.exists()

"""Leases and mounts of a real daemon: who is named, what stays for whom, and that nothing is left (REF 7.38)."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import procs
from tests.support.daemon import Daemon, running_daemon
from tests.support.docker_cli import DockerCLI
from tests.support.wire import Api, pack

pytestmark = pytest.mark.root

Folder = Callable[..., Path]
V1 = "/pluginsvc/v1"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Give each test a daemon of its own, since it may be killed."""
    with running_daemon() as found:
        yield found


@pytest.fixture
def api(daemon: Daemon) -> Api:
    return Api(daemon.socket)


@pytest.fixture
def plugin_id(api: Api, folder: Folder) -> str:
    """Give an enabled plugin called ``p``; stopped, it leaves its volumes mounted."""
    assert api.create("p", pack(folder())).status == 204
    api.ok("POST", "/plugins/p/enable", {"timeout": 30})
    return str(api.ok("GET", "/plugins/p/json")["Id"])


def volume_of(daemon: Daemon, plugin_id: str, name: str = "v") -> Path:
    """Have the plugin mount a volume, and return where it is on the host."""
    sock = daemon.run / "plugins" / plugin_id / "sample.sock"
    for call in ("Create", "Mount"):
        connection = http.client.HTTPConnection("plugin", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX)
        with_fd = os.open(sock.parent, os.O_PATH)
        connection.sock.connect(f"/proc/self/fd/{with_fd}/{sock.name}")
        os.close(with_fd)
        connection.request("POST", f"/VolumeDriver.{call}", json.dumps({"Name": name, "ID": "x"}))
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
        connection.close()
    path = daemon.root / "plugins" / plugin_id / "propagated-mount" / name
    assert str(path) in daemon.mounts()
    return path


def acquire(api: Api, holder: str, **more: Any) -> None:
    document = {"Holder": holder, "Purpose": "volume v"} | more
    api.ok("POST", f"{V1}/plugins/p/acquire", document=document)


def release(api: Api, holder: str) -> int:
    count = api.ok("POST", f"{V1}/plugins/p/release", document={"Holder": holder})["Count"]
    assert isinstance(count, int)
    return count


def ledger(api: Api) -> list[dict[str, Any]]:
    found = api.ok("GET", f"{V1}/mounts")
    assert isinstance(found, list)
    return found


def test_docker_hears_who_uses_it(daemon: Daemon, api: Api, plugin_id: str) -> None:
    """The docker CLI is refused with the holders' names, before and after a kill of the daemon, until they let go."""
    docker: DockerCLI = daemon.cli()
    acquire(api, "web")
    acquire(api, "db")
    expected = "plugin p:latest is in use by web (volume v), db (volume v): release it there, or use force"
    for words in (("disable", "p"), ("rm", "p")):
        assert expected in docker.run("plugin", *words).stderr
    daemon.kill()
    daemon.start()
    assert expected in docker.run("plugin", "disable", "p").stderr
    assert [release(api, holder) for holder in ("web", "db", "db")] == [0, 0, 0]
    docker.run("plugin", "disable", "p", check=True)
    assert daemon.mounts() == []
    assert ledger(api) == []


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed"])
def test_a_forced_disable_leaves_holders_their_volumes(
    daemon: Daemon, api: Api, plugin_id: str, *, killed: bool
) -> None:
    """The volume of a holder stays whole while the plugin is stopped by force, and goes when the last one lets go."""
    volume = volume_of(daemon, plugin_id)
    (volume / "file").write_text("before")
    acquire(api, "web")
    acquire(api, "db")
    daemon.cli().run("plugin", "disable", "-f", "p", check=True)
    if killed:
        daemon.kill()
        daemon.start()
    (volume / "more").write_text((volume / "file").read_text())
    (row,) = ledger(api)
    assert (row["Path"], row["PluginID"], row["State"]) == (str(volume.parent), plugin_id, "leaving")
    assert row["Trouble"] == "held by web (volume v), db (volume v)"
    assert release(api, "web") == 0
    assert (volume / "more").read_text() == "before"
    assert release(api, "db") == 0
    procs.wait_until(lambda: daemon.mounts() == [] and ledger(api) == [], timeout=5)
    assert volume.parent.exists()


def test_enabled_again_with_holders(daemon: Daemon, api: Api, plugin_id: str) -> None:
    """A plugin that is enabled again takes over what its holders kept, and their release takes nothing away."""
    volume = volume_of(daemon, plugin_id)
    acquire(api, "web")
    api.ok("POST", "/plugins/p/disable", {"force": 1})
    api.ok("POST", "/plugins/p/enable", {"timeout": 30})
    assert ledger(api)[0]["State"] == "mounted"
    assert release(api, "web") == 0
    # a disable that is refused has looked at the leases after the release
    acquire(api, "db")
    assert api.act("disable", "p").status == 409
    assert {str(volume), str(volume.parent)} <= set(daemon.mounts())


def test_a_lease_that_ends_by_itself(daemon: Daemon, api: Api, plugin_id: str) -> None:
    """A holder that forgets to release loses its lease in the end, and the mount goes."""
    volume_of(daemon, plugin_id)
    acquire(api, "web", Seconds=1)
    api.ok("POST", "/plugins/p/disable", {"force": 1})
    procs.wait_until(lambda: daemon.mounts() == [], timeout=10)
    assert api.ok("GET", f"{V1}/plugins/p/leases") == []


def test_forced_removal_leaves_no_mount(daemon: Daemon, api: Api, plugin_id: str) -> None:
    """``rm -f`` takes the mounts away though they are held and open, and the directory after them."""
    volume = volume_of(daemon, plugin_id)
    acquire(api, "web")
    with (volume / "file").open("w") as file:
        daemon.cli().run("plugin", "rm", "-f", "p", check=True)
        assert daemon.mounts() == []
        assert ledger(api) == []
        file.write("nobody else sees this")
    procs.wait_until(lambda: not list((daemon.root / "plugins").iterdir()))


def test_a_crash_keeps_the_volumes(daemon: Daemon, api: Api, plugin_id: str) -> None:
    """A plugin that crashes finds its volumes as they were, under the same row of the ledger."""
    volume = volume_of(daemon, plugin_id)
    (volume / "file").write_text("kept")
    before = ledger(api)
    pid = int((daemon.run / "instances" / plugin_id / "pid").read_text())
    os.kill(pid, signal.SIGKILL)
    restarted = lambda: api.ok("GET", f"{V1}/plugins/p/json")["Restarts"] == 1  # noqa: E731 - a condition
    procs.wait_until(restarted, timeout=10)
    assert ledger(api) == before
    assert (volume / "file").read_text() == "kept"


def test_mounts_of_another_boot_are_forgotten(daemon: Daemon, api: Api, plugin_id: str) -> None:
    """What a reboot took away is not looked for, and a mount that no row knows of is taken over."""
    (row,) = ledger(api)
    daemon.kill()
    with sqlite3.connect(daemon.root / "state.db") as db:
        db.execute("UPDATE mounts SET boot = 'another', since_ns = 1")
        db.execute("INSERT INTO mounts VALUES ('/gone', ?, 1, '0:1 /', 'another', 1, 'held by web')", (plugin_id,))
    db.close()
    daemon.start()
    (found,) = ledger(api)
    assert (found["Path"], found["MountID"], found["Trouble"]) == (row["Path"], row["MountID"], "")
    assert found["Since"] > "2000"

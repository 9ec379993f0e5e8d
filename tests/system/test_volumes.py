"""``pluginctl volume`` with a real daemon and the sample plugin: whoever is killed, volumes and their leases stay."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from click.testing import CliRunner, Result

from pluginsvc.client.pluginctl import main
from tests.support import procs
from tests.support.daemon import Daemon, running_daemon
from tests.support.unruly import make
from tests.support.volume_driver import Driver, hanging
from tests.support.wire import Api, Connection, pack

pytestmark = pytest.mark.root

Ctl = Callable[..., Result]


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Give each test a daemon of its own, since it may be killed."""
    with running_daemon() as found:
        yield found


@pytest.fixture
def api(daemon: Daemon) -> Api:
    return Api(daemon.socket)


@pytest.fixture
def plugin_id(api: Api, folder: Callable[..., Path]) -> str:
    """Give an enabled volume plugin called ``p``."""
    assert api.create("p", pack(folder())).status == 204
    api.ok("POST", "/plugins/p/enable", {"timeout": 30})
    return str(api.ok("GET", "/plugins/p/json")["Id"])


@pytest.fixture
def volume(daemon: Daemon) -> Ctl:
    """Give ``pluginctl volume``; it checks the exit status."""

    def run(*words: str, status: int = 0) -> Result:
        found = CliRunner().invoke(main, ["--host", daemon.host, "volume", *words])
        assert found.exit_code == status, found.output
        return found

    return run


def pid_of(daemon: Daemon, plugin_id: str) -> int:
    return int((daemon.run / "instances" / plugin_id / "pid").read_text())


def purposes(api: Api) -> dict[str, int]:
    """Return what the plugin is in use for, and how often."""
    found = api.ok("GET", "/pluginsvc/v1/plugins/p/leases")
    assert {lease["Holder"] for lease in found} <= {"volumes"}
    return {lease["Purpose"]: lease["Count"] for lease in found}


def test_the_life_of_a_volume(daemon: Daemon, api: Api, plugin_id: str, volume: Ctl) -> None:
    """What is written through the printed path is there after plugin and daemon were killed, until it is removed."""
    assert volume("create", "-d", "p", "-o", "size=1m", "v").stdout == "v\n"
    assert volume("create", "-d", plugin_id[:12], "v").stdout == "v\n"
    assert purposes(api) == {"volume v": 1}
    place = Path(volume("mount", "--driver", "p", "v").stdout.strip())
    assert place == daemon.root / "plugins" / plugin_id / "propagated-mount" / "v"
    assert str(place) in daemon.mounts()
    (place / "file").write_text("kept")

    os.kill(pid_of(daemon, plugin_id), signal.SIGKILL)
    # asked while it is down: the call is tried again until it is up
    assert json.loads(volume("inspect", "-d", "p", "v").stdout)[0]["Mountpoint"] == str(place)
    daemon.kill()
    daemon.start()
    assert (place / "file").read_text() == "kept"
    row = volume("ls").stdout.splitlines()[1].split()
    assert row == ["p:latest", "v", "local", str(place)]
    assert purposes(api) == {"volume v": 1, "mount of v by pluginctl": 1}

    assert "is mounted by pluginctl: unmount it" in volume("rm", "-d", "p", "v", status=1).stderr
    assert "it is mounted" in volume("rm", "--force", "-d", "p", "v", status=1).stderr
    assert purposes(api) == {"volume v": 1, "mount of v by pluginctl": 1}
    assert volume("unmount", "-d", "p", "v").stdout == "v\n"
    assert volume("rm", "-d", "p", "v").stdout == "v\n"
    assert purposes(api) == {}
    assert volume("ls", "-q").stdout == ""


def test_a_volume_keeps_its_plugin(daemon: Daemon, api: Api, plugin_id: str, volume: Ctl) -> None:
    """Disable and rm are refused with the volume's name, after a restart as well, until the volume is removed."""
    volume("create", "-d", "p", "v")
    refused = "plugin p:latest is in use by volumes (volume v)"
    assert refused in api.act("disable", "p").error
    assert daemon.stop() == 0
    daemon.start()
    assert refused in api.act("disable", "p").error
    assert refused in api.call("DELETE", "/plugins/p").error
    volume("rm", "-d", "p", "v")
    assert api.act("disable", "p").status == 200
    assert api.call("DELETE", "/plugins/p").status == 200


def test_disabled_and_dead_plugins(daemon: Daemon, api: Api, plugin_id: str, volume: Ctl) -> None:
    """A plugin that fails is named, with status 1, and the others' volumes are listed; a disabled one is not asked."""
    volume("create", "-d", "p", "v")
    make(daemon, "bad", "well", Interface={"Socket": "p.sock", "Types": ["docker.volumedriver/1.0"]}).enable()
    listed = volume("ls", "-q", status=1)
    assert listed.stdout == "v\n"
    assert listed.stderr.startswith("pluginctl: no volumes of plugin bad:latest: VolumeDriver.List: ")
    assert api.act("disable", "bad").status == 200
    assert volume("ls", "-q").stdout == "v\n"
    assert api.act("disable", "p", force=1).status == 200
    assert volume("ls", "--format", "json").stdout == ""
    refused = volume("ls", "-d", "p", status=1)
    assert refused.stderr == "pluginctl: plugin p:latest found but disabled\n"
    api.ok("POST", "/plugins/p/enable", {"timeout": 30})
    assert volume("ls", "-q").stdout == "v\n"
    volume("rm", "-d", "p", "v")


def test_unmounted_after_a_forced_disable(daemon: Daemon, api: Api, plugin_id: str, volume: Ctl) -> None:
    """What a plugin that was disabled by force has mounted stays, and goes when it is unmounted and let go."""
    volume("create", "-d", "p", "v")
    place = Path(volume("mount", "-d", "p", "--id", "web", "v").stdout.strip())
    (place / "file").write_text("kept")
    assert api.act("disable", "p", force=1).status == 200
    assert (place / "file").read_text() == "kept"
    volume("unmount", "-d", "p", "--id", "web", "v")
    assert purposes(api) == {"volume v": 1}
    api.ok("POST", "/pluginsvc/v1/plugins/p/release", document={"Holder": "volumes", "Purpose": "volume v"})
    procs.wait_until(lambda: daemon.mounts() == [], timeout=5)


def test_the_client_goes_away(daemon: Daemon, api: Api, plugin_id: str, volume: Ctl) -> None:
    """A volume whose create was under way when its client went away is made, with its lease."""
    pid = pid_of(daemon, plugin_id)
    os.kill(pid, signal.SIGSTOP)
    connection = Connection(daemon.socket)
    body = json.dumps({"Name": "v", "Options": {}})
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/pluginsvc/v1/plugins/p/volumes/create", body, headers)
    procs.wait_until(lambda: purposes(api) == {"volume v": 1}, timeout=10)
    connection.close()
    assert daemon.proc
    daemon.proc.wait_until(lambda: "the client went away" in daemon.log(), timeout=10)
    os.kill(pid, signal.SIGCONT)
    procs.wait_until(lambda: volume("ls", "-q").stdout == "v\n", timeout=10)
    assert purposes(api) == {"volume v": 1}
    volume("rm", "-d", "p", "v")
    assert purposes(api) == {}


def test_a_stop_of_the_daemon_waits_for_no_plugin(daemon: Daemon, api: Api, plugin_id: str, volume: Ctl) -> None:
    """A call that hangs does not hold up the end of the daemon, and its lease stays, for it may have been done."""
    volume("create", "-d", "p", "w")
    pid = pid_of(daemon, plugin_id)
    os.kill(pid, signal.SIGSTOP)
    connection = Connection(daemon.socket)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/pluginsvc/v1/plugins/p/volumes/create", json.dumps({"Name": "v"}), headers)
    procs.wait_until(lambda: purposes(api) == {"volume v": 1, "volume w": 1}, timeout=10)
    connection.close()
    assert daemon.stop() == 0
    os.kill(pid, signal.SIGCONT)
    daemon.start()
    assert purposes(api) == {"volume v": 1, "volume w": 1}
    procs.wait_until(lambda: volume("ls", "-q").stdout == "v\nw\n", timeout=10)
    volume("rm", "-d", "p", "v", "w")
    assert purposes(api) == {}


def test_not_there(daemon: Daemon, api: Api, plugin_id: str, volume: Ctl) -> None:
    """An unknown driver is named, no volume is made by mounting it, and what does not exist leaves no lease."""
    words = ("create", "-d", "this-plugin-does-not-exist", "v")
    assert 'plugin "this-plugin-does-not-exist" not found' in volume(*words, status=1).stderr
    assert "no such volume" in volume("mount", "-d", "p", "v", status=1).stderr
    assert "no such volume" in volume("rm", "-d", "p", "v", status=1).stderr
    assert volume("ls", "-q").stdout == ""
    assert purposes(api) == {}


@contextmanager
def answering(daemon: Daemon, **config: Any) -> Iterator[tuple[Driver, str]]:
    """Give what answers for an enabled plugin ``p``, in its place, and the plugin's ID."""
    found = make(daemon, "p", "well", Interface={"Socket": "p.sock", "Types": ["docker.volumedriver/1.0"]}, **config)
    found.enable()
    sockets = daemon.run / "plugins" / found.id
    (sockets / "p.sock").unlink()
    driver = Driver()
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(driver.at(sockets / "p.sock")):
        yield driver, found.id


def test_a_file_system_that_hangs(daemon: Daemon, api: Api, volume: Ctl) -> None:
    """A volume below a file system that hangs is listed, to look at it is an error, and the daemon ends at once."""
    with answering(daemon, PropagatedMount="/mnt/state") as (driver, plugin_id):
        base = daemon.root / "plugins" / plugin_id / "propagated-mount"
        (base / "v").mkdir()
        driver.answers["List"] = {"Volumes": [{"Name": "data", "Mountpoint": "/mnt/state/v/data"}]}
        driver.answers["Get"] = {"Volume": {"Mountpoint": "/mnt/state/v/data"}}
        driver.answers["Mount"] = {"Mountpoint": "/mnt/state/v/data"}
        with hanging(base / "v"):
            assert volume("ls", "-q").stdout == "data\n"
            assert daemon.proc
            threads = Path(f"/proc/{daemon.proc.pid}/task")
            before = len(list(threads.iterdir()))
            for words in (("inspect", "-d", "p", "data"), ("mount", "-d", "p", "data")):
                refused = volume(*words, status=1).stderr
                assert f"the file system at or above {base}/v/data does not answer: see `pluginctl logs p" in refused
            assert driver.calls[-1] == ("Unmount", "data")
            assert purposes(api) == {}
            assert len(list(threads.iterdir())) == before
            assert daemon.stop() == 0


def test_a_bind(daemon: Daemon, api: Api, volume: Ctl, tmp_path: Path) -> None:
    """A volume in a directory of the host that its operator has given the plugin is where that is; another is none."""
    (tmp_path / "v").mkdir()
    given = {"Destination": "/x", "Source": str(tmp_path), "Type": "bind", "Options": ["rbind", "rshared"]}
    with answering(daemon, Mounts=[given]) as (driver, _):
        driver.answers["Mount"] = {"Mountpoint": "/x/v"}
        assert volume("mount", "-d", "p", "v").stdout == f"{tmp_path}/v\n"
        driver.answers["Mount"] = {"Mountpoint": "/y/w"}
        assert "is no directory on the host" in volume("mount", "-d", "p", "w", status=1).stderr
        assert purposes(api) == {"mount of v by pluginctl": 1}

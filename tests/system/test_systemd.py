"""The unit and the socket on a real systemd, booted as PID 1 on an overlay of this machine's root (design §2, §3)."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import parts, systemd
from tests.support.daemon import PROGRAM
from tests.support.docker_cli import DockerCLI, docker_clis
from tests.support.systemd import Booted
from tests.support.wire import Api, Connection

UNITS = parts.PROJECT / "systemd"
SERVICE, SOCKET = "pluginsvc.service", "pluginsvc.socket"
SETTINGS = "etc/pluginsvc/pluginsvc.toml"
PYTHON = PROGRAM.with_name("python")

# A daemon whose loop can be made to hang, and nothing else of it: a signal's handler runs in the main thread.
HANGING = """\
import signal, time
from pluginsvc.__main__ import main
signal.signal(signal.SIGUSR2, lambda *_: time.sleep(15))
main()
"""

# A unit that can do nothing without a plugin.
NEEDY = """\
[Unit]
Requires={service}
After={service}
[Service]
Type=oneshot
ExecStart={python} -c 'import socket; socket.socket(socket.AF_UNIX).connect("{socket}")'
[Install]
WantedBy=multi-user.target
"""

# systemd.exec(5): what gives a unit a mount namespace of its own, some of it with certain values only. None is wanted.
OWN_MOUNTS = re.compile(
    "Private.+|Protect.+|.+Paths|(ReadOnly|ReadWrite|Inaccessible|Extension)Directories|(Mount|Extension)Images|"
    "Root(Directory|Image|Hash|Verity).*|Mount(Flags|APIVFS)|TemporaryFileSystem|ProcSubset|DynamicUser|LogNamespace|"
    ".+NamespacePath|JoinsNamespaceOf"
)


@dataclass(frozen=True)
class Plugin:
    """An enabled plugin of the booted system."""

    system: Booted
    name: str
    plugin_id: str

    @property
    def pid(self) -> int:
        """Its process, 0 if it does not run."""
        try:
            pid = int((self.system.root / "run/pluginsvc/instances" / self.plugin_id / "pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0
        return pid if pid in self.system.processes() else 0

    def signal(self, name: str) -> None:
        """Send a signal to its process, wherever the daemon is."""
        pid = self.pid
        assert pid  # 0 would be our own process group
        self.system.run("sh", "-c", f"kill -s {name} {pid}")

    def kill(self) -> None:
        """Kill its process, and wait until it is gone."""
        pid = self.pid
        self.signal("KILL")
        self.system.proc.wait_until(lambda: self.pid != pid)

    def call(self, method: str, **arguments: str) -> dict[str, Any]:
        """Call a method of the plugin over its socket."""
        folder = os.open(self.system.root / "run/pluginsvc/plugins" / self.plugin_id, os.O_PATH)
        connection = http.client.HTTPConnection("plugin", timeout=10)
        with socket.socket(socket.AF_UNIX) as connection.sock:
            connection.sock.settimeout(10)
            try:
                connection.sock.connect(f"/proc/self/fd/{folder}/sample.sock")
            finally:
                os.close(folder)
            connection.request("POST", f"/{method}", json.dumps(arguments))
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        assert not answer.get("Err"), answer
        return answer


def lay(root: Path) -> None:
    """Put the project onto a root: its units, its configuration as shipped, and this checkout's daemon."""
    for unit in (SERVICE, SOCKET):
        shutil.copy(UNITS / unit, root / "usr/lib/systemd/system")
    (root / SETTINGS).parent.mkdir()
    shutil.copy(parts.PROJECT / "config/pluginsvc.toml", root / SETTINGS)
    for name, text in ("pluginsvc", f'#!/bin/sh\nexec {PROGRAM} "$@"\n'), ("hanging", f"#!{PYTHON}\n{HANGING}"):
        program = root / "usr/bin" / name
        program.write_text(text)
        program.chmod(0o755)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """Boot once for all tests."""
    if why := systemd.cannot_boot():
        pytest.skip(why)
    with systemd.booted(tmp_path_factory.mktemp("systemd"), lay) as found:
        yield found


@pytest.fixture
def system(machine: Booted) -> Iterator[Booted]:
    """Give the booted system with the service started; what the service said is shown when the test fails."""
    machine.run("systemctl", "start", SERVICE)
    # many tests restart it, and five starts in a minute are all that the unit allows
    machine.run("systemctl", "reset-failed", SERVICE, SOCKET)
    began = int(time.time())
    yield machine
    print(machine.run("journalctl", f"--since=@{began}", "--output=short-monotonic", check=False))


@pytest.fixture
def docker(machine: Booted, tmp_path: Path) -> Callable[..., str]:
    """Give a function that runs the docker CLI against the booted daemon and returns what it prints."""

    def run(*words: str) -> str:
        cli = DockerCLI(docker_clis()[-1], f"unix://{machine.root}/run/pluginsvc/pluginsvc.sock", tmp_path)
        return cli.run(*words, check=True).stdout.strip()

    return run


@pytest.fixture
def add(system: Booted, docker: Callable[..., str], folder: Callable[..., Path]) -> Iterator[Callable[..., Plugin]]:
    """Give a function that creates a plugin, sets settings and enables it; all are removed after the test."""
    names: list[str] = []

    def make(name: str, *settings: str) -> Plugin:
        docker("plugin", "create", name, str(folder()))
        names.append(name)
        if settings:
            docker("plugin", "set", name, *settings)
        docker("plugin", "enable", name)
        return Plugin(system, name, docker("plugin", "inspect", "--format", "{{.Id}}", name))

    yield make
    system.run("systemctl", "start", SERVICE)
    if names:
        docker("plugin", "rm", "-f", *names)


@pytest.fixture
def plugin(add: Callable[..., Plugin]) -> Plugin:
    """Give an enabled plugin."""
    return add("p")


@pytest.fixture
def configure(system: Booted) -> Iterator[Callable[[str], None]]:
    """Give a function that starts the daemon again with another configuration; it gets its own back after the test."""
    before = (system.root / SETTINGS).read_text()

    def use(text: str) -> None:
        (system.root / SETTINGS).write_text(text)
        system.run("systemctl", "restart", SERVICE)

    yield use
    use(before)


def main_pid(system: Booted) -> int:
    return int(system.show(SERVICE, "MainPID"))


def replaced(system: Booted, old: int) -> bool:
    """Tell whether the service is up again with another main process."""
    return system.show(SERVICE, "ActiveState") == "active" and main_pid(system) not in {0, old}


def test_unit_gets_no_mounts_of_its_own() -> None:
    """No directive stands in the unit that would keep propagated mounts from the host."""
    lines = (UNITS / SERVICE).read_text().splitlines()
    directives = {line.partition("=")[0].strip() for line in lines if "=" in line and not line.startswith(("#", ";"))}
    assert {"ExecStart", "KillMode", "Delegate"} <= directives
    assert not [name for name in directives if OWN_MOUNTS.fullmatch(name)]


def test_analyze(machine: Booted) -> None:
    """systemd finds no fault in the units, and rates the service's exposure."""
    assert not machine.run("systemd-analyze", "verify", SERVICE, SOCKET)
    rated = machine.run("systemd-analyze", "security", "--offline=true", f"/usr/lib/systemd/system/{SERVICE}")
    assert f"Overall exposure level for {SERVICE}" in rated


def test_propagated_mount_reaches_the_host(system: Booted, plugin: Plugin) -> None:
    """The daemon shares PID 1's mount namespace, and what the plugin mounts for the host is seen there."""
    where = f"/var/lib/pluginsvc/plugins/{plugin.plugin_id}/propagated-mount/data"
    mounts = [os.readlink(system.root / f"proc/{pid}/ns/mnt") for pid in (1, main_pid(system), plugin.pid)]
    assert mounts[0] == mounts[1] != mounts[2]
    plugin.call("VolumeDriver.Create", Name="data")
    assert where not in system.mounts()
    plugin.call("VolumeDriver.Mount", Name="data", ID="x")
    assert where in system.mounts()
    plugin.call("VolumeDriver.Unmount", Name="data", ID="x")
    assert where not in system.mounts()


def test_restart(system: Booted, docker: Callable[..., str], plugin: Plugin) -> None:
    """A restart leaves the plugin's process alone, and the new daemon watches over it."""
    pid, daemon = plugin.pid, main_pid(system)
    system.run("systemctl", "restart", SERVICE)
    assert replaced(system, daemon)
    assert plugin.pid == pid
    assert docker("plugin", "ls", "--format", "{{.Name}} {{.Enabled}}") == "p:latest true"
    plugin.kill()
    system.proc.wait_until(lambda: plugin.pid not in {0, pid})


def test_killed_daemon_comes_back(system: Booted, docker: Callable[..., str], plugin: Plugin) -> None:
    """A daemon that is killed is started again, and finds its plugin as it was."""
    pid, daemon = plugin.pid, main_pid(system)
    system.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", SERVICE)
    system.proc.wait_until(lambda: replaced(system, daemon))
    assert system.show(SERVICE, "NRestarts") == "1"
    assert plugin.pid == pid
    assert docker("plugin", "ls", "--format", "{{.Name}} {{.Enabled}}") == "p:latest true"


def test_killed_unit_comes_back(system: Booted, docker: Callable[..., str], plugin: Plugin) -> None:
    """Where all processes of the unit are killed, so also the plugin's monitor, the plugin is started anew."""
    pid, daemon = plugin.pid, main_pid(system)
    system.run("systemctl", "kill", "--signal=KILL", SERVICE)
    system.proc.wait_until(lambda: replaced(system, daemon))
    system.proc.wait_until(lambda: plugin.pid not in {0, pid})
    assert docker("plugin", "ls", "--format", "{{.Name}} {{.Enabled}}") == "p:latest true"


def test_socket_activation(system: Booted, docker: Callable[..., str], plugin: Plugin) -> None:
    """A client of the socket, which is for root alone, starts a service that was stopped."""
    pid = plugin.pid
    system.run("systemctl", "stop", SERVICE)
    assert system.show(SOCKET, "ActiveState") == "active"
    assert (system.root / "run/pluginsvc/pluginsvc.sock").stat().st_mode & 0o777 == 0o660
    assert docker("plugin", "ls", "--format", "{{.Name}} {{.Enabled}}") == "p:latest true"
    assert main_pid(system)
    system.proc.wait_until(lambda: system.show(SERVICE, "ActiveState") == "active")
    assert plugin.pid == pid


def test_reload(system: Booted, docker: Callable[..., str]) -> None:
    """A reload takes over what may change, in the same process, and systemd is told of its begin and its end."""
    daemon = main_pid(system)
    settings = system.root / SETTINGS

    def insecure() -> str:
        return docker("info", "--format", "{{json .RegistryConfig.IndexConfigs}}")

    assert "one.test" not in insecure()
    settings.write_text('insecure-registries = ["one.test:5000"]\n')
    system.run("systemctl", "reload", SERVICE)
    system.proc.wait_until(lambda: system.show(SERVICE, "StatusText") == "configuration read again")
    assert "one.test" in insecure()
    # a signal from elsewhere is no job of systemd's: that it was a reload, only the daemon can have told
    settings.write_text('insecure-registries = ["two.test:5000"]\n')
    before = system.show(SERVICE, "StateChangeTimestampMonotonic")
    system.run("systemctl", "kill", "--kill-whom=main", "--signal=HUP", SERVICE)
    system.proc.wait_until(lambda: system.show(SERVICE, "StateChangeTimestampMonotonic") != before)
    system.proc.wait_until(lambda: system.show(SERVICE, "ActiveState") == "active")
    assert "two.test" in insecure()
    assert main_pid(system) == daemon


def test_watchdog(system: Booted, docker: Callable[..., str], plugin: Plugin) -> None:
    """A daemon that works gives signs of life, one whose loop hangs is replaced; its plugin does not notice."""
    drop_in = system.root / f"run/systemd/system/{SERVICE}.d/watchdog.conf"
    drop_in.parent.mkdir(parents=True)
    # it is made to abort, and the machine collects no core of that
    drop_in.write_text(
        "[Service]\nWatchdogSec=2\nLimitCORE=0\nExecStart=\nExecStart=/usr/bin/hanging serve --host fd://\n"
    )
    try:
        system.run("systemctl", "daemon-reload")
        system.run("systemctl", "restart", SERVICE)
        pid, daemon = plugin.pid, main_pid(system)
        first = system.show(SERVICE, "WatchdogTimestampMonotonic")
        system.proc.wait_until(lambda: system.show(SERVICE, "WatchdogTimestampMonotonic") != first)
        assert main_pid(system) == daemon
        hung = int(time.time())
        system.run("systemctl", "kill", "--kill-whom=main", "--signal=USR2", SERVICE)
        system.proc.wait_until(lambda: replaced(system, daemon))
        assert "Watchdog timeout" in system.run("journalctl", f"--since=@{hung}", f"--unit={SERVICE}")
        assert system.show(SERVICE, "NRestarts") == "1"
        assert plugin.pid == pid
        assert docker("plugin", "ls", "--format", "{{.Name}} {{.Enabled}}") == "p:latest true"
        # it is watched again
        plugin.kill()
        system.proc.wait_until(lambda: plugin.pid not in {0, pid})
    finally:
        shutil.rmtree(drop_in.parent)
        system.run("systemctl", "daemon-reload")
        system.run("systemctl", "restart", SERVICE)


@pytest.mark.parametrize("how", ["reboot", "power cut"])
def test_reboot(system: Booted, add: Callable[..., Plugin], how: str) -> None:
    """After a reboot wished plugins are up before units ordered after ours start; what cannot start holds up nobody."""
    (system.root / "run/seed").mkdir(exist_ok=True)
    # the first listens late, the second lacks something after the reboot, the third has ended and is not started again
    plugin, broken, ended = add("p", "FAULT=slow:1000"), add("broken", "seed.source=/run/seed"), add("ended")
    Api(system.root / "run/pluginsvc/pluginsvc.sock").ok(
        "POST", "/pluginsvc/v1/plugins/ended/update", document={"restart": "no"}
    )
    ended.kill()
    address = f"/run/pluginsvc/plugins/{plugin.plugin_id}/sample.sock"
    unit = NEEDY.format(service=SERVICE, python=PYTHON, socket=address)
    (system.root / "usr/lib/systemd/system/needy.service").write_text(unit)
    system.run("systemctl", "enable", SERVICE, "needy.service")
    system.run("systemctl", "restart", SERVICE)
    assert [each.pid != 0 for each in (plugin, broken, ended)] == [True, True, False]

    if how == "power cut":
        system.cut()
    else:
        system.shut_down()
    system.boot()

    assert system.show("needy.service", "ExecMainStatus") == "0"
    started, ready, needed = (
        int(system.show(unit, f"{name}TimestampMonotonic"))
        for unit, name in ((SERVICE, "ExecMainStart"), (SERVICE, "ActiveEnter"), ("needy.service", "ExecMainStart"))
    )
    assert started + 1_000_000 < ready <= needed
    assert ready < started + 9_000_000
    assert system.show(SERVICE, "StatusText").startswith("3 plugins")
    assert plugin.call("Plugin.Activate") == {"Implements": ["VolumeDriver"]}
    assert [each.pid != 0 for each in (plugin, broken, ended)] == [True, False, True]
    # the wish stands, so what was lacking may come late
    (system.root / "run/seed").mkdir()
    system.proc.wait_until(lambda: broken.pid != 0)
    system.run("systemctl", "disable", "needy.service")


def test_reboot_without_a_new_boot_id(system: Booted, plugin: Plugin) -> None:
    """Where the kernel goes on, as below a container that is booted again, wished plugins are up again all the same."""
    system.run("systemctl", "enable", SERVICE)
    system.shut_down()
    system.boot(system.boot_id)
    assert plugin.call("Plugin.Activate") == {"Implements": ["VolumeDriver"]}
    assert system.show(SERVICE, "ActiveState") == "active"


def test_plugins_stop_before_the_machine(
    system: Booted, configure: Callable[[str], None], add: Callable[..., Plugin]
) -> None:
    """When the machine goes down plugins are stopped, or one that heeds no TERM would hold that up for 90 s."""
    configure("stop-timeout = 0.5\n")
    plugin = add("p", "FAULT=hang")
    system.run("systemctl", "enable", SERVICE)
    system.shut_down()
    system.boot()
    assert plugin.pid


def test_stop_takes_plugins_along(system: Booted, add: Callable[..., Plugin], configure: Callable[[str], None]) -> None:
    """Told to stop plugins too, a stop ends even those that heed no TERM, side by side within one deadline."""
    configure('shutdown = "stop"\nshutdown-timeout = 4\n')
    plugins = [add(name) for name in ("p", "q", "r")]
    plugins[0].call("VolumeDriver.Create", Name="data")
    plugins[0].call("VolumeDriver.Mount", Name="data", ID="x")
    # who is stopped heeds no TERM
    for plugin in plugins:
        plugin.signal("STOP")
    began = time.monotonic()
    system.run("systemctl", "stop", SERVICE)
    took = time.monotonic() - began
    assert [plugin.pid for plugin in plugins] == [0, 0, 0]
    # half of the deadline is for TERM, so it would not do for one after the other
    assert 1.5 < took < 4.0
    assert system.show(SERVICE, "Result") == "success"
    assert "conmon" not in system.processes().values()
    assert not [point for point in system.mounts() if "pluginsvc" in point]
    system.run("systemctl", "start", SERVICE)
    assert 0 not in [plugin.pid for plugin in plugins]


def test_second_term_hurries(system: Booted, plugin: Plugin, configure: Callable[[str], None]) -> None:
    """A second TERM ends a stop at once that would wait for a plugin."""
    configure('shutdown = "stop"\n')
    plugin.signal("STOP")
    pid = plugin.pid
    began = time.monotonic()
    system.run("systemctl", "stop", "--no-block", SERVICE)
    system.proc.wait_until(lambda: system.show(SERVICE, "StatusText") == "shutting down")
    assert plugin.pid == pid
    system.run("systemctl", "kill", "--kill-whom=main", "--signal=TERM", SERVICE)
    system.proc.wait_until(lambda: system.show(SERVICE, "ActiveState") == "inactive")
    # a plugin gets 10 s by default
    assert time.monotonic() - began < 5.0
    assert not plugin.pid
    assert system.show(SERVICE, "Result") == "success"


def test_second_term_hurries_who_disables(system: Booted, plugin: Plugin) -> None:
    """A second TERM also ends a wait for a plugin that began before the stop, and the disable is done."""
    api = system.root / "run/pluginsvc/pluginsvc.sock"
    plugin.signal("STOP")
    connection = Connection(api)
    connection.request("POST", "/plugins/p/disable")
    system.proc.wait_until(lambda: Api(api).ok("GET", "/pluginsvc/v1/plugins/p/json")["State"] == "stopping")
    began = time.monotonic()
    system.run("systemctl", "stop", "--no-block", SERVICE)
    system.proc.wait_until(lambda: system.show(SERVICE, "StatusText") == "shutting down")
    system.run("systemctl", "kill", "--kill-whom=main", "--signal=TERM", SERVICE)
    system.proc.wait_until(lambda: system.show(SERVICE, "ActiveState") == "inactive")
    connection.close()
    assert time.monotonic() - began < 5.0
    system.run("systemctl", "start", SERVICE)
    assert not plugin.pid
    assert not Api(api).plugins()[0]["Enabled"]


def test_stop(system: Booted, docker: Callable[..., str], folder: Callable[..., Path]) -> None:
    """A stop is a success and, when no plugin is left, leaves no process and no mount; a restart of all works."""
    docker("plugin", "create", "q", str(folder()))
    docker("plugin", "enable", "q")
    docker("plugin", "rm", "-f", "q")
    system.run("systemctl", "stop", SERVICE, SOCKET)
    for unit, name, value in (
        (SERVICE, "ActiveState", "inactive"),
        (SERVICE, "Result", "success"),
        (SERVICE, "ExecMainStatus", "0"),
        (SOCKET, "ActiveState", "inactive"),
    ):
        assert system.show(unit, name) == value
    assert sorted(system.processes().values()) == ["systemd", "systemd-journal"]
    assert not [point for point in system.mounts() if "pluginsvc" in point]
    system.run("systemctl", "start", SERVICE)
    assert docker("plugin", "ls", "-q") == ""

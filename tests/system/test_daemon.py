"""The daemon's own life: restarts, kills, shut-downs, locks, reloads; plugins outlive it (REF 3.6, design §3)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support import parts, procs
from tests.support.daemon import PROGRAM, Daemon, running_daemon
from tests.support.docker_cli import DockerCLI, docker_clis

pytestmark = pytest.mark.root

Folder = Callable[..., Path]


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Give each test a daemon of its own, since it will be killed."""
    with running_daemon() as found:
        yield found


def plugin_pid(daemon: Daemon, plugin_id: str) -> int:
    """Return the process of a running plugin, 0 if there is none."""
    try:
        pid = int((daemon.run / "instances" / plugin_id / "pid").read_text())
        running = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, ValueError):
        return 0
    return pid if running else 0


def is_gone(daemon: Daemon, plugin_id: str, pid: int) -> bool:
    return plugin_pid(daemon, plugin_id) != pid


def created(daemon: Daemon, folder: Folder, name: str = "p", **config: object) -> str:
    """Create a plugin; return its ID."""
    cli = daemon.cli()
    cli.run("plugin", "create", name, str(folder(**config)), check=True)
    return cli.run("plugin", "inspect", "--format", "{{.Id}}", name, check=True).stdout.strip()


def enabled(cli: DockerCLI, name: str = "p") -> str:
    return cli.run("plugin", "inspect", "--format", "{{.Enabled}}", name, check=True).stdout.strip()


def since_zero(cli: DockerCLI) -> list[str]:
    """Return the actions of all events there ever were."""
    done = cli.run("events", "--since", "0", "--until", str(time.time()), "--format", "{{.Action}}", check=True)
    return done.stdout.split()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_plugins_outlive_the_daemon(daemon: Daemon, folder: Folder, how: str) -> None:
    """After TERM or KILL of the daemon the plugin's process lives; a new daemon takes it over, disables and removes."""
    plugin_id = created(daemon, folder)
    cli = daemon.cli()
    cli.run("plugin", "enable", "p", check=True)
    pid = plugin_pid(daemon, plugin_id)
    assert pid
    getattr(daemon, how)()
    assert plugin_pid(daemon, plugin_id) == pid
    daemon.start()
    assert enabled(cli) == "true"
    assert plugin_pid(daemon, plugin_id) == pid
    assert since_zero(cli) == ["create", "enable"]
    cli.run("plugin", "disable", "p", check=True)
    assert plugin_pid(daemon, plugin_id) == 0
    cli.run("plugin", "rm", "p", check=True)


def test_a_disabled_plugin_stays_disabled(daemon: Daemon, folder: Folder) -> None:
    """A restart changes neither the list nor the state."""
    created(daemon, folder)
    daemon.stop()
    daemon.start()
    assert enabled(daemon.cli()) == "false"


def test_without_live_restore_plugins_stop_and_come_back(folder: Folder, tmp_path: Path) -> None:
    """Told to stop plugins, TERM stops plugins but not their wish: the next start brings them back."""
    config = tmp_path / "c.toml"
    config.write_text('shutdown = "stop"\n')
    with running_daemon("--config", str(config)) as daemon:
        plugin_id = created(daemon, folder)
        daemon.cli().run("plugin", "enable", "p", check=True)
        before = plugin_pid(daemon, plugin_id)
        assert daemon.stop() == 0
        assert plugin_pid(daemon, plugin_id) == 0
        assert daemon.mounts() == []
        daemon.start()
        procs.wait_until(lambda: plugin_pid(daemon, plugin_id) not in {0, before})
        assert enabled(daemon.cli()) == "true"


def test_a_plugin_that_died_while_nobody_watched_is_started(daemon: Daemon, folder: Folder) -> None:
    """A plugin killed while the daemon was down is noticed at the next start; READY waits for its restart."""
    plugin_id = created(daemon, folder)
    daemon.cli().run("plugin", "enable", "p", check=True)
    pid = plugin_pid(daemon, plugin_id)
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    procs.wait_until(lambda: plugin_pid(daemon, plugin_id) == 0)
    daemon.start()
    procs.wait_until(lambda: daemon.log().count("daemon.ready") == 2)
    assert plugin_pid(daemon, plugin_id) not in {0, pid}
    assert enabled(daemon.cli()) == "true"


def test_everything_gone_from_run_as_after_a_reboot(daemon: Daemon, folder: Folder) -> None:
    """With RUN emptied and the process gone, a wished plugin starts afresh."""
    plugin_id = created(daemon, folder)
    daemon.cli().run("plugin", "enable", "p", check=True)
    pid = plugin_pid(daemon, plugin_id)
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    procs.wait_until(lambda: not daemon.processes())
    subprocess.run(["umount", "-l", *daemon.mounts()], check=True)
    shutil.rmtree(daemon.run)
    daemon.start()
    procs.wait_until(lambda: plugin_pid(daemon, plugin_id) not in {0, pid})


def test_a_crashing_plugin_is_restarted_with_growing_pauses(daemon: Daemon, folder: Folder) -> None:
    """Each crash is followed by a start; disable ends that for good."""
    plugin_id = created(daemon, folder)
    cli = daemon.cli()
    cli.run("plugin", "enable", "p", check=True)
    seen: set[int] = set()
    for _ in range(3):
        procs.wait_until(lambda: plugin_pid(daemon, plugin_id) not in {0, *seen})
        pid = plugin_pid(daemon, plugin_id)
        seen.add(pid)
        os.kill(pid, signal.SIGKILL)
    procs.wait_until(lambda: plugin_pid(daemon, plugin_id) not in {0, *seen})
    cli.run("plugin", "disable", "p", check=True)
    assert plugin_pid(daemon, plugin_id) == 0
    assert since_zero(cli) == ["create", "enable", "disable"]


def test_a_crash_leaves_the_plugins_mounts(daemon: Daemon, folder: Folder) -> None:
    """What a plugin has mounted for the host is still there after its crash and restart; disable takes it away."""
    plugin_id = created(daemon, folder)
    cli = daemon.cli()
    cli.run("plugin", "enable", "p", check=True)
    point = daemon.root / "plugins" / plugin_id / "propagated-mount" / "volume"
    assert point.parent.stat().st_mode & 0o777 == 0o755
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], check=True)
    (point / "data").write_text("kept")
    pid = plugin_pid(daemon, plugin_id)
    os.kill(pid, signal.SIGKILL)
    procs.wait_until(lambda: plugin_pid(daemon, plugin_id) not in {0, pid})
    assert (point / "data").read_text() == "kept"
    cli.run("plugin", "disable", "p", check=True)
    assert daemon.mounts() == []


def test_stop_with_a_plugin_that_waits_for_its_next_start(folder: Folder, tmp_path: Path) -> None:
    """Told to stop plugins, TERM leaves nothing running though one plugin is between two starts."""
    config = tmp_path / "c.toml"
    config.write_text('shutdown = "stop"\n')
    with running_daemon("--config", str(config)) as daemon:
        plugin_id = created(daemon, folder)
        cli = daemon.cli()
        cli.run("plugin", "enable", "p", check=True)
        for _ in range(3):
            procs.wait_until(lambda: plugin_pid(daemon, plugin_id) != 0)
            pid = plugin_pid(daemon, plugin_id)
            os.kill(pid, signal.SIGKILL)
            procs.wait_until(partial(is_gone, daemon, plugin_id, pid))
        assert daemon.stop() == 0
        assert daemon.processes() == {}
        assert daemon.mounts() == []
        daemon.start()


def test_run_can_be_passed_by_the_sockets_group() -> None:
    """RUN, where the socket is by default, may be passed by others and read by nobody; ROOT is closed."""
    with running_daemon() as daemon:
        assert daemon.run.stat().st_mode & 0o777 == 0o711
        assert daemon.root.stat().st_mode & 0o777 == 0o700


def test_disable_during_back_off(daemon: Daemon, folder: Folder) -> None:
    """A plugin that waits for its next start can be disabled at once, and stays down."""
    plugin_id = created(daemon, folder)
    cli = daemon.cli()
    cli.run("plugin", "enable", "p", check=True)
    for _ in range(4):
        procs.wait_until(lambda: plugin_pid(daemon, plugin_id) != 0)
        pid = plugin_pid(daemon, plugin_id)
        os.kill(pid, signal.SIGKILL)
        procs.wait_until(partial(is_gone, daemon, plugin_id, pid))
    cli.run("plugin", "disable", "p", check=True)
    assert plugin_pid(daemon, plugin_id) == 0
    cli.run("plugin", "rm", "p", check=True)


@pytest.mark.parametrize(
    ("fault", "says"),
    [("exit", "exited with code 3 before its socket accepted a connection"), ("nosocket", "did not become ready")],
)
def test_enable_says_why_it_failed(daemon: Daemon, folder: Folder, fault: str, says: str) -> None:
    """A plugin that dies fails enable at once with its last lines; one without a socket when its time is up."""
    plugin_id = created(daemon, folder)
    cli = daemon.cli()
    cli.run("plugin", "set", "p", f"FAULT={fault}", check=True)
    began = time.monotonic()
    done = cli.run("plugin", "enable", "--timeout", "1", "p")
    took = time.monotonic() - began
    assert done.returncode != 0
    assert says in done.stderr
    assert took < 5 if fault == "exit" else 1 <= took < 8
    assert enabled(cli) == "false"
    assert plugin_pid(daemon, plugin_id) == 0
    assert daemon.mounts() == []
    assert "enable" not in since_zero(cli)


def test_enable_interrupted_by_a_crash_counts_as_failed(daemon: Daemon, folder: Folder) -> None:
    """A daemon killed while a plugin starts leaves it running; the next start stops it and the plugin is disabled."""
    plugin_id = created(daemon, folder)
    cli = daemon.cli()
    cli.run("plugin", "set", "p", "FAULT=nosocket", check=True)
    enabling = subprocess.Popen(
        [cli.path, "plugin", "enable", "p"], env=parts.env() | {"DOCKER_HOST": daemon.host}, stderr=subprocess.DEVNULL
    )
    procs.wait_until(lambda: plugin_pid(daemon, plugin_id) != 0)
    daemon.kill()
    enabling.wait(10)
    daemon.start()
    assert enabled(cli) == "false"
    assert plugin_pid(daemon, plugin_id) == 0
    assert daemon.mounts() == []


def test_a_second_daemon_is_refused(daemon: Daemon) -> None:
    """A second daemon on the same directories ends at once, says why, and harms nothing."""
    words: list[str | Path] = [
        PROGRAM,
        "serve",
        "--root",
        daemon.root,
        "--run-root",
        daemon.run,
        "--host",
        f"unix://{daemon.top}/b.sock",
        "--publish-dir",
        "none",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert f"another pluginsvc uses {daemon.root}" in done.stderr
    assert "Traceback" not in done.stderr
    daemon.cli().run("plugin", "ls", check=True)


def test_a_daemon_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    """A group that is not there, and a user who is not root, are told without a traceback."""
    words: list[str | Path] = [PROGRAM, "serve", "--root", tmp_path / "r", "--run-root", tmp_path / "n"]
    words += ["--host", f"unix://{tmp_path}/s.sock", "--publish-dir", "none"]
    done = subprocess.run([*words, "--group", "nope"], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith("there is no group 'nope': create it or set another group")
    loaded = [sys.executable, "-c", "import os; from pluginsvc import daemon, config; os.seteuid(65534); "]
    loaded[-1] += "daemon.run(config.Settings(), config.Settings)"
    done = subprocess.run(loaded, capture_output=True, text=True, timeout=20, check=False)
    assert "NotRoot: the daemon has to run as root" in done.stderr


def test_hup_takes_over_what_may_change(tmp_path: Path) -> None:
    """HUP changes the insecure registries; a broken file is refused and changes nothing."""
    config = tmp_path / "c.toml"
    config.write_text('insecure-registries = ["one.test:5000"]\n')

    with running_daemon("--config", str(config)) as daemon:

        def reload(text: str, wanted: str) -> None:
            config.write_text(text)
            assert daemon.proc
            daemon.proc.signal(signal.SIGHUP)
            procs.wait_until(lambda: wanted in daemon.log())

        reload('insecure-registries = ["two.test:5000"]\ngzip-level = 3\n', "daemon.reloaded")
        assert "changed=['insecure_registries'] needs_restart=['gzip_level']" in daemon.log()
        reload("insecure-registry = ['typo']\n", "daemon.reload_refused")
        reload('registry-mirrors = ["https://m.test/path"]\n', "registry-mirrors: 'https://m.test/path' is not")
        info = json.loads(daemon.cli().run("info", "--format", "{{json .RegistryConfig.IndexConfigs}}").stdout)
        assert "two.test:5000" in info


@contextmanager
def silent_guard(folder: Path, config: Path) -> Iterator[socket.socket]:
    """Name in a configuration a legacy plugin that takes connections and never answers; give its socket."""
    with socket.socket(socket.AF_UNIX) as guard:
        guard.bind(str(folder / "guard.sock"))
        guard.listen()
        guard.settimeout(30)
        config.write_text(f"legacy-dirs = ['{folder}']\n[authorization]\nplugins = ['guard']\n")
        yield guard


def test_term_is_heard_while_guards_are_looked_for(tmp_path: Path) -> None:
    """TERM ends a daemon that looks for those that guard it at once and in good order: at a start, and at a reload."""
    config = tmp_path / "c.toml"
    config.touch()
    with tempfile.TemporaryDirectory() as folder, running_daemon("--config", str(config)) as daemon:
        config.write_text(f"legacy-dirs = ['{folder}']\n")
        assert daemon.stop() == 0
        daemon.start()
        with silent_guard(Path(folder), config) as guard:
            assert daemon.proc
            daemon.proc.signal(signal.SIGHUP)
            guard.accept()[0].close()
            daemon.proc.signal(signal.SIGTERM)
            assert daemon.proc.wait() == 0
            assert "daemon.reload" not in daemon.log()
            words: list[str | Path] = [PROGRAM, *daemon.serve(), *daemon.flags]
            proc = procs.start(words, log=tmp_path / "log", env=parts.env())
            try:
                connection, _ = guard.accept()
                proc.signal(signal.SIGTERM)
                # much less than for how long it would go on asking
                assert proc.wait(timeout=10) == 0
                connection.close()
            finally:
                proc.end()
            lines = (tmp_path / "log").read_text().splitlines()
            assert [line.split()[3] for line in lines[-2:]] == ["daemon.stopping", "daemon.stopped"]
            assert not procs.accepts(daemon.socket)
        config.write_text("")
        daemon.start()


def test_socket_mode_and_stale_socket(daemon: Daemon) -> None:
    """The API's socket is for its group only; a stale one of a killed daemon is taken over, a live one is not."""
    assert daemon.socket.stat().st_mode & 0o777 == 0o660
    daemon.kill()
    assert daemon.socket.exists()
    daemon.start()
    other: list[str | Path] = [
        PROGRAM,
        "serve",
        "--root",
        daemon.top / "r2",
        "--run-root",
        daemon.top / "n2",
        "--host",
        daemon.host,
        "--publish-dir",
        "none",
    ]
    done = subprocess.run(other, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "another process is listening there" in done.stderr
    daemon.cli().run("plugin", "ls", check=True)


# what systemd does: the socket is descriptor 3, and LISTEN_PID is the daemon's own
STARTER = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.dup2(int(sys.argv[1]), 3)
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_socket_activation_and_notifications(tmp_path: Path) -> None:
    """With fd:// the daemon serves the inherited socket, says READY, and STOPPING when it is told to end."""
    env = parts.env() | {"LISTEN_FDS": "1", "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, socket.socket(socket.AF_UNIX) as api:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(15)
        api.bind(str(tmp_path / "api.sock"))
        api.listen()
        words: list[str | Path] = [PROGRAM.with_name("python"), "-c", STARTER, str(api.fileno())]
        words += [PROGRAM, "serve", "--host", "fd://"]
        words += ["--root", tmp_path / "root", "--run-root", tmp_path / "run", "--publish-dir", "none"]
        daemon = procs.start(words, log=tmp_path / "log", env=env, pass_fds=[api.fileno()])
        try:
            said = [notify.recv(1000), notify.recv(1000)]
            assert any(text.startswith(b"READY=1") for text in said)
            assert b"WATCHDOG=1" in said
            DockerCLI(docker_clis()[-1], f"unix://{tmp_path}/api.sock", tmp_path).run("plugin", "ls", check=True)
            daemon.signal(signal.SIGHUP)
            while not notify.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC="):
                pass
            daemon.signal(signal.SIGTERM)
            while not notify.recv(1000).startswith(b"STOPPING=1"):
                pass
            assert daemon.wait() == 0
        finally:
            daemon.end()
    assert (tmp_path / "api.sock").exists()

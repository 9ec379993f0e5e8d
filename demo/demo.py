"""`make demo`: a real plugin's whole life with the docker CLI, in a temporary root that is gone afterwards."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support import parts, procs
from tests.support.docker_cli import docker_clis
from tests.support.registry import start_registry
from tests.support.sample import build_sample_plugin

BOLD, DIM, GREEN, PLAIN = ("\033[1m", "\033[2m", "\033[32m", "\033[0m") if sys.stdout.isatty() else ("",) * 4


class DemoError(Exception):
    """Something did not happen as shown; the message says what."""


def say(text: str) -> None:
    """Print a step's headline."""
    print(f"\n{BOLD}== {text}{PLAIN}", flush=True)


def expect(found: bool, what: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Print what was checked, or end the demo."""
    if not found:
        raise DemoError(what)
    print(f"{GREEN}   ok: {what}{PLAIN}", flush=True)


class Docker:
    """The stock docker CLI, its output shown to the person who watches."""

    def __init__(self, path: Path, address: str, config: Path) -> None:
        self._path = path
        self._env = os.environ | {"DOCKER_HOST": address, "DOCKER_CONFIG": str(config)}

    def show(self, *words: str) -> None:
        """Run a command in the foreground; a failure ends the demo."""
        print(f"{DIM}$ docker {' '.join(words)}{PLAIN}", flush=True)
        if subprocess.run([self._path, *words], env=self._env, check=False, timeout=60).returncode:
            raise DemoError(f"docker {' '.join(words)} failed")

    def ask(self, *words: str) -> str:
        """Run a command and return what it prints."""
        done = subprocess.run(
            [self._path, *words], env=self._env, check=True, timeout=60, capture_output=True, text=True
        )
        return done.stdout.strip()

    def remove_all(self) -> None:
        """Remove whatever plugins a failed demo has left."""
        if ids := self.ask("plugin", "ls", "-q", "--no-trunc").split():
            self.ask("plugin", "rm", "-f", *ids)

    @contextmanager
    def events(self) -> Iterator[Callable[[], list[str]]]:
        """Print events as they happen; gives a function that returns those seen so far."""
        seen: list[str] = []
        follower = subprocess.Popen(
            [self._path, "events", "--since", "0", "--format", "{{.Action}} {{.Actor.Attributes.name}}"],
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

        def follow() -> None:
            for line in follower.stdout or ():
                seen.append(line.strip())
                print(f"{DIM}   event: {line.strip()}{PLAIN}", flush=True)

        reader = threading.Thread(target=follow)
        reader.start()
        try:
            yield lambda: seen
        finally:
            follower.terminate()
            follower.wait(10)
            reader.join(10)


class UnixConnection(http.client.HTTPConnection):
    """HTTP to a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("plugin", timeout=5)
        self._path = path

    def connect(self) -> None:
        """Connect to the path instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        # a path longer than 107 bytes goes through its directory's descriptor
        fd = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock.connect(f"/proc/self/fd/{fd}/{self._path.name}")
        finally:
            os.close(fd)


def call(path: Path, method: str, **body: str) -> dict[str, object]:
    """Call a plugin as an engine would, and print both sides."""
    connection = UnixConnection(path)
    connection.request("POST", f"/{method}", json.dumps(body))
    answer = json.loads(connection.getresponse().read())
    connection.close()
    print(f"   /{method} {json.dumps(body)} -> {json.dumps(answer)}", flush=True)
    assert isinstance(answer, dict)
    return answer


def answers(path: Path) -> bool:
    """Tell whether somebody accepts connections there."""
    connection = UnixConnection(path)
    try:
        connection.connect()
    except OSError:
        return False
    finally:
        connection.close()
    return True


def soon(check: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    """Wait until ``check`` holds, then say so; end the demo if it never does."""
    deadline = time.monotonic() + seconds
    while not check() and time.monotonic() < deadline:
        time.sleep(0.02)
    expect(check(), what)


def serve(top: Path, socket_path: Path) -> procs.Proc:
    """Start the daemon and wait until it listens."""
    program = Path(sys.executable).with_name("pluginsvc")
    words: list[str | Path] = [program, "serve", "--root", top / "root", "--run-root", top / "run"]
    words += ["--publish-dir", top / "published", "--host", f"unix://{socket_path}"]
    daemon = procs.start(words, log=top / "daemon.log", env=dict(os.environ))
    daemon.wait_until(lambda: procs.accepts(socket_path))
    return daemon


def life(top: Path, stack: ExitStack) -> None:
    """Take the sample plugin through its whole life."""
    say("a loopback registry, and pluginsvc with a root of its own")
    registry = stack.enter_context(start_registry(top))
    address = top / "api.sock"
    daemon = serve(top, address)
    stack.callback(lambda: daemon.end())  # noqa: PLW0108 - the daemon of that moment, not this one
    docker = Docker(docker_clis()[-1], f"unix://{address}", top / "docker")
    stack.callback(docker.remove_all)
    docker.show("version", "--format", "client {{.Client.Version}}, server {{.Server.Version}}")
    stack.enter_context(docker.events())
    name = f"{registry.host}/demo/volumes"
    folder = build_sample_plugin(top / "v1", version="1")
    newer = build_sample_plugin(top / "v2", version="2")

    say("create, look, push, remove")
    docker.show("plugin", "create", name, str(folder))
    docker.show("plugin", "ls")
    docker.show("plugin", "inspect", "--format", "{{.Name}} {{.Config.Interface.Types}} {{.Settings.Env}}", name)
    docker.show("plugin", "push", name)
    docker.show("plugin", "create", f"{name}:2", str(newer))
    docker.show("plugin", "push", f"{name}:2")
    docker.show("plugin", "rm", name, f"{name}:2")
    expect(docker.ask("plugin", "ls", "-q") == "", "no plugin is left")

    say("install from the registry: privileges, pull, set, enable")
    docker.show("plugin", "install", "--grant-all-permissions", name, "DEBUG=1")
    plugin_id = docker.ask("plugin", "inspect", "--format", "{{.Id}}", name)
    plugin = top / "run" / "plugins" / plugin_id / "sample.sock"
    call(plugin, "Plugin.Activate")
    call(plugin, "VolumeDriver.Create", Name="data")
    where = call(plugin, "VolumeDriver.Mount", Name="data", ID="demo")["Mountpoint"]
    call(plugin, "VolumeDriver.List")
    host_side = top / "root" / "plugins" / plugin_id / "propagated-mount" / "data"
    expect(os.path.ismount(host_side), f"what the plugin mounted at {where} is seen by the host")
    call(plugin, "VolumeDriver.Unmount", Name="data", ID="demo")
    expect(not os.path.ismount(host_side), "and gone again after Unmount")

    say("kill -9 the daemon: the plugin does not notice, and a new daemon finds it")
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    call(plugin, "VolumeDriver.Get", Name="data")
    daemon = serve(top, address)
    docker.show("plugin", "ls")
    expect(docker.ask("plugin", "inspect", "--format", "{{.Enabled}}", name) == "true", "it is still enabled")
    call(plugin, "VolumeDriver.Capabilities")

    say("a crash of the plugin: it is started again")
    before = pids_of("sample-volume-plugin")
    os.kill(before[0], signal.SIGKILL)
    soon(lambda: bool(set(pids_of("sample-volume-plugin")) - set(before)), "a new process runs")
    soon(lambda: answers(plugin), "and answers")

    say("disable, set, upgrade, enable")
    follower = stack.enter_context(docker.events())
    docker.show("plugin", "disable", name)
    docker.show("plugin", "set", name, "DEBUG=0")
    docker.show("plugin", "upgrade", "--grant-all-permissions", "--skip-remote-check", name, f"{name}:2")
    docker.show("plugin", "enable", name)
    docker.show("plugin", "inspect", "--format", "{{.Name}} {{.PluginReference}} {{.Settings.Env}}", name)
    listed = call(plugin, "VolumeDriver.List")["Volumes"]
    expect(bool(listed), "the volume outlived the upgrade")

    say("remove it while it runs")
    docker.show("plugin", "rm", "--force", name)
    wanted = ["create", "pull", "enable", "disable", "remove"]
    # create and pull happened before the kill: the journal replays them
    soon(
        lambda: {line.split()[0] for line in follower()} >= set(wanted), "the event stream shows all, also from before"
    )


def pids_of(program: str) -> list[int]:
    """Return the processes that run a program of that name."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(folder / "exe")).name == program:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def leftovers(top: Path) -> list[str]:
    """Return what still belongs to the demo: processes and mounts."""
    found = [
        f"mount {line.split()[4]}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(top) in line
    ]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if str(top) in words and int(folder.name) != os.getpid():
            found.append(f"process {folder.name}: {words}")
    return found


def main() -> None:
    """Run the demo; exit 0 when all went as shown and nothing is left."""
    if os.geteuid() != 0:
        sys.exit("demo: run it as root: it starts a real plugin under runc (sudo make demo)")
    os.environ.update(parts.env())
    began = time.monotonic()
    top = Path(tempfile.mkdtemp(prefix="pluginsvc-demo-"))
    try:
        with ExitStack() as stack:
            life(top, stack)
        say("what is left behind")
        soon(lambda: not leftovers(top), "no process and no mount")
        shutil.rmtree(top)
        expect(not top.exists(), "no file")
    except (DemoError, AssertionError, subprocess.SubprocessError, OSError) as exc:
        log = top / "daemon.log"
        print(log.read_text()[-4000:] if log.exists() else "", file=sys.stderr)
        sys.exit(f"demo: failed: {exc}; leftovers, if any, are in {top}: {leftovers(top)}")
    print(f"\n{BOLD}done in {time.monotonic() - began:.1f} s{PLAIN}")


if __name__ == "__main__":
    main()

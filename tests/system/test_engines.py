"""Real engines with a volume plugin that our daemon installed: Podman by its drop-in, dockerd as a v1 plugin."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import podman
from tests.support.daemon import Daemon, clean
from tests.support.docker_cli import DockerCLI, docker_clis
from tests.support.dockerd import dockerd
from tests.support.podman import Podman
from tests.support.registry import Registry
from tests.support.sample import build_sample_plugin
from tests.support.unruly import Plugin, compiled
from tests.support.wire import Api, pack

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

NAME, ALIAS = "data/vol", "data-vol"
CGROUP = "pluginsvc-test-engines"
# no systemd and no cgroups; the limits that Podman sets by default are above those of a test in a container
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
PODMAN_RUN = ("run", "--rm", "--cgroups=disabled", "--network=host", *LIMITS)
DOCKER_RUN = ("run", "--rm", "--network=host", f"--cgroup-parent=/{CGROUP}")


class Host(NamedTuple):
    """What all tests share.

    Attributes:
        top: holds everything; what is mounted below it is seen in the engines' mount namespaces as well.
        daemon: ours, with `podman-conf`, `spec-dir` and `publish-mounts`.
        remotes: two versions of a plugin in the registry, of which the first is installed and enabled.
        plugin: it.
    """

    top: Path
    daemon: Daemon
    remotes: list[str]
    plugin: Plugin

    @property
    def places(self) -> dict[str, Path]:
        """Where engines look, and what is there."""
        return {
            "/etc/containers/containers.conf.d": self.top / "conf.d",
            "/run/docker/plugins": self.daemon.published,
            "/etc/docker/plugins": self.top / "spec",
        }

    @property
    def volumes(self) -> Path:
        """Where the plugin's volumes are on the host; the plugin itself says ``TOP/mnt/state``."""
        return self.daemon.root / "plugins" / self.plugin.id / "propagated-mount"

    def seen(self, pid: str, volume: str) -> str:
        """Return what a running container has in ``/data/file``, once it is seen that this is what the plugin mounted.

        In a changed root, where these tests have to work, no engine can exec into a container.
        """
        place = Path(f"/proc/{pid}/root/data")
        assert os.path.ismount(self.volumes / volume)
        assert place.stat().st_dev == (self.volumes / volume).stat().st_dev
        return (place / "file").read_text()


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    """Give a folder with a short path, from which mounts reach other namespaces as they do from a host's root."""
    found = Path(tempfile.mkdtemp(prefix="pluginsvc-engines-"))
    subprocess.run(["mount", "--bind", found, found], check=True)
    subprocess.run(["mount", "--make-shared", found], check=True)
    try:
        yield found
    finally:
        # fails when something is left mounted below it
        subprocess.run(["umount", found], check=True)
        shutil.rmtree(found)


@pytest.fixture(scope="module")
def host(top: Path, registry: Registry) -> Iterator[Host]:
    """Run our daemon, put two versions of the plugin into the registry, install the first from there."""
    for folder in ("daemon", "conf.d", "spec", "mnt"):
        (top / folder).mkdir()
    config = top / "config.toml"
    places = f'podman-conf = "{top}/conf.d/pluginsvc.conf"\nspec-dir = "{top}/spec"\n'
    config.write_text(f'{places}publish-mounts = ["{top}/mnt"]\n')
    daemon = Daemon(top / "daemon", ["--config", str(config)])
    # it is to be seen before the first plugin is published
    daemon.published.mkdir()
    daemon.start()
    try:
        api = Api(daemon.socket)
        state = f"{top}/mnt/state"
        remotes = [f"{registry.host}/test/engines:{version}" for version in ("1", "2")]
        for version, remote in enumerate(remotes, 1):
            sample = build_sample_plugin(top / f"plugin{version}", version=str(version), propagatedMount=state)
            archive = pack(sample)
            assert api.create(remote, archive).status == 204
            assert not api.act("push", remote).error
            api.ok("DELETE", f"/plugins/{remote}")
        assert not api.pull(remotes[0], NAME).error
        plugin = Plugin(daemon, NAME)
        api.ok("POST", f"/plugins/{NAME}/set", document=[f"STATE={state}"])
        plugin.enable()
        yield Host(top, daemon, remotes, plugin)
    finally:
        clean(daemon)
    assert [list((top / name).iterdir()) for name in ("conf.d", "spec", "mnt")] == [[]] * 3


@pytest.fixture(scope="module")
def mounts(host: Host) -> Iterator[podman.Mounts]:
    """Give the namespace in which the engines run."""
    root = host.top / "mounts"
    root.mkdir()
    with podman.mounts(root, host.places) as found:
        yield found


@pytest.fixture(scope="module")
def box(host: Host) -> Path:
    """Give a root file system that has one program."""
    found = host.top / "rootfs"
    found.mkdir()
    (found / "box").write_bytes(compiled("box"))
    (found / "box").chmod(0o755)
    subprocess.run(["tar", "-C", found, "-cf", host.top / "box.tar", "box"], check=True)
    return found


@pytest.fixture(scope="module")
def pod(host: Host, mounts: podman.Mounts, box: Path) -> Iterator[Podman]:
    """Give Podman with an image called box."""
    found = Podman(mounts, host.top / "podman")
    found.run("import", box.with_name("box.tar"), "box")
    yield found
    # after a failure
    found.run("rm", "--force", "--all")


@contextmanager
def docker_in(host: Host, mounts: podman.Mounts, name: str) -> Iterator[DockerCLI]:
    """Run a dockerd, and give the CLI for it."""
    with dockerd(host.top / name, prefix=mounts.prefix) as found:
        yield DockerCLI(docker_clis()[0], found.host, host.top / "docker-config")


@pytest.fixture(scope="module")
def docker(host: Host, mounts: podman.Mounts, box: Path) -> Iterator[DockerCLI]:
    """Give the CLI of a dockerd that has an image called box."""
    with docker_in(host, mounts, "docker") as found:
        found.run("import", str(box.with_name("box.tar")), "box", check=True)
        yield found
        # after a failure
        if left := said(found, "ps", "--all", "--quiet").split():
            said(found, "rm", "--force", *left)
    for folder in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]:
        # each hierarchy that is mounted
        with suppress(OSError):
            (folder / CGROUP).rmdir()


def said(docker: DockerCLI, *words: str) -> str:
    """Return what a command of the CLI prints, which has to succeed."""
    return docker.run(*words, check=True).stdout.strip()


def inspected(text: str) -> dict[str, Any]:
    """Return what ``volume inspect`` prints of one volume."""
    (found,) = json.loads(text)
    assert isinstance(found, dict)
    return found


def test_podman_volumes(host: Host, pod: Podman) -> None:
    """`podman volume create`, `inspect`, `ls` and `rm` work by the drop-in, and Podman lists the plugin."""
    assert (host.top / "conf.d" / "pluginsvc.conf").stat().st_mode & 0o7777 == 0o644
    assert ALIAS in pod.run("info", "--format={{.Plugins.Volume}}")
    assert pod.run("volume", "create", "--driver", ALIAS, "one") == "one"
    found = inspected(pod.run("volume", "inspect", "one"))
    assert (found["Name"], found["Driver"], found["Status"]) == ("one", ALIAS, {"Mounts": 0, "Version": "1"})
    assert pod.run("volume", "ls", "--format={{.Driver}} {{.Name}}") == f"{ALIAS} one"
    assert pod.run("volume", "rm", "one") == "one"
    assert pod.run("volume", "ls", "--quiet") == ""
    assert list(host.volumes.iterdir()) == []


def test_podman_containers(host: Host, pod: Podman, box: Path) -> None:
    """Containers of `podman run --rootfs` that mount one volume see each other's data."""
    pod.run("volume", "create", "--driver", ALIAS, "two")
    run = (*PODMAN_RUN, "--volume=two:/data")
    pod.run(*run, "--detach", "--name=two", "--rootfs", box, "/box", "wait")
    pod.run(*run, "--rootfs", box, "/box", "put", "/data/file", "hello")
    assert host.seen(pod.run("inspect", "--format={{.State.Pid}}", "two"), "two") == "hello"
    assert pod.run(*run, "--rootfs", box, "/box", "get", "/data/file") == "hello"
    pod.run("rm", "--force", "two")
    pod.run("volume", "rm", "two")


def test_podman_beside_a_plugin_that_is_down(host: Host, pod: Podman) -> None:
    """A plugin that has ended stays named, one that is off is not; Podman says so, and works with all other volumes."""
    host.plugin.update(restart="no")
    host.plugin.signal(signal.SIGKILL)
    host.plugin.until(lambda now: now["State"] not in {"running", "healthy", "unhealthy"})
    conf = host.top / "conf.d" / "pluginsvc.conf"
    create = ("volume", "create", "--driver", ALIAS, "lost")
    try:
        assert f'"{ALIAS}" = "{host.daemon.published}/{ALIAS}.sock"' in conf.read_text().splitlines()
        assert f"cannot access plugin {ALIAS} socket" in pod.run(*create, code=125)
        host.plugin.api.ok("POST", f"/plugins/{NAME}/disable")
        assert not conf.exists()
        assert list((host.top / "mnt").iterdir()) == []
        assert f"no volume plugin with name {ALIAS} available" in pod.run(*create, code=125)
        pod.run("volume", "create", "local")
        assert pod.run("volume", "ls", "--quiet") == "local"
        pod.run("volume", "rm", "local")
        assert pod.run("ps", "--quiet") == ""
    finally:
        host.plugin.update(restart="always")
        host.plugin.enable()


def test_docker_volumes(docker: DockerCLI) -> None:
    """`docker volume create`, `inspect`, `ls` and `rm` work with the plugin as a v1 plugin of dockerd."""
    assert said(docker, "volume", "create", "--driver", ALIAS, "one") == "one"
    found = inspected(said(docker, "volume", "inspect", "one"))
    assert (found["Name"], found["Driver"], found["Status"]) == ("one", ALIAS, {"Mounts": 0, "Version": "1"})
    assert said(docker, "volume", "ls", "--format={{.Driver}} {{.Name}}") == f"{ALIAS} one"
    assert ALIAS in said(docker, "info", "--format={{.Plugins.Volume}}")
    assert said(docker, "volume", "rm", "one") == "one"
    assert said(docker, "volume", "ls", "--quiet") == ""


def test_dockerd_finds_links_by_name_and_spec_files_by_looking(host: Host, docker: DockerCLI) -> None:
    """Before it has used the plugin, dockerd lists its volumes by the .spec; by the link alone it needs the name."""
    said(docker, "volume", "create", "--driver", ALIAS, "old")
    root = host.top / "links"
    root.mkdir()
    places = {place: folder for place, folder in host.places.items() if place != "/etc/docker/plugins"}
    with podman.mounts(root, places) as links, docker_in(host, links, "fresh") as fresh:
        assert said(fresh, "volume", "ls", "--quiet") == ""
        assert said(fresh, "volume", "create", "--driver", ALIAS, "new") == "new"
        assert said(fresh, "volume", "ls", "--quiet") == "new\nold"
    shutil.rmtree(root)
    root.mkdir()
    with podman.mounts(root, host.places) as both, docker_in(host, both, "fresh2") as fresh:
        assert said(fresh, "volume", "ls", "--quiet") == "new\nold"
        said(fresh, "volume", "rm", "old", "new")


def test_upgraded_and_killed_in_use(host: Host, pod: Podman, docker: DockerCLI) -> None:
    """While both engines' containers use volumes, the plugin is upgraded and our daemon killed: nothing is lost."""
    api = Api(host.daemon.socket)
    pod.run("volume", "create", "--driver", ALIAS, "pod")
    said(docker, "volume", "create", "--driver", ALIAS, "docker")
    pod_run = (*PODMAN_RUN, "--volume=pod:/data")
    docker_run = (*DOCKER_RUN, "--volume=docker:/data")
    pod.run(*pod_run, "--detach", "--name=held", "box", "/box", "wait")
    said(docker, *docker_run, "--detach", "--name=held", "box", "/box", "wait")
    pid = ("inspect", "--format={{.State.Pid}}", "held")
    pids = pod.run(*pid), said(docker, *pid)
    pod.run(*pod_run, "box", "/box", "put", "/data/file", "of podman")
    said(docker, *docker_run, "box", "/box", "put", "/data/file", "of docker")

    def works(more: str) -> None:
        """What runs has its data, others see it too, and there can be further volumes."""
        assert host.seen(pids[0], "pod") == "of podman"
        assert host.seen(pids[1], "docker") == "of docker"
        pod.run("volume", "create", "--driver", ALIAS, f"pod{more}")
        said(docker, "volume", "create", "--driver", ALIAS, f"docker{more}")
        assert pod.run(*pod_run, f"--volume=pod{more}:/more", "box", "/box", "get", "/data/file") == "of podman"
        words = (*docker_run, f"--volume=docker{more}:/more", "box", "/box", "get", "/data/file")
        assert said(docker, *words) == "of docker"
        pod.run("volume", "rm", f"pod{more}")
        said(docker, "volume", "rm", f"docker{more}")

    works("1")
    # engines hold no leases; with one, what is mounted outlives the old version
    lease = {"Holder": "test", "Purpose": "containers of other engines"}
    api.ok("POST", f"/pluginsvc/v1/plugins/{NAME}/acquire", document=lease)
    api.ok("POST", f"/plugins/{NAME}/disable", {"force": 1})
    assert not api.upgrade(NAME, host.remotes[1]).error
    host.plugin.enable()
    works("2")
    for inspect in (pod.run("volume", "inspect", "pod"), said(docker, "volume", "inspect", "docker")):
        assert inspected(inspect)["Status"] == {"Mounts": 1, "Version": "2"}
    host.daemon.kill()
    works("3")
    files = [host.top / place for place in ("conf.d/pluginsvc.conf", f"spec/{ALIAS}.spec", "mnt/state")]
    before = [(file.lstat().st_ino, file.lstat().st_mtime_ns) for file in files]
    (host.top / "spec" / "gone.spec").write_text(f"unix://{host.daemon.published}/gone.sock\n \n")
    (host.top / "mnt" / "gone").symlink_to(host.daemon.root / "plugins" / ("0" * 64) / "propagated-mount")
    host.daemon.start()
    works("4")
    assert [(file.lstat().st_ino, file.lstat().st_mtime_ns) for file in files] == before
    assert [*(host.top / "spec").iterdir(), *(host.top / "mnt").iterdir()] == files[1:]
    pod.run("rm", "--force", "held")
    said(docker, "rm", "--force", "held")
    assert inspected(pod.run("volume", "inspect", "pod"))["Status"] == {"Mounts": 0, "Version": "2"}
    pod.run("volume", "rm", "pod")
    said(docker, "volume", "rm", "docker")
    assert list(host.volumes.iterdir()) == []
    api.ok("POST", f"/pluginsvc/v1/plugins/{NAME}/release", document=lease)

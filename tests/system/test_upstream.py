"""Upstream's cases that need a real daemon and that no other module has; docs/upstream-cases.md has them all."""

from __future__ import annotations

import base64
import ctypes
import fcntl
import hashlib
import json
import os
import re
import secrets
import signal
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.support import parts, procs
from tests.support.daemon import Daemon, running_daemon
from tests.support.docker_cli import DockerCLI
from tests.support.registry import Registry, start_registry
from tests.support.wire import Api, pack, tar

pytestmark = pytest.mark.root

Folder = Callable[..., Path]
SCHEMA2 = "application/vnd.docker.distribution.manifest.v2+json"
INSTALL = ("plugin", "install", "--grant-all-permissions")


@pytest.fixture
def api(daemon: Daemon) -> Api:
    """Give plain calls to the module's daemon."""
    return Api(daemon.socket)


def inspect(api: Api, name: str) -> dict[str, Any]:
    found: dict[str, Any] = api.ok("GET", f"/plugins/{name}/json")
    return found


def created(api: Api, name: str, folder: Path) -> str:
    """Create a plugin of a folder; return its ID."""
    api.ok("POST", "/plugins/create", {"name": name}, body=pack(folder))
    return str(inspect(api, name)["Id"])


def published(api: Api, name: str, folder: Path) -> str:
    """Put a plugin into the registry that its name says, leave none on the daemon; return the manifest's digest."""
    created(api, name, folder)
    lines = api.ok("POST", f"/plugins/{name}/push")
    api.ok("DELETE", f"/plugins/{name}")
    return str(lines[-1]["aux"]["Digest"])


def salted(folder: Path) -> Path:
    """Give a plugin folder content, and so a layer, that no other plugin has."""
    (folder / "rootfs" / "salt").write_text(secrets.token_hex(1000))
    return folder


def state(api: Api, daemon: Daemon, plugin_id: str) -> tuple[dict[str, Any], list[str], set[str]]:
    """Return all that must stay as it is when something fails: the record, the generations, the blobs."""
    api.collect()
    generations = [path.name for path in (daemon.root / "plugins" / plugin_id).glob("gen-*")]
    assert list((daemon.root / "staging").iterdir()) == []
    return inspect(api, plugin_id), generations, daemon.blobs()


def pid_of(daemon: Daemon, plugin_id: str) -> int:
    """Return the process of a running plugin, 0 if there is none."""
    try:
        pid = int((daemon.run / "instances" / plugin_id / "pid").read_text())
        alive = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, ValueError):
        return 0
    return pid if alive else 0


def manifest(registry: Registry, name: str, reference: str) -> tuple[dict[str, Any], str]:
    """Ask the registry for a manifest as clients do that know schema 2 only; return it and its digest header."""
    path = name.removeprefix(f"{registry.host}/")
    request = urllib.request.Request(  # noqa: S310 - http is what the test's own registry speaks
        f"{registry.url}/v2/{path}/manifests/{reference}", headers={"Accept": SCHEMA2}
    )
    answer: HTTPResponse
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
        return json.load(answer), str(answer.headers["Docker-Content-Digest"])


def upload(registry: Registry, name: str, config_type: str) -> None:
    """Put an image without layers into the registry."""
    base = f"{registry.url}/v2/{name.removeprefix(f'{registry.host}/')}"

    def send(method: str, url: str, body: bytes, kind: str) -> HTTPResponse:
        request = urllib.request.Request(url, body, {"Content-Type": kind}, method=method)  # noqa: S310 - our registry
        answer: HTTPResponse
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
            return answer

    config = b"{}"
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    where = str(send("POST", f"{base}/blobs/uploads/", b"", "application/octet-stream").headers["Location"])
    send("PUT", f"{where}&digest={digest}", config, "application/octet-stream")
    document = {
        "schemaVersion": 2,
        "mediaType": SCHEMA2,
        "config": {"mediaType": config_type, "size": len(config), "digest": digest},
        "layers": [],
    }
    send("PUT", f"{base}/manifests/latest", json.dumps(document).encode(), SCHEMA2)


# Registries


def test_create_push_pull(docker: DockerCLI, name: str, folder: Folder) -> None:
    """The lines that push and install print name the plugin as it was typed (cli e2e)."""
    docker.run("plugin", "create", name, str(folder()), check=True)
    pushed = docker.run("plugin", "push", name, check=True).stdout.splitlines()
    assert f"The push refers to repository [{name}]" in pushed
    for typed in (name, f"{name}:latest"):
        docker.run("plugin", "rm", "-f", name, check=True)
        installed = docker.run(*INSTALL, "--disable", typed, check=True).stdout.splitlines()
        assert installed[-1] == f"Installed plugin {typed}"
    docker.run("plugin", "rm", name, check=True)


def test_pushed_manifest_is_schema_2(api: Api, registry: Registry, name: str, folder: Folder) -> None:
    """A pushed plugin is one gzip layer under a schema 2 manifest, whose digest the push told and an install takes."""
    digest = published(api, name, folder())
    found, header = manifest(registry, name, "latest")
    assert found["mediaType"] == SCHEMA2
    assert found["config"]["mediaType"] == "application/vnd.docker.plugin.v1+json"
    assert [layer["mediaType"] for layer in found["layers"]] == ["application/vnd.docker.image.rootfs.diff.tar.gzip"]
    assert header == digest
    assert api.pull(f"{name}:latest@{digest}").error == ""
    assert inspect(api, f"{name}:latest")["PluginReference"] == f"{name}:latest@{digest}"
    api.ok("DELETE", f"/plugins/{name}")


def test_registry_with_passwords(docker: DockerCLI, api: Api, tmp_path: Path, folder: Folder) -> None:
    """Without a login, and with a wrong one, a registry that wants one is closed; after `docker login` it is open."""
    with start_registry(tmp_path, htpasswd=("testuser", "testpassword")) as registry:
        name = f"{registry.host}/test/locked"
        docker.run("plugin", "create", name, str(folder()), check=True)
        refused = docker.run("plugin", "push", name)
        assert refused.returncode
        assert "authentication required" in refused.stderr or "no basic auth credentials" in refused.stderr

        login = ("login", "--username", "testuser", "--password-stdin", registry.host)
        wrong = docker.run(*login, answer="wrong")
        assert wrong.returncode
        assert f"{registry.host}/v2/" in wrong.stderr
        assert "401 Unauthorized" in wrong.stderr
        assert "Login Succeeded" in docker.run(*login, answer="testpassword", check=True).stdout

        docker.run("plugin", "push", name, check=True)
        docker.run("plugin", "rm", name, check=True)
        docker.run(*INSTALL, name, check=True)
        assert docker.run("plugin", "inspect", "--format", "{{.Enabled}}", name, check=True).stdout.strip() == "true"
        docker.run("plugin", "rm", "-f", name, check=True)
        docker.run("logout", registry.host, check=True)

        asked = api.call("GET", "/plugins/privileges", {"remote": name})
        assert (asked.status, "pull access denied" in asked.error) == (401, True), asked
        bad = base64.urlsafe_b64encode(b'{"username":"testuser","password":"wrong"}').decode()
        asked = api.call("GET", "/plugins/privileges", {"remote": name}, headers={"X-Registry-Auth": bad})
        assert asked.status == 401, asked


@contextmanager
def private_network(address: str) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Give a way to run functions in a network of their own that has loopback, and on it `address` as well.

    Processes that such a function starts are in that network too. Nothing there reaches any other network.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def enter() -> None:
        new_network, up = 0x40000000, 0x1 | 0x40
        if libc.unshare(new_network) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ioctl:
            set_flags, set_address = 0x8914, 0x8916
            fcntl.ioctl(ioctl, set_flags, struct.pack("16sh14x", b"lo", up))
            packed = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(ioctl, set_address, packed)

    # only the thread changes its network, and it ends with the block
    with ThreadPoolExecutor(1, initializer=enter) as thread:
        yield lambda work: thread.submit(work).result()


def test_insecure_registry_elsewhere(tmp_path: Path, folder: Folder) -> None:
    """A registry off loopback that speaks http is used when it is called insecure, by its exact name, and else not."""
    configured, other = "10.77.0.1:5000", "10.77.0.1:5001"
    with private_network("10.77.0.1") as inside, running_registries(inside, tmp_path, [configured, other]):
        top = tmp_path / "d"
        top.mkdir()
        daemon = Daemon(top, ["--insecure-registry", configured])
        try:
            inside(daemon.start)
            api = Api(daemon.socket)
            published(api, f"{configured}/test/plain", folder())
            assert api.pull(f"{configured}/test/plain").error == ""
            assert inspect(api, f"{configured}/test/plain")["Enabled"] is False
            refused = api.call("GET", "/plugins/privileges", {"remote": f"{other}/test/plain"})
            assert (refused.status, f"https://{other}" in refused.error) == (503, True), refused
            info = api.ok("GET", "/info")["RegistryConfig"]["IndexConfigs"]
            assert info[configured]["Secure"] is False
            api.ok("DELETE", f"/plugins/{configured}/test/plain")
        finally:
            daemon.stop()


@contextmanager
def running_registries(
    inside: Callable[[Callable[[], Any]], Any], folder: Path, addresses: list[str]
) -> Iterator[None]:
    """Run plain registries on addresses of a private network."""
    running: list[procs.Proc] = []
    try:
        for number, address in enumerate(addresses):
            storage = {"filesystem": {"rootdirectory": str(folder / "data")}}
            config = folder / f"registry{number}.yml"
            config.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": address}}))
            words: list[str | Path] = [parts.find("docker-registry"), "serve", config]
            log = folder / f"registry{number}.log"
            running.append(inside(partial(procs.start, words, log=log, env=parts.env())))
            running[-1].wait_until(lambda log=log: b"listening on" in log.read_bytes())  # type: ignore[misc]  # mypy cannot see the default
        yield
    finally:
        for proc in running:
            proc.end()


def test_what_is_no_plugin(docker: DockerCLI, daemon: Daemon, registry: Registry, name: str) -> None:
    """An image is refused as what it is, and a registry that is down is said to be down; nothing is left of either."""
    upload(registry, name, "application/vnd.docker.container.image.v1+json")
    done = docker.run(*INSTALL, name)
    assert done.returncode
    assert f"did not find plugin config for specified reference {name}:latest" in done.stderr
    nowhere = f"127.0.0.1:{procs.free_port()}/test/plugin"
    done = docker.run(*INSTALL, nowhere)
    assert done.returncode
    assert "error resolving plugin reference: " in done.stderr
    assert "no connection" in done.stderr
    assert list((daemon.root / "staging").iterdir()) == []


# Running


def device_mounts() -> list[str]:
    """Return what is mounted at and below /dev."""
    table = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    return [line for line in table if f"{line.split()[4]}/".startswith("/dev/")]


def test_the_runtime_may_be_a_script(tmp_path: Path, folder: Folder) -> None:
    """The configured runtime starts plugins, with its own arguments; what it started outlives a KILL and is taken over.

    As upstream's TestPluginsWithRuntimes and TestDaemonKillWithPlugins: the daemon is not to keep plugins running, so
    a restart starts them anew, with the runtime that is the default then.
    """
    script, marker = tmp_path / "runtime", tmp_path / "marker"
    script.write_text(f'#!/bin/sh\necho "$@" >>{marker}\nexec runc --debug "$@"\n')
    script.chmod(0o755)
    config = tmp_path / "c.toml"
    config.write_text('shutdown = "stop"\n')
    with running_daemon("--config", str(config)) as daemon:
        api = Api(daemon.socket)
        plugin_id = created(api, "p", folder())
        api.ok("POST", "/plugins/p/enable", {"timeout": 0})
        assert daemon.stop() == 0
        config.write_text(f'shutdown = "stop"\nruntime = "{script}"\n')
        daemon.start()
        procs.wait_until(lambda: pid_of(daemon, plugin_id))
        assert re.search(rf"^(?=.* create .*{plugin_id[:12]}).*--root", marker.read_text(), re.MULTILINE)
        assert api.ok("GET", "/info")["DefaultRuntime"] == str(script)
        pid = pid_of(daemon, plugin_id)
        daemon.kill()
        assert pid_of(daemon, plugin_id) == pid
        daemon.start()
        procs.wait_until(lambda: pid_of(daemon, plugin_id))
        api.ok("POST", "/plugins/p/disable")
        api.ok("DELETE", "/plugins/p")
        assert pid_of(daemon, plugin_id) == 0


def test_mounts_of_the_hosts_own_trees(daemon: Daemon, api: Api, name: str, folder: Folder, tmp_path: Path) -> None:
    """A plugin may bind the host's root and devices, with host network and IPC; removing it takes nothing from them."""

    def bind(mount: str, source: Path) -> dict[str, object]:
        where = {"name": mount, "destination": mount, "source": str(source), "type": "bind", "options": ["rbind"]}
        return where | {"description": "", "settable": None}

    (tmp_path / "foo").mkdir()
    (tmp_path / "foo" / "kept").write_text("kept")
    mounts = [bind("/host", Path("/")), bind("/dev", Path("/dev")), bind("/etc/foo", tmp_path / "foo")]
    plugin = folder(mounts=mounts, network={"type": "host"}, ipchost=True, propagatedMount="/foo")
    devices = device_mounts()
    plugin_id = created(api, name, plugin)
    api.ok("POST", f"/plugins/{name}/enable", {"timeout": 0})
    assert inspect(api, name)["Enabled"] is True
    inside = Path(f"/proc/{pid_of(daemon, plugin_id)}/root")
    assert (inside / "etc/foo/kept").read_text() == "kept"
    assert (inside / "host/proc/self").is_symlink()
    assert os.readlink(inside.parent / "ns/ipc") == os.readlink("/proc/self/ns/ipc")
    api.ok("DELETE", f"/plugins/{name}", {"force": 1})
    assert (tmp_path / "foo" / "kept").read_text() == "kept"
    assert Path("/dev/null").is_char_device()
    assert device_mounts() == devices
    assert daemon.mounts() == []


def test_removal_unmounts_its_own_only(daemon: Daemon, api: Api, name: str, folder: Folder) -> None:
    """Removing one plugin leaves what is mounted in another's rootfs, and undoes what is mounted in its own."""
    rootfs = {}
    for plugin in (name, f"{name}-two"):
        rootfs[plugin] = daemon.root / "plugins" / created(api, plugin, folder()) / "gen-1" / "rootfs"
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", rootfs[plugin] / "data"], check=True)
    api.ok("DELETE", f"/plugins/{name}", {"force": 1})
    assert daemon.mounts() == [str(rootfs[f"{name}-two"] / "data")]
    api.ok("DELETE", f"/plugins/{name}-two", {"force": 1})
    assert daemon.mounts() == []
    procs.wait_until(lambda: not list((daemon.root / "plugins").glob("*-removing*")))


def test_a_mount_in_use_does_not_stop_a_removal(daemon: Daemon, api: Api, name: str, folder: Folder) -> None:
    """A mount that somebody is in does not keep a plugin from being removed."""
    plugin_id = created(api, name, folder())
    place = daemon.root / "plugins" / plugin_id / "gen-1" / "rootfs" / "data"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    with (place / "file").open("w"):
        api.ok("DELETE", f"/plugins/{name}")
        assert api.call("GET", f"/plugins/{plugin_id}/json").status == 404
        procs.wait_until(lambda: not daemon.mounts() and plugin_id not in os.listdir(daemon.root / "plugins"))


def test_what_failed_to_start_can_be_removed(daemon: Daemon, api: Api, name: str, folder: Folder) -> None:
    """When the runtime cannot make the container enable fails, and a forced removal leaves nothing."""
    plugin_id = created(api, name, folder(entrypoint=["/not-there"]))
    failed = api.act("enable", name, timeout=0)
    assert (failed.status, "/not-there" in failed.error) == (500, True), failed
    assert inspect(api, name)["Enabled"] is False
    api.ok("DELETE", f"/plugins/{name}", {"force": 1})
    assert daemon.mounts() == []
    assert not (daemon.run / "instances" / plugin_id).exists()


def test_enable_waits_for_a_late_socket(daemon: Daemon, api: Api, name: str, folder: Folder) -> None:
    """A socket that comes late is waited for; a tmpfs without a source is mounted (REF 7.19); a null device is not."""
    mounts = [{"name": "t", "destination": "/data", "type": "tmpfs", "options": ["size=1m"]}]
    devices = [{"name": "d", "path": "/dev/null", "settable": ["path"]}]
    plugin_id = created(api, name, folder(mounts=mounts, linux={"devices": devices}, propagatedMount=None))
    api.ok("POST", f"/plugins/{name}/set", document=["FAULT=slow:700", "d.path=/dev/zero"])
    began = time.monotonic()
    api.ok("POST", f"/plugins/{name}/enable", {"timeout": 0})
    assert 0.7 <= time.monotonic() - began < 5
    root = Path(f"/proc/{pid_of(daemon, plugin_id)}/root")
    assert os.statvfs(root / "data").f_blocks * os.statvfs(root / "data").f_frsize == 1024 * 1024
    bundle = json.loads((daemon.run / "instances" / plugin_id / "bundle" / "config.json").read_text())
    assert [device["path"] for device in bundle["linux"]["devices"]] == ["/dev/zero"]
    api.ok("DELETE", f"/plugins/{name}", {"force": 1})

    created(api, name, folder(linux={"devices": [{"name": "d", "settable": ["path"]}]}))
    refused = api.act("enable", name, timeout=0)
    assert (refused.status, "device path is not specified" in refused.error) == (400, True), refused
    api.ok("DELETE", f"/plugins/{name}")


# Restarts


def test_daemon_stops_during_a_back_off(daemon: Daemon, api: Api, name: str, folder: Folder) -> None:
    """A daemon that is told to stop while a crashed plugin waits for its next start ends at once; the wish stands."""
    plugin_id = created(api, name, folder())
    api.ok("POST", f"/plugins/{name}/enable", {"timeout": 0})
    for _ in range(4):  # pauses of 0.1, 0.2, 0.4 and then 0.8 s
        procs.wait_until(lambda: pid_of(daemon, plugin_id))
        pid = pid_of(daemon, plugin_id)
        os.kill(pid, signal.SIGKILL)
        procs.wait_until(lambda pid=pid: pid_of(daemon, plugin_id) != pid)  # type: ignore[misc]  # mypy cannot see the default
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 5
    daemon.start()
    procs.wait_until(lambda: pid_of(daemon, plugin_id))
    assert inspect(api, name)["Enabled"] is True
    api.ok("DELETE", f"/plugins/{name}", {"force": 1})


def test_daemon_starts_without_a_plugins_config(daemon: Daemon, api: Api, name: str, folder: Folder) -> None:
    """A plugin whose config was deleted by hand is not found after a restart, and harms nothing; with it it is back."""
    published(api, name, folder(description=name))
    assert api.pull(name, "gone/gone").error == ""
    plugin_id = inspect(api, "gone/gone")["Id"]
    blobs = daemon.root / "content" / "blobs" / "sha256"
    (config,) = [path for path in blobs.iterdir() if b"docker.volumedriver" in path.read_bytes()]
    config.unlink()
    daemon.kill()
    daemon.start()
    assert api.ok("GET", "/_ping") == "OK"
    assert api.call("GET", "/plugins/gone/gone/json").status == 404
    assert api.pull(name, "kept/other").error == ""
    assert [found["Name"] for found in api.plugins()] == ["kept/other:latest"]
    assert config.exists()
    daemon.kill()
    daemon.start()
    assert inspect(api, "gone/gone")["Id"] == plugin_id
    for found in ("gone/gone", "kept/other"):
        api.ok("DELETE", f"/plugins/{found}")


# Content


def damage(registry: Registry, digest: str) -> None:
    """Change a byte of a blob where the registry keeps it."""
    code = digest.removeprefix("sha256:")
    path = registry.storage / "docker/registry/v2/blobs/sha256" / code[:2] / code / "data"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_failures_leave_a_plugin_as_it_was(
    daemon: Daemon, api: Api, registry: Registry, name: str, folder: Folder
) -> None:
    """A refused create, a pull or upgrade whose layer is damaged, and one without consent change nothing at all."""
    published(api, f"{name}:bad", salted(folder("2")))
    damage(registry, manifest(registry, name, "bad")[0]["layers"][0]["digest"])
    published(api, f"{name}:more", salted(folder("3", ipchost=True)))
    plugin_id = created(api, name, salted(folder("1")))
    api.ok("POST", f"/plugins/{name}/set", document=["DEBUG=1"])
    before = state(api, daemon, plugin_id)

    assert api.create("a/b", tar({"config.json": b"{}"})).status == 400
    assert api.create("a/b", pack(folder())[:-20_000]).status == 400
    for answer in (api.pull(f"{name}:bad", "a/b"), api.upgrade(name, f"{name}:bad")):
        assert (answer.status, "digest" in answer.error) == (200, True), answer
    for path in ("/plugins/pull", f"/plugins/{name}/upgrade"):
        answer = api.call("POST", path, {"remote": f"{name}:more", "name": "a/b"}, document=[])
        assert answer.error == "incorrect privileges"
    assert state(api, daemon, plugin_id) == before
    assert [found["Id"] for found in api.plugins()] == [plugin_id]
    api.ok("POST", f"/plugins/{name}/enable", {"timeout": 0})
    assert api.create("a/b", pack(folder())).status == 204
    for found in (name, "a/b"):
        api.ok("DELETE", f"/plugins/{found}", {"force": 1})
    api.collect()
    assert daemon.blobs() == set()


def test_upgrade_by_id_survives_a_restart(daemon: Daemon, api: Api, name: str, folder: Folder) -> None:
    """An upgrade takes an ID, keeps settings and propagated mount, frees the old blobs, and a restart keeps it all."""
    published(api, f"{name}:v2", salted(folder("2")))
    plugin_id = created(api, name, salted(folder("1")))
    api.ok("POST", f"/plugins/{plugin_id}/set", document=["DEBUG=1"])
    old = state(api, daemon, plugin_id)[2]
    data = daemon.root / "plugins" / plugin_id / "propagated-mount" / "data"
    api.ok("POST", f"/plugins/{name}/enable", {"timeout": 0})
    data.write_text("kept")
    refused = api.upgrade(plugin_id[:7], f"{name}:v2")
    assert (refused.status, "must be disabled before upgrading" in refused.error) == (409, True), refused
    api.ok("POST", f"/plugins/{name}/disable")
    assert api.upgrade(plugin_id[:7], f"{name}:v2").error == ""
    record, generations, blobs = state(api, daemon, plugin_id)
    assert record["Name"] == f"{name}:latest"
    assert record["PluginReference"] == f"{name}:v2"
    assert {"DEBUG=1", "VERSION=2"} <= set(record["Settings"]["Env"])
    assert generations == ["gen-2"]
    assert not old & blobs
    daemon.kill()
    daemon.start()
    assert state(api, daemon, plugin_id) == (record, generations, blobs)
    api.ok("POST", f"/plugins/{name}/set", document=["DEBUG=2"])
    api.ok("POST", f"/plugins/{name}/enable", {"timeout": 0})
    assert data.read_text() == "kept"
    api.ok("DELETE", f"/plugins/{name}", {"force": 1})


# Events and facts


def test_events_name_what_was_typed(api: Api, name: str, folder: Folder) -> None:
    """An event names the plugin as the caller did, short ID included; that of a pull has the remote's name for ID."""
    published(api, name, folder())
    began = time.time()
    assert api.pull(name, "al/ias:7").error == ""
    plugin_id = inspect(api, "al/ias:7")["Id"]
    short = plugin_id[:6]
    api.ok("POST", f"/plugins/{short}/set", document=["DEBUG=1"])
    api.ok("POST", f"/plugins/{short}/enable", {"timeout": 0})
    api.ok("POST", f"/plugins/{plugin_id}/disable")
    api.ok("DELETE", "/plugins/al/ias:7")

    def shown(**filters: list[str]) -> list[tuple[str, str, str]]:
        query = {"since": f"{began:.6f}", "until": f"{time.time():.6f}", "filters": json.dumps(filters)}
        found = api.ok("GET", "/events", query)
        events = found if isinstance(found, list) else [found]
        return [(event["Action"], event["Actor"]["ID"], event["Actor"]["Attributes"]["name"]) for event in events]

    pull, *others = shown(type=["plugin"])
    assert pull == ("pull", f"{name}:latest", "al/ias:7")
    assert others == [
        ("enable", plugin_id, short),
        ("disable", plugin_id, plugin_id),
        ("remove", plugin_id, "al/ias:7"),
    ]
    assert shown(plugin=[short]) == others
    assert shown(plugin=["al/ias:7"], event=["remove", "pull"]) == [pull, others[-1]]


def test_facts_of_a_real_daemon(daemon: Daemon, api: Api) -> None:
    """A daemon that logs at debug level says so, counts its descriptors and tasks, and names its own root."""
    info = api.ok("GET", "/info")
    assert (info["Debug"], info["DockerRootDir"]) == (True, str(daemon.root))
    assert info["NFd"] > 0
    assert info["NGoroutines"] > 0
    assert info["Containers"] == info["ContainersRunning"] + info["ContainersPaused"] + info["ContainersStopped"]

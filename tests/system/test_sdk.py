"""docker-py, and Ansible's way of working, against a real daemon: what their own suites expect (upstream §7, §8)."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError, NotFound

from tests.support.daemon import Daemon

pytestmark = pytest.mark.root


@pytest.fixture
def api(daemon: Daemon) -> Iterator[Any]:
    """Give a low-level client that negotiates its version, as a new user would make it."""
    client = docker.APIClient(base_url=daemon.host, version="auto", timeout=60)
    yield client
    client.close()


@pytest.fixture
def sdk(daemon: Daemon) -> Iterator[Any]:
    """Give a high-level client."""
    client = docker.DockerClient(base_url=daemon.host, timeout=60)
    yield client
    client.close()


@pytest.fixture
def installed(api: Any, published: str) -> Iterator[str]:
    """Install a plugin as docker-py does, disabled; remove it afterwards."""
    privileges = api.plugin_privileges(published)
    for line in api.pull_plugin(published, privileges):
        assert "error" not in line, line
    yield published
    with contextlib.suppress(NotFound):
        api.remove_plugin(published, force=True)


def test_install_streams_progress(api: Any, published: str) -> None:
    """Installing yields lines with a status, among them "Download complete"; inspecting and enabling work after."""
    privileges = api.plugin_privileges(published)
    assert isinstance(privileges, list)
    assert all({"Name", "Value", "Description"} == set(item) for item in privileges)
    lines = list(api.pull_plugin(published, privileges))
    assert all("status" in line for line in lines)
    assert "Download complete" in [line["status"] for line in lines]
    assert api.inspect_plugin(published)["Enabled"] is False
    assert api.enable_plugin(published) is True
    assert api.inspect_plugin(published)["Enabled"] is True
    assert api.remove_plugin(published, force=True) is True


def test_enable_and_disable(api: Any, installed: str) -> None:
    """A second enable and a second disable are API errors."""
    api.enable_plugin(installed)
    with pytest.raises(APIError, match="already enabled"):
        api.enable_plugin(installed)
    api.disable_plugin(installed)
    assert api.inspect_plugin(installed)["Enabled"] is False
    with pytest.raises(APIError, match="already disabled"):
        api.disable_plugin(installed)


def test_inspect_and_list(api: Any, installed: str) -> None:
    """Inspect has config and name; list shows the plugin with its config."""
    found = api.inspect_plugin(installed)
    assert found["Name"] == f"{installed}:latest"
    assert found["Config"]
    assert [p["Config"] for p in api.plugins() if p["Name"] == f"{installed}:latest"] == [found["Config"]]


def test_configure(api: Any, installed: str) -> None:
    """Settings are given as a mapping or a list and seen in Settings.Env."""
    api.configure_plugin(installed, {"DEBUG": "1"})
    assert "DEBUG=1" in api.inspect_plugin(installed)["Settings"]["Env"]
    api.configure_plugin(installed, ["DEBUG=0"])
    assert "DEBUG=0" in api.inspect_plugin(installed)["Settings"]["Env"]


def test_upgrade(api: Any, installed: str) -> None:
    """A disabled plugin is upgraded to the same reference; inspecting and enabling work after."""
    lines = list(api.upgrade_plugin(installed, installed, api.plugin_privileges(installed)))
    assert not [line for line in lines if "error" in line]
    assert api.inspect_plugin(installed)["Name"] == f"{installed}:latest"
    api.enable_plugin(installed)
    api.disable_plugin(installed)


def test_remove(api: Any, installed: str) -> None:
    """Removing returns True and afterwards the plugin is not found."""
    assert api.remove_plugin(installed) is True
    with pytest.raises(NotFound):
        api.inspect_plugin(installed)


@pytest.mark.parametrize("gzip", [False, True])
def test_create(api: Any, tmp_path: Path, gzip: bool) -> None:  # noqa: FBT001 - docker-py's own word
    """The dummy plugin of docker-py's suite is created from a folder, plain and compressed."""
    (tmp_path / "rootfs" / "dummy").mkdir(parents=True)
    config = {
        "description": "Dummy test plugin for docker python SDK",
        "documentation": "https://github.com/docker/docker-py",
        "entrypoint": ["/dummy"],
        "network": {"type": "host"},
        "interface": {"types": ["docker.volumedriver/1.0"], "socket": "dummy.sock"},
        "env": [{"name": "DEBUG", "settable": ["value"], "value": "0"}],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert api.create_plugin("docker-sdk-py/test-plugin", str(tmp_path), gzip) is True
    assert api.inspect_plugin("docker-sdk-py/test-plugin")["Config"]["Entrypoint"] == ["/dummy"]
    api.remove_plugin("docker-sdk-py/test-plugin")


def test_push_by_docker_pys_own_path(api: Any, published: str) -> None:
    """push_plugin posts to …/pull, which is taken as a push: the registry has the plugin afterwards."""
    copy = f"{published}-copy"
    list(api.pull_plugin(published, api.plugin_privileges(published), name=copy))
    api.push_plugin(copy)
    api.remove_plugin(copy)
    assert api.plugin_privileges(copy)


def test_objects(sdk: Any, published: str) -> None:
    """The high-level client installs, reloads, lists and removes by object."""
    plugin = sdk.plugins.install(published)
    assert plugin.name == f"{published}:latest"
    states = [plugin.enabled]
    plugin.enable()
    plugin.reload()
    states.append(plugin.enabled)
    assert states == [False, True]
    assert published in [p.name.rpartition(":")[0] for p in sdk.plugins.list()]
    plugin.remove(force=True)


def test_version_info_ping(sdk: Any, api: Any, daemon: Daemon) -> None:
    """Version, info and ping hold what docker-py's suite reads; the version is the same with and without prefix."""
    assert {"GoVersion", "Version"} <= set(sdk.version())
    assert {"ID", "Name", "Containers", "Images", "Debug"} <= set(sdk.info())
    assert sdk.ping() is True
    assert {"LayersSize", "Containers", "Volumes", "Images"} <= set(sdk.df())
    fixed = docker.APIClient(base_url=daemon.host, version="1.41")
    assert (
        fixed.version()["ApiVersion"] == api.version()["ApiVersion"] == fixed.version(api_version=False)["ApiVersion"]
    )
    fixed.close()


def test_cancel_events(sdk: Any) -> None:
    """An event stream that the client closes ends the client's loop at once."""
    events = sdk.events(until=int(time.time()) + 5)
    closer = threading.Timer(0.5, events.close)
    began = time.monotonic()
    closer.start()
    for _ in events:
        pass
    closer.join()
    assert time.monotonic() - began < 3


def test_events_are_decoded(sdk: Any, api: Any, installed: str) -> None:
    """docker-py decodes each event as one object."""
    since = int(time.time()) - 1
    api.enable_plugin(installed)
    api.disable_plugin(installed)
    filters = {"type": "plugin", "plugin": installed}
    seen = list(sdk.events(since=since, until=int(time.time()) + 1, decode=True, filters=filters))
    assert [event["Action"] for event in seen][-2:] == ["enable", "disable"]
    assert seen[-1]["Actor"]["Attributes"] == {"name": installed}


def test_create_with_the_config_last(api: Any) -> None:
    """A tar whose config.json comes after its rootfs, with no content type, makes a plugin."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        folder = tarfile.TarInfo("rootfs/")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        raw = b'{"description": "late"}'
        info = tarfile.TarInfo("config.json")
        info.size = len(raw)
        tar.addfile(info, io.BytesIO(raw))
    url = api._url("/plugins/create")
    api._raise_for_status(api._post(url, params={"name": "late/config"}, data=out.getvalue()))
    assert api.inspect_plugin("late/config")["Config"]["Description"] == "late"
    api.remove_plugin("late/config")


@pytest.mark.parametrize("alias", ["", "test"])
def test_the_way_ansible_works(api: Any, published: str, alias: str) -> None:
    """The calls of community.docker's docker_plugin, each state asked for twice: the second changes nothing."""
    name = alias or published

    def present() -> bool:
        try:
            api.inspect_plugin(name)
        except NotFound:
            privileges = api.plugin_privileges(published)
            list(api.pull_plugin(published, privileges, name=alias or None))
            return True
        return False

    def options(value: str) -> bool:
        current = dict(line.split("=", 1) for line in api.inspect_plugin(name)["Settings"]["Env"])
        if current["DEBUG"] == value:
            return False
        api.configure_plugin(name, {"DEBUG": value})
        return True

    def switched(*, on: bool) -> bool:
        if api.inspect_plugin(name)["Enabled"] is on:
            return False
        # Ansible posts an empty object with a JSON content type
        verb = "enable" if on else "disable"
        response = api._post_json(api._url("/plugins/{0}/{1}", name, verb), data={}, params={"timeout": 0})
        api._raise_for_status(response)
        return True

    def absent() -> bool:
        try:
            api.inspect_plugin(name)
        except NotFound:
            return False
        return bool(api.remove_plugin(name, force=False))

    assert [present(), present()] == [True, False]
    assert [options("1"), options("1"), options("0"), options("0")] == [True, False, True, False]
    assert [switched(on=True), switched(on=True)] == [True, False]
    assert [switched(on=False), switched(on=False)] == [True, False]
    assert [absent(), absent()] == [True, False]

"""The docker CLI, old and new, against a real daemon with real plugins: what upstream's own suite expects of them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import procs
from tests.support.daemon import Daemon
from tests.support.docker_cli import DockerCLI

pytestmark = pytest.mark.root

Folder = Callable[..., Path]


def inspect(docker: DockerCLI, name: str) -> dict[str, object]:
    found: list[dict[str, object]] = json.loads(docker.run("plugin", "inspect", name, check=True).stdout)
    return found[0]


def listed(docker: DockerCLI, *words: str) -> dict[str, str]:
    """Return name → ENABLED as the CLI lists them."""
    rows = docker.run("plugin", "ls", "--format", "{{.Name}} {{.Enabled}}", *words, check=True).stdout.splitlines()
    return dict(row.rsplit(" ", 1) for row in rows)


def fails(docker: DockerCLI, *words: str) -> str:
    """Run a command that must fail; return what it says."""
    done = docker.run(*words)
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


def plugin_folders(daemon: Daemon) -> set[str]:
    return {path.name for path in (daemon.root / "plugins").iterdir()}


def test_basic_ops(daemon: Daemon, docker: DockerCLI, published: str) -> None:
    """Install enables; an enabled plugin is not removed; disabled and removed, nothing of it is on the disk."""
    done = docker.run("plugin", "install", "--grant-all-permissions", published, check=True)
    assert f"Installed plugin {published}" in done.stdout
    assert listed(docker)[f"{published}:latest"] == "true"
    plugin_id = str(inspect(docker, published)["Id"])
    assert "is enabled" in fails(docker, "plugin", "rm", published)
    docker.run("plugin", "disable", published, check=True)
    assert docker.run("plugin", "rm", published, check=True).stdout.strip() == published
    assert not (daemon.root / "plugins" / plugin_id).exists()
    assert not (daemon.run / "plugins" / plugin_id).exists()


def test_force_remove(daemon: Daemon, docker: DockerCLI, name: str, folder: Folder) -> None:
    """rm --force stops and removes an enabled plugin and prints its name."""
    docker.run("plugin", "create", name, str(folder()), check=True)
    docker.run("plugin", "enable", name, check=True)
    assert "is enabled" in fails(docker, "plugin", "remove", name)
    assert docker.run("plugin", "remove", "--force", name, check=True).stdout.strip() == name
    assert f"{name}:latest" not in listed(docker)


def test_install_disabled(docker: DockerCLI, published: str) -> None:
    """install --disable leaves the plugin off; enable, disable and rm print its name."""
    docker.run("plugin", "install", "--grant-all-permissions", "--disable", published, check=True)
    assert listed(docker)[f"{published}:latest"] == "false"
    for verb in ("enable", "disable", "rm"):
        assert docker.run("plugin", verb, published, check=True).stdout.strip() == published


def test_install_shows_privileges_and_asks(docker: DockerCLI, published: str) -> None:
    """Without --grant-all-permissions the privileges are shown, and no answer means no plugin."""
    done = docker.run("plugin", "install", published, answer="n\n")
    assert "capabilities: [CAP_SYS_ADMIN]" in done.stdout
    assert "network: [none]" in done.stdout
    assert "mount: [/usr/share]" in done.stdout
    assert f"{published}:latest" not in listed(docker)
    assert (
        "Installed plugin" in docker.run("plugin", "install", "--disable", published, answer="y\n", check=True).stdout
    )
    docker.run("plugin", "rm", published, check=True)


def test_install_under_an_alias(docker: DockerCLI, published: str) -> None:
    """An alias is the local name; the reference stays that of the registry."""
    docker.run(
        "plugin", "install", "--grant-all-permissions", "--alias", "al/ias:7", "--disable", published, check=True
    )
    found = inspect(docker, "al/ias:7")
    assert found["Name"] == "al/ias:7"
    assert found["PluginReference"] == f"{published}:latest"
    docker.run("plugin", "rm", "al/ias:7", check=True)


def test_install_args(docker: DockerCLI, name: str, folder: Folder) -> None:
    """A variable without a value appears in the settings only when it is set at install."""
    variable = {"name": "DEBUG", "description": "", "settable": ["value"]}
    version = {"name": "VERSION", "value": "1"}
    docker.run("plugin", "create", name, str(folder(env=[version, variable])), check=True)
    docker.run("plugin", "push", name, check=True)
    docker.run("plugin", "rm", name, check=True)
    docker.run("plugin", "install", "--grant-all-permissions", "--disable", name, "DEBUG=1", check=True)
    settings = inspect(docker, name)["Settings"]
    assert isinstance(settings, dict)
    assert "DEBUG=1" in settings["Env"]
    docker.run("plugin", "rm", name, check=True)


def test_set(docker: DockerCLI, name: str, folder: Folder) -> None:
    """set changes variables and mount sources, and refuses what has none; settings reach the plugin."""
    mounts = [
        {
            "name": "pmount1",
            "settable": ["source"],
            "source": "/usr/share",
            "destination": "/seed",
            "type": "bind",
            "options": ["rbind"],
        },
        {"name": "pmount2", "settable": ["source"], "destination": "/b", "type": "bind"},
    ]
    devices = [
        {"name": "pdev1", "path": "/dev/null", "settable": ["path"]},
        {"name": "pdev2", "settable": ["path"]},
    ]
    plugin = folder(mounts=mounts, linux={"devices": devices})
    docker.run("plugin", "create", name, str(plugin), check=True)
    docker.run("plugin", "set", name, "DEBUG=1", check=True)
    docker.run("plugin", "set", name, "pmount1.source=/usr/lib", check=True)
    settings = inspect(docker, name)["Settings"]
    assert isinstance(settings, dict)
    assert "DEBUG=1" in settings["Env"]
    assert settings["Mounts"][0]["Source"] == "/usr/lib"
    assert "plugin config has no mount source" in fails(docker, "plugin", "set", name, "pmount2.source=/x")
    assert "plugin config has no device path" in fails(docker, "plugin", "set", name, "pdev2.path=/dev/null")
    assert "mount source is not specified" in fails(docker, "plugin", "enable", name)
    docker.run("plugin", "rm", name, check=True)


def test_set_reaches_the_plugin(daemon: Daemon, docker: DockerCLI, name: str, folder: Folder) -> None:
    """An enabled plugin refuses set; arguments and variables that were set are what it runs with."""
    docker.run("plugin", "create", name, str(folder()), check=True)
    docker.run("plugin", "set", name, "args=one two", "DEBUG=1", check=True)
    docker.run("plugin", "enable", name, check=True)
    refused = fails(docker, "plugin", "set", name, "DEBUG=0")
    assert "cannot set on an active plugin, disable plugin before setting" in refused
    bundle = daemon.run / "instances" / str(inspect(docker, name)["Id"]) / "bundle"
    process = json.loads((bundle / "config.json").read_text())["process"]
    assert process["args"] == ["/sample-volume-plugin", "one", "two"]
    assert "DEBUG=1" in process["env"]
    docker.run("plugin", "rm", "-f", name, check=True)


def test_enable_disable_twice(docker: DockerCLI, name: str, folder: Folder) -> None:
    """Enabling twice and disabling twice are refused with Docker's words."""
    docker.run("plugin", "create", name, str(folder()), check=True)
    docker.run("plugin", "enable", name, check=True)
    assert "already enabled" in fails(docker, "plugin", "enable", name)
    docker.run("plugin", "disable", name, check=True)
    assert "already disabled" in fails(docker, "plugin", "disable", name)
    docker.run("plugin", "rm", name, check=True)


def test_create_minimal_twice(docker: DockerCLI, tmp_path: Path) -> None:
    """A plugin with only a description and an empty rootfs can be created, once; it cannot be enabled."""
    plugin = tmp_path / "minimal"
    (plugin / "rootfs").mkdir(parents=True)
    (plugin / "config.json").write_text('{"description": "foo plugin"}')
    name = "foo/bar-driver"
    assert docker.run("plugin", "create", name, str(plugin), check=True).stdout.strip() == name
    assert "already exist" in fails(docker, "plugin", "create", name, str(plugin))
    assert list(listed(docker)).count(f"{name}:latest") == 1
    assert "has no Entrypoint" in fails(docker, "plugin", "enable", name)
    docker.run("plugin", "rm", name, check=True)


def test_create_compressed(docker: DockerCLI, name: str, folder: Folder) -> None:
    """create --compress works."""
    docker.run("plugin", "create", "--compress", name, str(folder()), check=True)
    docker.run("plugin", "enable", name, check=True)
    docker.run("plugin", "rm", "-f", name, check=True)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"entrypoint": "notalist", "workDir": 5}, ["Entrypoint: expected a list", "WorkDir: expected a string"]),
        ({"interface": {"socket": "../x.sock"}}, ["Interface.Socket"]),
        ({"mounts": [{"destination": "rel", "type": "bind", "source": "/"}]}, ["Mounts[0].Destination"]),
    ],
)
def test_create_bad_config(
    daemon: Daemon, docker: DockerCLI, folder: Folder, config: dict[str, object], says: list[str]
) -> None:
    """A config with wrong values is refused with every path named, and leaves no blob and no directory."""
    plugin = folder(**config)
    # the CLI checks types as well; what it lets through is ours
    before = daemon.blobs(), plugin_folders(daemon)
    message = fails(docker, "plugin", "create", "bad/config", str(plugin))
    if "Error response from daemon" in message:
        for text in says:
            assert text in message
    assert plugin_folders(daemon) <= before[1]
    assert list((daemon.root / "staging").iterdir()) == []
    procs.wait_until(lambda: daemon.blobs() <= before[0])


def test_inspect_and_operate_by_id(docker: DockerCLI, name: str, folder: Folder) -> None:
    """Every command takes the full ID, a prefix of it, and the name with and without tag."""
    docker.run("plugin", "create", name, str(folder()), check=True)
    plugin_id = str(inspect(docker, name)["Id"])
    short = plugin_id[:8]
    for typed in (plugin_id, short, f"{name}:latest", name):
        assert inspect(docker, typed)["Id"] == plugin_id
    docker.run("plugin", "set", short, "DEBUG=1", check=True)
    docker.run("plugin", "enable", short, check=True)
    docker.run("plugin", "disable", short, check=True)
    docker.run("plugin", "rm", short, check=True)
    fails(docker, "plugin", "inspect", short)


def test_plain_inspect_finds_a_plugin(docker: DockerCLI, name: str, folder: Folder) -> None:
    """docker inspect, with and without --type, shows a plugin; an unknown object is named as such."""
    docker.run("plugin", "create", name, str(folder()), check=True)
    for words in (("inspect", "--type", "plugin"), ("inspect",)):
        done = docker.run(*words, "--format", "{{.Name}}", name, check=True)
        assert done.stdout.strip() == f"{name}:latest"
    assert "No such object: foobar" in fails(docker, "inspect", "foobar")
    docker.run("plugin", "rm", name, check=True)


def test_list_filters_and_raw_format(docker: DockerCLI, name: str, folder: Folder) -> None:
    """ls filters by state and capability; the configured raw format shows the full ID."""
    docker.run("plugin", "create", name, str(folder()), check=True)
    local = f"{name}:latest"
    assert local not in listed(docker, "--filter", "enabled=true")
    assert listed(docker, "--filter", "enabled=false")[local] == "false"
    assert local in listed(docker, "--filter", "capability=volumedriver")
    assert local not in listed(docker, "--filter", "capability=authz")
    assert "invalid filter" in fails(docker, "plugin", "ls", "--filter", "foo=bar")
    assert "invalid filter" in fails(docker, "plugin", "ls", "--filter", "enabled=potato")
    raw = docker.run("plugin", "ls", "--no-trunc", "--format", "raw", check=True).stdout
    assert re.search(rf"plugin_id: [0-9a-f]{{64}}\nname: {re.escape(local)}\ndescription: .*\nenabled: false", raw)
    docker.run("plugin", "rm", name, check=True)


def test_upgrade(daemon: Daemon, docker: DockerCLI, name: str, folder: Folder) -> None:
    """An enabled plugin is not upgraded; a disabled one gets the new content, keeping ID, name, settings and data."""
    newer = folder("2")
    (newer / "rootfs" / "v2").write_text("new")
    docker.run("plugin", "create", f"{name}:v2", str(newer), check=True)
    docker.run("plugin", "push", f"{name}:v2", check=True)
    docker.run("plugin", "rm", f"{name}:v2", check=True)
    docker.run("plugin", "create", name, str(folder("1")), check=True)
    docker.run("plugin", "set", name, "DEBUG=1", check=True)
    docker.run("plugin", "enable", name, check=True)
    upgrade = ("plugin", "upgrade", "--grant-all-permissions", "--skip-remote-check", name, f"{name}:v2")
    before = inspect(docker, name)
    top = daemon.root / "plugins" / str(before["Id"])
    assert "disabled before upgrading" in fails(docker, *upgrade)
    assert not (top / "gen-1" / "rootfs" / "v2").exists()
    (top / "propagated-mount" / "data").write_text("kept")
    docker.run("plugin", "disable", "-f", name, check=True)
    assert "Upgraded plugin" in docker.run(*upgrade, check=True).stdout
    after = inspect(docker, name)
    assert (top / "gen-2" / "rootfs" / "v2").read_text() == "new"
    assert not (top / "gen-1").exists()
    assert (after["Id"], after["Name"]) == (before["Id"], before["Name"])
    assert after["PluginReference"] == f"{name}:v2"
    settings = after["Settings"]
    assert isinstance(settings, dict)
    assert sorted(settings["Env"]) == ["DEBUG=1", "FAULT=", "STATE=/mnt/state", "VERSION=2"]
    docker.run("plugin", "enable", name, check=True)
    assert (top / "propagated-mount" / "data").read_text() == "kept"
    docker.run("plugin", "rm", "-f", name, check=True)


def test_push_and_install_by_digest(docker: DockerCLI, published: str) -> None:
    """A plugin installed by digest is known by its tag."""
    docker.run("plugin", "install", "--grant-all-permissions", "--disable", published, check=True)
    done = docker.run("plugin", "push", published, check=True)
    assert f"The push refers to repository [{published}]" in done.stdout
    pull = docker.run(
        "plugin", "install", "--grant-all-permissions", "--disable", "--alias", "x", published, check=True
    )
    digest = re.search(r"Digest: (sha256:[0-9a-f]{64})", pull.stdout)
    assert digest
    docker.run("plugin", "rm", "-f", published, "x", check=True)
    docker.run(
        "plugin", "install", "--grant-all-permissions", "--disable", f"{published}:latest@{digest[1]}", check=True
    )
    assert inspect(docker, f"{published}:latest")["Name"] == f"{published}:latest"
    docker.run("plugin", "rm", published, check=True)


def test_push_after_removing_another_plugin(docker: DockerCLI, name: str, folder: Folder) -> None:
    """Removing one plugin takes nothing from another one of the same content: it can still be pushed whole."""
    plugin = folder()
    docker.run("plugin", "create", name, str(plugin), check=True)
    docker.run("plugin", "create", "other/one", str(plugin), check=True)
    docker.run("plugin", "rm", "other/one", check=True)
    docker.run("plugin", "push", name, check=True)
    docker.run("plugin", "rm", name, check=True)
    docker.run("plugin", "install", "--grant-all-permissions", name, check=True)
    docker.run("plugin", "rm", "-f", name, check=True)


def test_install_what_is_not_there(docker: DockerCLI, name: str) -> None:
    """Installing an unknown reference fails with the registry's reason, and leaves nothing."""
    message = fails(docker, "plugin", "install", "--grant-all-permissions", name)
    assert "not found" in message
    assert f"{name}:latest" not in listed(docker)


def test_events(docker: DockerCLI, published: str) -> None:
    """Install, disable and rm give exactly pull, enable, disable and remove; the filter goes by ID and by name."""
    since = str(time.time())
    docker.run("plugin", "install", "--grant-all-permissions", published, check=True)
    docker.run("plugin", "disable", published, check=True)
    docker.run("plugin", "rm", published, check=True)
    done = docker.run(
        "events", "--since", since, "--until", str(time.time()),
        "--filter", f"plugin={published}", "--format", "{{.Action}}", check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["pull", "enable", "disable", "remove"]

"""The OCI spec of a plugin."""

import json
import os
from pathlib import Path

import pytest

from pluginsvc.model.plugin import Args, Device, Interface, Linux, Mount, Network, PluginConfig, PluginSettings
from pluginsvc.runtime.devices import DeviceNode
from pluginsvc.runtime.spec import Launch, UnusableSettings, build, check, is_bind

GOLDEN = Path(__file__).with_name("data")
BASE = PluginConfig(entrypoint=["/plugin"], interface=Interface(socket="p.sock"))
SSHFS = PluginConfig(
    entrypoint=["/docker-volume-sshfs"],
    args=Args(value=["ignored: settings count"]),
    interface=Interface(socket="sshfs.sock", types=["docker.volumedriver/1.0"]),
    linux=Linux(capabilities=["CAP_SYS_ADMIN", "CAP_CHOWN"], devices=[Device(name="fuse", path="/dev/fuse")]),
    network=Network(type="host"),
    propagated_mount="/mnt/volumes",
    mounts=[Mount(name="sshkey", source="/config/is/not/used", destination="/root/.ssh", type="bind")],
    work_dir="/work",
)
SSHFS_SETTINGS = PluginSettings(
    args=["--one", "two words", ""],
    env=["DEBUG=1"],
    mounts=[
        Mount(name="sshkey", source="", destination="/root/.ssh", type="bind", options=["rbind"]),
        Mount(name="state", source="/var/state", destination="/state", type="bind", options=["bind", "ro"]),
    ],
    devices=[Device(name="fuse", path="/dev/fuse")],
)
FUSE = DeviceNode(path="/dev/fuse", type="c", major=10, minor=229, mode=0o666, uid=0, gid=0)
EVERYTHING = PluginConfig(
    entrypoint=["/plugin", "serve"],
    interface=Interface(socket="p.sock"),
    linux=Linux(allow_all_devices=True),
    network=Network(type="bridge"),
    ipc_host=True,
    pid_host=True,
)
EVERYTHING_SETTINGS = PluginSettings(
    mounts=[
        Mount(name="shm", destination="/dev/shm/", type="tmpfs", options=["size=1m"]),
        Mount(name="mine", source="/dev/mine", destination="/dev/mine", type="bind", options=["rbind"]),
        Mount(name="proc", source="proc", destination="/proc", type="proc"),
    ]
)


def launch(config: PluginConfig, settings: PluginSettings) -> Launch:
    propagated = Path("/root/plugins/x/propagated-mount") if config.propagated_mount else None
    return Launch(
        plugin_id="ab" * 32,
        name="probe:latest",
        config=config,
        settings=settings,
        rootfs=Path("/root/plugins/x/gen-1/rootfs"),
        propagated=propagated,
    )


@pytest.mark.parametrize(
    ("name", "config", "settings", "devices"),
    [
        ("minimal", BASE, PluginSettings(), []),
        ("sshfs", SSHFS, SSHFS_SETTINGS, [FUSE]),
        ("everything", EVERYTHING, EVERYTHING_SETTINGS, []),
    ],
)
def test_spec_is_the_golden_one(
    name: str, config: PluginConfig, settings: PluginSettings, devices: list[DeviceNode]
) -> None:
    """Specs are exactly the documents in data/ (REF 3.10); UPDATE_GOLDEN=1 writes them anew."""
    asked = launch(config, settings)
    check(asked)
    found = build(
        asked,
        container_id="abab-1",
        sockets=Path("/run/p/plugins/x"),
        empty=Path("/run/p/instances/x/empty"),
        network_files=["/etc/hosts", "/etc/resolv.conf"],
        devices=devices,
    )
    golden = GOLDEN / f"spec-{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(golden.read_text())


@pytest.mark.parametrize(
    ("config", "settings", "problem"),
    [
        ({"entrypoint": None}, {}, "no Entrypoint"),
        ({"entrypoint": []}, {}, "no Entrypoint"),
        ({"interface": Interface()}, {}, "Interface.Socket ''"),
        ({"interface": Interface(socket="../p.sock")}, {}, "not a plain file name"),
        ({"interface": Interface(socket="..")}, {}, "not a plain file name"),
        ({"interface": Interface(socket="a/b")}, {}, "not a plain file name"),
        ({}, {"mounts": [Mount(name="m", destination="/m", type="bind")]}, "mount source is not specified"),
        ({}, {"mounts": [Mount(name="m", destination="/m", options=["rbind"])]}, "set probe:latest m.source=PATH"),
        ({}, {"mounts": [Mount(name="m", destination="m", type="tmpfs")]}, "destination of mount 'm'"),
        ({}, {"mounts": [Mount(destination="/m", source="a/b", type="bind")]}, "'a/b' of mount '/m' is not an abs"),
        ({}, {"devices": [Device(name="d")]}, "device path is not specified for device 'd'"),
        ({}, {"devices": [Device(name="d", path="")]}, "set probe:latest d.path=PATH"),
    ],
)
def test_unusable_settings_are_refused(config: dict[str, object], settings: dict[str, object], problem: str) -> None:
    """What can never run is refused with what is wrong and, where that helps, how to set it right."""
    asked = launch(
        PluginConfig(**{"entrypoint": ["/p"], "interface": Interface(socket="p.sock")} | config),  # type: ignore[arg-type]  # by name
        PluginSettings(**settings),  # type: ignore[arg-type]  # the same
    )
    with pytest.raises(UnusableSettings) as caught:
        check(asked)
    assert problem in str(caught.value)
    assert caught.value.plugin == "probe:latest"


def test_propagated_mount_needs_its_directory() -> None:
    """A config that asks for a propagated mount is not run without one."""
    asked = Launch(plugin_id="a", name="n", config=SSHFS, settings=PluginSettings(), rootfs=Path("/r"))
    with pytest.raises(UnusableSettings, match="propagated mount /mnt/volumes"):
        check(asked)


@pytest.mark.parametrize(
    "mount", [Mount(type="bind"), Mount(type="none", options=["ro", "rbind"]), Mount(type="", options=["bind"])]
)
def test_bind_mounts_are_known_by_type_or_option(mount: Mount) -> None:
    """A mount is a bind mount by its type or by its options, as for runc."""
    assert is_bind(mount)
    assert not is_bind(Mount(type="tmpfs", options=["rw"]))

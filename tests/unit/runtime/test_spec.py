"""The OCI spec of a plugin."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pluginsvc.model.options import Options
from pluginsvc.model.plugin import Args, Device, Interface, Linux, Mount, Network, PluginConfig, PluginSettings, User
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


def launch(config: PluginConfig, settings: PluginSettings, options: Options | None = None) -> Launch:
    propagated = Path("/root/plugins/x/propagated-mount") if config.propagated_mount else None
    return Launch(
        plugin_id="ab" * 32,
        name="probe:latest",
        config=config,
        settings=settings,
        rootfs=Path("/root/plugins/x/gen-1/rootfs"),
        propagated=propagated,
        options=options or Options(),
    )


def built(asked: Launch, devices: list[DeviceNode] | None = None, **facts: Any) -> dict[str, Any]:
    check(asked)
    return build(
        asked,
        container_id="abab-1",
        sockets=Path("/run/p/plugins/x"),
        empty=Path("/run/p/instances/x/empty"),
        network_files=["/etc/hosts", "/etc/resolv.conf"],
        devices=devices or [],
        **{"seccomp": None, "pure_v2": False, "counts_swap": True} | facts,
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
    found = built(launch(config, settings), devices)
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


LIMITED = Options(memory=64 << 20, pids=100, cpu_weight=50)


@pytest.mark.parametrize(
    ("facts", "limits"),
    [
        ({}, {"memory": {"limit": 64 << 20, "swap": 64 << 20}, "pids": {"limit": 100}, "cpu": {"shares": 512}}),
        ({"counts_swap": False}, {"memory": {"limit": 64 << 20}, "pids": {"limit": 100}, "cpu": {"shares": 512}}),
        (
            {"pure_v2": True},
            {
                "memory": {"limit": 64 << 20, "swap": 64 << 20},
                "pids": {"limit": 100},
                "unified": {"cpu.weight": "50"},
            },
        ),
    ],
)
def test_limits_fit_the_machine(facts: dict[str, Any], limits: dict[str, object]) -> None:
    """Limits come beside the device rules: no swap where it can be limited, the weight itself on v2, shares on v1."""
    resources = built(launch(BASE, PluginSettings(), LIMITED), **facts)["linux"]["resources"]
    assert resources.pop("devices")
    assert resources == limits


@pytest.mark.parametrize(("weight", "shares"), [(1, 10), (100, 1024), (10_000, 102_400)])
def test_weights_become_shares_in_proportion(weight: int, shares: int) -> None:
    """Everybody's weight of 100 is everybody's 1024 shares, and both ends fit what v1 takes."""
    linux = built(launch(BASE, PluginSettings(), Options(cpu_weight=weight)))["linux"]
    assert linux["resources"]["cpu"] == {"shares": shares}


def test_confinement_is_what_was_asked_for() -> None:
    """The profile goes in as it is; the other words are the spec's own."""
    profile = {"defaultAction": "SCMP_ACT_LOG"}
    found = built(launch(BASE, PluginSettings(), Options(no_new_privileges=True, read_only=True)), seccomp=profile)
    assert found["linux"]["seccomp"] is profile
    assert found["process"]["noNewPrivileges"] is True
    assert found["root"]["readonly"] is True


def test_users_keep_what_their_config_names() -> None:
    """A plugin that runs as another user holds the capabilities that its config asks for and none of the defaults."""
    config = msgspec.structs.replace(SSHFS, user=User(uid=7, gid=8))
    assert built(launch(config, PluginSettings()))["process"]["user"] == {"uid": 0, "gid": 0}
    process = built(launch(config, PluginSettings(), Options(config_user=True)))["process"]
    assert process["user"] == {"uid": 7, "gid": 8}
    bounding = process["capabilities"].pop("bounding")
    assert {"CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_KILL"} <= set(bounding)
    kinds = ("effective", "permitted", "inheritable", "ambient")
    assert process["capabilities"] == {kind: ["CAP_SYS_ADMIN", "CAP_CHOWN"] for kind in kinds}


@pytest.mark.parametrize("user", [User(uid=-1), User(gid=-1), User(uid=(1 << 32) - 1), User(gid=1 << 40)])
def test_users_that_cannot_be_are_refused(user: User) -> None:
    """Numbers that Linux has no users for are refused where they would be used, and only there."""
    config = msgspec.structs.replace(BASE, user=user)
    check(launch(config, PluginSettings()))
    with pytest.raises(UnusableSettings, match=f"User {user.uid}:{user.gid} .*probe:latest"):
        check(launch(config, PluginSettings(), Options(config_user=True)))

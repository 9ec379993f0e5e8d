"""The OCI spec of a plugin (REF 3.10), built without touching the disk.

Mounts, devices, environment and arguments come from the settings, the rest from the config (REF 7.16).

The cgroup is one flat name at the top of each hierarchy, which works on v1, hybrid and v2, in a chroot and in a
systemd unit alike. Below the unit's own cgroup would be tidier, but on v2 runc then turns on what controllers it can
there, and systemd could not put a restarted daemon into its own cgroup any more while plugins live in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from posixpath import normpath
from typing import Any

import msgspec

from pluginsvc.errors import InvalidParameter
from pluginsvc.model.options import Options
from pluginsvc.model.plugin import Mount, PluginConfig, PluginSettings, User
from pluginsvc.runtime.devices import DeviceNode

SOCKETS_INSIDE = "/run/docker/plugins"
"""Where a plugin finds the directory for its socket."""

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
]
_MOUNTS = [
    ("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ["ro", "nosuid", "noexec", "nodev"]),
    ("/dev/mqueue", "mqueue", "mqueue", ["nosuid", "noexec", "nodev"]),
    ("/dev/shm", "tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777"]),  # noqa: S108 - inside the container
]
_MASKED = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
]
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
_NO_ID = (1 << 32) - 1
# zero, null, urandom, random, tty, console
_DEVICE_NUMBERS = [(1, 5), (1, 3), (1, 9), (1, 8), (5, 0), (5, 1)]


class UnusableSettings(InvalidParameter):
    """A plugin cannot be run the way its config and settings are; nothing was started."""

    def __init__(self, plugin: str, problem: str) -> None:
        self.plugin, self.problem = plugin, problem
        super().__init__(f"{problem}: plugin {plugin} cannot be enabled")


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """One start of a plugin.

    Attributes:
        plugin_id: 64 hex digits.
        name: for messages.
        config: what the author wrote.
        settings: what the operator set.
        rootfs: directory of the root file system.
        options: limits and confinement.
        propagated: shared mount whose mounts the host is to see; given when the config asks for one.
    """

    plugin_id: str
    name: str
    config: PluginConfig
    settings: PluginSettings
    rootfs: Path
    propagated: Path | None = None
    options: Options = Options()


def is_bind(mount: Mount) -> bool:
    """Tell whether a mount shows a directory of the host, by its type or by its options as the runtimes judge."""
    return mount.type == "bind" or not {"bind", "rbind"}.isdisjoint(mount.options or ())


def user(launch: Launch) -> User:
    """Return whom a plugin runs as."""
    return launch.config.user if launch.options.config_user else User()


def cgroup_name(container_id: str) -> str:
    """Return the name of a container's cgroup, directly below the root of each hierarchy."""
    return f"pluginsvc-{container_id}"


def check(launch: Launch) -> None:
    """Refuse what can never run (REF 7.17, 7.19, 7.47).

    Raises:
        UnusableSettings: with the first reason.
    """
    config, name = launch.config, launch.name
    if not config.entrypoint:
        raise UnusableSettings(name, "the config has no Entrypoint")
    socket = config.interface.socket
    if not socket or "/" in socket or "\0" in socket or socket in {".", ".."}:
        raise UnusableSettings(name, f"Interface.Socket {socket!r} is not a plain file name")
    if config.propagated_mount and launch.propagated is None:
        raise UnusableSettings(name, f"no directory was made for the propagated mount {config.propagated_mount}")
    if not all(0 <= number < _NO_ID for number in (user(launch).uid, user(launch).gid)):
        raise UnusableSettings(name, f"the config's User {config.user.uid}:{config.user.gid} is no user of Linux")
    for mount in launch.settings.mounts:
        label = mount.name or mount.destination
        if not mount.destination.startswith("/"):
            raise UnusableSettings(name, f"the destination of mount {label!r} is not an absolute path")
        if not is_bind(mount):
            continue
        if mount.source is None:
            hint = f"set it with `docker plugin set {name} {label}.source=PATH`"
            raise UnusableSettings(name, f"mount source is not specified for mount {label!r}, {hint}")
        if mount.source and not mount.source.startswith("/"):
            raise UnusableSettings(name, f"the source {mount.source!r} of mount {label!r} is not an absolute path")
    for device in launch.settings.devices:
        if not device.path:
            hint = f"set it with `docker plugin set {name} {device.name}.path=PATH`"
            raise UnusableSettings(name, f"device path is not specified for device {device.name!r}, {hint}")


def build(
    launch: Launch,
    *,
    container_id: str,
    sockets: Path,
    empty: Path,
    network_files: Sequence[str],
    devices: Sequence[DeviceNode],
    seccomp: dict[str, Any] | None,
    pure_v2: bool,
    counts_swap: bool,
) -> dict[str, Any]:
    """Return the spec of a launch that passed ``check``, ready to be encoded as ``config.json`` of the bundle.

    Args:
        launch: what to start.
        container_id: unique to this start.
        sockets: host directory where the plugin's socket is to appear.
        empty: an empty host directory, for bind mounts whose source is the empty string. Upstream the bundle is
            mounted there, which would give the plugin the monitor's control FIFO.
        network_files: those of ``/etc/hosts`` and ``/etc/resolv.conf`` that the host has.
        devices: all nodes that the settings' devices stand for.
        seccomp: a profile in the spec's own form, if there is to be one.
        pure_v2: whether the machine has nothing but cgroup v2.
        counts_swap: whether the kernel can limit swap.
    """
    config, settings = launch.config, launch.settings
    assert config.entrypoint is not None
    added = list(dict.fromkeys(config.linux.capabilities or ()))
    granted = list(dict.fromkeys([*_CAPABILITIES, *added]))
    runs_as = user(launch)
    # execve takes all from a user other than root but what is ambient: that is what the config asks for by name, and
    # the operator agreed to; with the defaults, such as DAC_OVERRIDE, it would be root by another number
    held = added if runs_as.uid else granted
    linux: dict[str, Any] = {
        "resources": {"devices": _device_rules(config, devices)}
        | _limits(launch.options, pure_v2=pure_v2, counts_swap=counts_swap),
        "cgroupsPath": f"/{cgroup_name(container_id)}",
        "namespaces": [{"type": kind} for kind in _namespaces(config)],
        "devices": [node.spec() for node in devices],
        "maskedPaths": _MASKED,
        "readonlyPaths": _READ_ONLY,
    }
    if config.propagated_mount:
        linux["rootfsPropagation"] = "rshared"
    if seccomp is not None:
        linux["seccomp"] = seccomp
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": runs_as.uid, "gid": runs_as.gid},
            "args": [*config.entrypoint, *settings.args],
            "env": [_PATH, *settings.env],
            "cwd": config.work_dir or "/",
            "capabilities": {
                "bounding": granted,
                "effective": held,
                "inheritable": added,
                "permitted": held,
                "ambient": added if runs_as.uid else [],
            },
            "noNewPrivileges": launch.options.no_new_privileges,
        },
        "root": {"path": str(launch.rootfs), "readonly": launch.options.read_only},
        "mounts": list(_mounts(launch, sockets=sockets, empty=empty, network_files=network_files)),
        "linux": linux,
    }


def _limits(options: Options, *, pure_v2: bool, counts_swap: bool) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if options.memory:
        limits["memory"] = {"limit": options.memory, **({"swap": options.memory} if counts_swap else {})}
    if options.pids:
        limits["pids"] = {"limit": options.pids}
    if options.cpu_weight and pure_v2:
        # not as shares: how they become a weight differs between versions of runc (1.3.2) and of crun (1.23)
        limits["unified"] = {"cpu.weight": str(options.cpu_weight)}
    elif options.cpu_weight:
        limits["cpu"] = {"shares": options.cpu_weight * 1024 // 100}
    return limits


def _namespaces(config: PluginConfig) -> Iterable[str]:
    yield "mount"
    if config.network.type != "host":
        yield "network"
    yield "uts"
    if not config.pid_host:
        yield "pid"
    if not config.ipc_host:
        yield "ipc"


def _mounts(launch: Launch, *, sockets: Path, empty: Path, network_files: Sequence[str]) -> Iterable[dict[str, Any]]:
    # a plugin may replace what we mount below /dev; everything else it merely covers (REF 7.15)
    replaced = {normpath(mount.destination) for mount in launch.settings.mounts}
    for destination, kind, source, options in _MOUNTS:
        if not (destination.startswith("/dev/") and destination in replaced):
            yield _mount(destination, kind, source, options)
    if launch.config.propagated_mount:
        yield _mount(launch.config.propagated_mount, "bind", str(launch.propagated), ["rbind", "rw", "rshared"])
    for mount in launch.settings.mounts:
        source = mount.source if mount.source is not None else mount.type
        if is_bind(mount) and not source:
            source = str(empty)
        yield _mount(mount.destination, mount.type, source, mount.options or [])
    yield _mount(SOCKETS_INSIDE, "bind", str(sockets), ["rbind", "rshared"])
    if launch.config.network.type:
        for path in network_files:
            yield _mount(path, "bind", path, ["rbind", "ro"])


def _mount(destination: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _device_rules(config: PluginConfig, devices: Sequence[DeviceNode]) -> list[dict[str, Any]]:
    if config.linux.allow_all_devices:
        return [{"allow": True, "access": "rwm"}]
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    rules += [
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in _DEVICE_NUMBERS
    ]
    rules += [
        {"allow": True, "type": node.type, "major": node.major, "minor": node.minor, "access": "rwm"}
        for node in devices
    ]
    return rules

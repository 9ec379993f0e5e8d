"""What a start leaves on RUN: the bundle, the monitor's files, the socket's directory. All functions block.

::

    RUN/plugins/<id>/            the plugin's socket; its user owns it; mounted into it, and nothing else of RUN is
    RUN/instances/<id>/          all that ``attach`` and ``cleanup`` need
        container                container ID, written before anything is started
        bundle/config.json       the spec; the monitor adds its control FIFO (ctl) and its attach socket
        pid, monitor.pid         written by the runtime and the monitor
        instance.json            written once the container exists; without it the start never finished
        exit/<container ID>      exit code, renamed into place by the monitor
        oom                      made by the monitor when the kernel ran out of memory for the container
        runtime.log              what the runtime had to say
        log -> LOGS/<id>         the monitor gets a relative path, since it cuts absolute ones at a colon
        position                 how far the log was passed on
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import msgspec
import structlog

from pluginsvc.fsutil import mounts_below, remove_tree
from pluginsvc.model.plugin import User
from pluginsvc.runtime import cgroup, seccomp, spec
from pluginsvc.runtime.devices import DeviceNode, nodes_at
from pluginsvc.runtime.initlayer import write_init_layer
from pluginsvc.runtime.process import ProcessId
from pluginsvc.runtime.spec import Launch, UnusableSettings

LOG_NAME = "plugin.log"
"""The newest of a plugin's log files; older ones are called plugin.log.1 and so on."""

_log = structlog.get_logger()
_PLUGIN_ID = re.compile("[0-9a-f]{64}")
_NETWORK_FILES = ("/etc/hosts", "/etc/resolv.conf")
_UMOUNT_NOFOLLOW = 8
_MNT_DETACH = 2


def is_plugin_id(name: str) -> bool:
    """Tell whether a name can be a plugin's ID."""
    return _PLUGIN_ID.fullmatch(name) is not None


class Mark(msgspec.Struct, frozen=True):
    """A place in a log file that renaming the file does not move."""

    inode: int
    offset: int


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """``instance.json``: a container that was created.

    Attributes:
        name: of the plugin, for messages.
        boot: boot ID; after another boot all numbers here are void.
        container: its first process.
        monitor: the conmon that will tell its exit code.
        started_ns: wall clock.
        log: where its output begins.
    """

    name: str
    container_id: str
    boot: str
    container: ProcessId
    monitor: ProcessId
    started_ns: int
    log: Mark


class Place:
    """Where one plugin's files are; see the module's picture.

    Args:
        run_root: RUN.
        log_root: directory for logs, which outlive instances.
        plugin_id: 64 hex digits.
    """

    def __init__(self, run_root: Path, log_root: Path, plugin_id: str) -> None:
        if not _PLUGIN_ID.fullmatch(plugin_id):
            raise ValueError(f"not a plugin ID: {plugin_id!r}")
        self.plugin_id = plugin_id
        self.sockets = run_root / "plugins" / plugin_id
        self.logs = log_root / plugin_id
        self.state = run_root / "instances" / plugin_id
        self.bundle = self.state / "bundle"
        self.control = self.bundle / "ctl"
        self.exits = self.state / "exit"
        self.container_pid = self.state / "pid"
        self.monitor_pid = self.state / "monitor.pid"
        self.oom = self.state / "oom"
        self.runtime_log = self.state / "runtime.log"
        self.position = self.state / "position"
        self._container = self.state / "container"
        self._record = self.state / "instance.json"

    def container_id(self) -> str | None:
        """Return the container ID of the last start, finished or not; ``None`` where nothing was started."""
        try:
            return self._container.read_text("ascii") or None
        except FileNotFoundError:
            return None

    def record(self) -> Record | None:
        """Return the record of a container that was created, or ``None``."""
        try:
            return msgspec.json.decode(self._record.read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as exc:
            _log.warning("runtime.record_unreadable", path=str(self._record), error=str(exc))
            return None

    def save(self, record: Record) -> None:
        """Write the record."""
        replace(self._record, msgspec.json.encode(record))

    def exit_code(self, container_id: str) -> int | None:
        """Return what the monitor wrote, or ``None`` when it wrote nothing."""
        try:
            return int((self.exits / container_id).read_text("ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def prepare(self, launch: Launch, container_id: str) -> None:
        """Write the bundle and make an empty directory for the socket.

        Raises:
            UnusableSettings: the plugin cannot be run as it is configured.
            OSError: a directory or file cannot be made.
        """
        spec.check(launch)
        nodes = _devices(launch)
        _check_sources(launch)
        profile = seccomp.read(launch.name, Path(launch.options.seccomp)) if launch.options.seccomp else None
        self.state.mkdir(mode=0o700, parents=True)
        self._container.write_text(container_id, "ascii")
        # stale sockets would look like a plugin that listens
        self.sockets.mkdir(mode=0o700, parents=True)
        user = spec.user(launch)
        if user != User():
            os.chown(self.sockets, user.uid, user.gid)
        self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.state / "log").symlink_to(self.logs.absolute())
        self.exits.mkdir()
        self.bundle.mkdir()
        empty = self.state / "empty"
        empty.mkdir()
        write_init_layer(launch.rootfs)
        document = spec.build(
            launch,
            container_id=container_id,
            sockets=self.sockets,
            empty=empty,
            network_files=[path for path in _NETWORK_FILES if os.path.exists(path)],
            devices=nodes,
            seccomp=profile,
            pure_v2=cgroup.pure_v2(),
            counts_swap=cgroup.counts_swap(),
        )
        (self.bundle / "config.json").write_bytes(msgspec.json.encode(document))

    def remove(self) -> None:
        """Delete all that a start has written, the logs excepted, and unmount what the plugin has mounted there."""
        # the state last, since it names what else there is; where there is nothing, the mount table is not read either
        if os.path.lexists(self.sockets):
            for point in mounts_below(self.sockets):
                _unmount(point)
            remove_tree(self.sockets)
        if os.path.lexists(self.state):
            remove_tree(self.state)


def replace(path: Path, data: bytes) -> None:
    """Replace a file in one step; it need not survive a crash of the machine, since nothing it tells of would."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_bytes(data)
    temporary.replace(path)


def _devices(launch: Launch) -> list[DeviceNode]:
    found: dict[str, DeviceNode] = {}
    for device in launch.settings.devices:
        assert device.path
        try:
            found.update((node.path, node) for node in nodes_at(device.path))
        except OSError as exc:
            problem = f"device {device.name!r}: {device.path}: {exc.strerror or exc}"
            raise UnusableSettings(launch.name, problem) from exc
    return list(found.values())


def _check_sources(launch: Launch) -> None:
    for mount in launch.settings.mounts:
        if mount.source and spec.is_bind(mount):
            try:
                os.stat(mount.source)
            except OSError as exc:
                label = mount.name or mount.destination
                problem = f"mount {label!r}: its source {mount.source} on the host: {exc.strerror or exc}"
                raise UnusableSettings(launch.name, problem) from exc


def _unmount(point: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # detached, since a mount is still busy for a moment after the last process that saw it was killed
    if libc.umount2(os.fsencode(point), _UMOUNT_NOFOLLOW | _MNT_DETACH) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), point)

"""A dockerd with a containerd of its own, for side-by-side measurements; nothing of it touches the machine's Docker."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import parts, procs

_NOT_WANTED = '["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]'
"""CRI would listen and set up networks, opt would make /opt/containerd; Docker's plugins need neither."""

_FIXED = [Path(p) for p in ("/etc/docker", "/etc/docker/key.json", "/run/containerd", "/run/containerd/s")]
_FIXED += [Path(p) for p in ("/run/docker", "/run/docker/plugins")]
"""What the two make outside of every root they are given; parents first."""


@dataclass(frozen=True)
class Dockerd:
    """A running peer.

    Attributes:
        host: `unix:///…`, for clients.
        socket: the path in it.
        containerd: the process whose memory counts together with `daemon`'s.
        daemon: dockerd itself.

    """

    host: str
    socket: Path
    containerd: procs.Proc
    daemon: procs.Proc


@contextmanager
def dockerd(root: Path, *, timeout: float = 60.0, prefix: Sequence[str] = ()) -> Iterator[Dockerd]:
    """Run containerd and dockerd for the length of a `with` block; needs root.

    Args:
        root: an empty folder for data, state, sockets and logs; keep its path short, sockets have 107 bytes.
        timeout: seconds until it must answer.
        prefix: words before those of either, such as `Mounts.prefix`; they keep the process ID.

    """
    made = [path for path in _FIXED if not path.exists()]
    environment = parts.env()
    socket = root / "docker.sock"
    containerd_socket = root / "c" / "containerd.sock"
    for folder in ("c", "d"):
        (root / folder).mkdir(parents=True)
    config = root / "c" / "config.toml"
    config.write_text(f"version = 2\ndisabled_plugins = {_NOT_WANTED}\n")
    containerd_args: list[str | Path] = [
        *prefix,
        parts.find("containerd"),
        *("--config", config, "--address", containerd_socket),
        *("--root", root / "c" / "root", "--state", root / "c" / "state"),
    ]
    dockerd_args: list[str | Path] = [
        *prefix,
        parts.find("dockerd"),
        *("--host", f"unix://{socket}", "--containerd", containerd_socket, "--config-file", root / "d" / "none.json"),
        *("--data-root", root / "d" / "data", "--exec-root", root / "d" / "exec", "--pidfile", root / "d" / "pid"),
        *("--bridge=none", "--iptables=false", "--ip6tables=false"),
    ]
    (root / "d" / "none.json").write_text("{}\n")
    try:
        with (
            procs.running(
                containerd_args,
                log=root / "containerd.log",
                answers=lambda: procs.accepts(containerd_socket),
                env=environment,
                timeout=timeout,
            ) as containerd,
            procs.running(
                dockerd_args,
                log=root / "dockerd.log",
                answers=lambda: procs.accepts(socket),
                env=environment,
                timeout=timeout,
                grace=60,  # it stops its plugins one after another, each with 10 s to TERM and 10 s to KILL
            ) as daemon,
        ):
            yield Dockerd(f"unix://{socket}", socket, containerd, daemon)
    finally:
        _end_shims(str(containerd_socket))
        _unmount_below(root)
        for path in reversed(made):
            with contextlib.suppress(OSError):  # never made, or somebody else uses it by now
                path.unlink() if path.is_file() else path.rmdir()


def _end_shims(address: str) -> None:
    """Kill the shims of our containerd, known by its address, and the containers they hold."""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it is gone already
            continue
        if words[0].endswith(b"/containerd-shim-runc-v2") and address.encode() in words:
            for victim in (*_children(process), int(process.name)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)


def _children(process: Path) -> list[int]:
    try:
        return [int(word) for task in (process / "task").iterdir() for word in (task / "children").read_text().split()]
    except OSError:
        return []


def _unmount_below(root: Path) -> None:
    """Detach what a killed container left mounted below `root`, the deepest first."""
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()]
    for point in sorted((p for p in points if Path(p).is_relative_to(root)), key=len, reverse=True):
        subprocess.run(["umount", "--lazy", "--no-canonicalize", point], check=False, timeout=30)

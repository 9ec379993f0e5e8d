"""What systemd and the daemon say to each other: readiness, watchdog, sockets (sd_notify(3), sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
import subprocess
import time

_FIRST_FD = 3
_ASK_SECONDS = 2.0


class Notifier:
    """Sends notifications to the service manager; without one it does nothing.

    The socket's address is taken from the environment once, and removed from it, so that no child speaks for us.
    """

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        pid = os.environ.pop("WATCHDOG_PID", "")
        micros = os.environ.pop("WATCHDOG_USEC", "")
        mine = micros.isdecimal() and pid in {"", str(os.getpid())}
        self.watchdog_interval = int(micros) / 2e6 if mine else None
        """Seconds between two signs of life, half of what systemd allows; ``None``: it does not ask for any."""

    def send(self, *lines: str) -> None:
        """Send ``lines``, such as ``READY=1``; a manager that does not listen is no trouble of ours."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as out:
            try:
                out.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                return

    def ready(self, status: str) -> None:
        """Say that start-up, or a reload, is over."""
        self.send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Say in a line how things are, for ``systemctl status``."""
        self.send(f"STATUS={status}")

    def reloading(self) -> None:
        """Say that a reload begins."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the daemon is going down."""
        self.send("STOPPING=1", "STATUS=shutting down")

    def machine_stops(self) -> bool:
        """Tell whether the machine is going down, and not the daemon alone. Blocks, for two seconds at most."""
        if not self._address:
            return False
        words = ["systemctl", "is-system-running"]
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ASK_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.stdout.strip() == b"stopping"

    def alive(self) -> None:
        """Feed the watchdog."""
        self.send("WATCHDOG=1")


def inherited_sockets() -> list[int]:
    """Return the descriptors of the sockets that systemd handed over, and take them out of the environment."""
    pid = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", "")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return list(range(_FIRST_FD, _FIRST_FD + int(count)))

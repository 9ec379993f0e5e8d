"""Start helper processes for tests, wait until they answer, end them by process ID, show their log on failure."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

POLL = 0.02
"""Seconds between two looks at something that cannot notify us."""

LOG_TAIL = 4000
"""Bytes of a log shown in a failure."""


class ProcessFailedError(AssertionError):
    """A helper process ended early or did not answer in time; the message ends with its log."""


class Proc:
    """One process in a session of its own; stdout and stderr go to `log`. Make it with `start`."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self._popen = popen
        self.log = log

    @property
    def pid(self) -> int:
        return self._popen.pid

    def tail(self) -> str:
        """Return the end of the log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - LOG_TAIL))
            return file.read().decode(errors="replace")

    def wait_until(self, answers: Callable[[], bool], *, timeout: float = 20.0) -> None:
        """Return as soon as `answers()` is true.

        Args:
            answers: a cheap question, asked every 20 ms.
            timeout: seconds until `ProcessFailedError`; the death of the process raises it at once.

        """
        deadline = time.monotonic() + timeout
        while not answers():
            if (code := self._popen.poll()) is not None:
                raise ProcessFailedError(f"{self._popen.args!r} ended early with {code}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ProcessFailedError(f"{self._popen.args!r} did not answer in {timeout} s:\n{self.tail()}")
            time.sleep(POLL)

    def running(self) -> bool:
        """Tell whether it has not ended."""
        return self._popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this one process; nothing happens when it has ended."""
        self._popen.send_signal(number)

    def wait(self, *, timeout: float = 20.0) -> int:
        """Wait for the end and return the exit code (negative: the signal)."""
        return self._popen.wait(timeout)

    def end(self, *, grace: float = 10.0) -> int:
        """Send TERM, after `grace` seconds KILL, and reap; return the exit code. May be called again."""
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(grace)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        return self._popen.wait(10)


def start(
    args: Sequence[str | os.PathLike[str]],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> Proc:
    """Start a process with stdin closed and its output appended to `log`; `env` replaces the whole environment."""
    with log.open("ab") as out:
        popen = subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    return Proc(popen, log)


@contextmanager
def running(
    args: Sequence[str | os.PathLike[str]],
    *,
    log: Path,
    answers: Callable[[], bool] | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 20.0,
    grace: float = 10.0,
) -> Iterator[Proc]:
    """Run a process for the length of a `with` block, entered once `answers()` is true; see `wait_until` and `end`."""
    proc = start(args, log=log, env=env)
    try:
        if answers is not None:
            proc.wait_until(answers, timeout=timeout)
        yield proc
    finally:
        proc.end(grace=grace)


def wait_until(answers: Callable[[], object], *, timeout: float = 15.0) -> None:
    """Return as soon as `answers()` is true; fail when it is not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not answers():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        time.sleep(POLL)


def free_port() -> int:
    """Return a TCP port that was free on loopback a moment ago; prefer port 0 where the program tells what it got."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def accepts(address: Path | tuple[str, int]) -> bool:
    """Tell whether something accepts connections on a unix socket (a path) or a TCP address."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(1)
        try:
            sock.connect(str(address) if isinstance(address, Path) else address)
        except OSError:
            return False
    return True

"""The daemon's side of a confined child: start it, talk to it, see it end (design D4)."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import anyio
import anyio.to_thread
import backports.zstd
import isal
import structlog

import pluginsvc
from pluginsvc.errors import Internal, PluginsvcError
from pluginsvc.rootfs.source import InvalidArchive
from pluginsvc.rootfs.worker import PACKET
from pluginsvc.spawn import spawn

_log = structlog.get_logger()

_BOOT: Final = (
    "import sys; sys.path[:0] = sys.argv[3:]; "
    "from pluginsvc.rootfs.worker import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)
_LAST_WORDS: Final = 16384
_EXIT_WAIT: Final = 10.0


class ChildFailed(Internal):
    """The confined child ended without a result, or said what it must not say.

    Attributes:
        code: its exit status, negative for a signal, None when it had not ended.
        words: what it left on standard error.
    """

    def __init__(self, what: str, *, code: int | None = None, words: str = "") -> None:
        self.code, self.words = code, words
        status = "" if code is None else f" (exit status {code})"
        detail = f": {words}" if words else ""
        super().__init__(f"the unpacking process {what}{status}{detail}; try again, and report it if it repeats")


class ConfinementFailed(Internal):
    """The kernel did not let the child lock itself in, so nothing was unpacked."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"cannot confine the unpacking process: {reason}; the daemon needs to run as root with CAP_SYS_ADMIN, "
            "on a root directory that is a mount point"
        )


class DiskFull(Internal):
    """There is no room for a rootfs or a layer."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the disk is full while unpacking: {reason}; free some space and try again")


class UnpackFailed(Internal):
    """The machine, not the archive, kept a rootfs from being written."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"cannot unpack: {reason}")


def bounded_memory_file(name: str, size: int) -> int:
    """Return the descriptor of a file in memory that nobody can make larger or smaller than ``size`` bytes."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


async def open_directory(path: Path) -> int:
    """Return a descriptor of the directory ``path``, for a child to lock itself into.

    Raises:
        UnpackFailed: it is not there, or no directory.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return await anyio.to_thread.run_sync(os.open, path, flags)
    except OSError as exc:
        raise UnpackFailed(f"{path} cannot be opened: {exc.strerror}") from exc


class Child:
    """One confined child, for one job."""

    __slots__ = ("_control", "_ended", "_gone", "_process", "_words")

    def __init__(self, process: subprocess.Popen[bytes], ended: int, control: socket.socket, words: int) -> None:
        self._process = process
        self._ended = ended
        self._control = control
        self._words = words
        self._gone = False

    @classmethod
    async def start(cls, starter: Executor) -> Self:
        """Start a child; it gets ready by itself while the caller goes on.

        Args:
            starter: a thread that lives as long as the daemon, because the child dies with the thread that starts it.
                Not the loop's: that would stand still until the new program runs.

        Raises:
            UnpackFailed: no process could be started.
        """
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.setblocking(False)
        words = bounded_memory_file("pluginsvc-unpack-stderr", _LAST_WORDS)
        folders = dict.fromkeys(
            str(path)
            for path in (
                Path(pluginsvc.__file__).parents[1],
                Path(isal.__file__).parents[1],
                Path(backports.zstd.__file__).parents[2],
            )
        )
        # -I and -S: neither the environment nor the site's hooks get a say; utf8: names are bytes all the same
        flags = ("-I", "-S", "-B", "-X", "utf8", "-c", _BOOT)
        command = [sys.executable, *flags, str(theirs.fileno()), str(os.getpid()), *folders]
        try:
            with anyio.CancelScope(shield=True), theirs:
                loop = asyncio.get_running_loop()
                begin = partial(
                    spawn, command, stderr=words, environment={}, directory=Path("/"), pass_fds=(theirs.fileno(),)
                )
                process, ended = await loop.run_in_executor(starter, begin)
        except BaseException as exc:
            control.close()
            os.close(words)
            if isinstance(exc, OSError):
                raise UnpackFailed(f"no process can be started: {exc.strerror}") from exc
            raise
        return cls(process, ended, control, words)

    @property
    def pid(self) -> int:
        """Process ID of the outer process, which waits for the confined one."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """False once it has ended, known to the loop or not; for a spare, which has nothing to say yet."""
        try:
            return bool(self._control.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False

    def send(self, message: dict[str, Any], descriptors: Sequence[int]) -> None:
        """Send a request; the descriptors stay open on our side. Whether it arrived, ``result`` tells."""
        # a child that has ended left its reason in the socket, or none: both are found by result()
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._control, [json.dumps(message).encode()], list(descriptors))

    async def result(self, on_progress: Callable[[int], None] | None = None) -> dict[str, Any]:
        """Wait for the answer to the request; what it says is not trusted, only its form is checked here.

        Args:
            on_progress: gets the number of compressed bytes read so far.

        Raises:
            InvalidArchive: the archive is at fault.
            DiskFull, UnpackFailed, ConfinementFailed: the machine is.
            ChildFailed: it ended without an answer, or answered nonsense.
        """
        while True:
            message = await self._receive()
            match message:
                case None:
                    raise await self._failed("ended without a result")
                case {"progress": int(consumed)}:
                    if on_progress is not None:
                        on_progress(consumed)
                case {"result": dict(result)}:
                    return result
                case {"error": str(kind), "reason": str(reason)}:
                    raise _error(kind, reason, message)
                case _:
                    raise ChildFailed("sent a message that cannot be understood")

    async def _receive(self) -> Any:
        """Return the next message as decoded; None at the end."""
        while True:
            try:
                data = self._control.recv(PACKET)
            except BlockingIOError:
                await anyio.wait_readable(self._control)
                continue
            except ConnectionResetError:
                # said once when it left a request unread; what it had sent before comes after
                continue
            if not data:
                return None
            try:
                return json.loads(data)
            except (ValueError, RecursionError):
                return ()

    async def finish(self) -> None:
        """Wait for it to end by itself, and well.

        Raises:
            ChildFailed: it does not end, or with a status other than 0.
        """
        with anyio.move_on_after(_EXIT_WAIT):
            await self._wait()
        if self._process.returncode != 0:
            raise await self._failed("did not end well")

    async def _wait(self) -> None:
        if self._process.poll() is None:
            await anyio.wait_readable(self._ended)
            self._process.poll()

    async def _failed(self, what: str) -> ChildFailed:
        with anyio.move_on_after(_EXIT_WAIT):
            await self._wait()
        words = os.pread(self._words, _LAST_WORDS, 0).rstrip(b"\0").decode("utf-8", "backslashreplace")
        return ChildFailed(what, code=self._process.returncode, words=words.strip()[-2000:])

    async def kill(self) -> None:
        """End it, wait until it and the confined process are gone, and close what we hold of it; again is fine."""
        if self._gone:
            return
        self._gone = True
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(_EXIT_WAIT) as bound:
                self._process.kill()
                await self._wait()
                # the confined process dies with the outer one, a moment later; it holds the socket until then
                while await self._receive() is not None:
                    pass
            if bound.cancelled_caught:
                _log.error("rootfs.child_stuck", pid=self.pid)
            self._control.close()
            os.close(self._ended)
            os.close(self._words)


def _error(kind: str, reason: str, message: dict[str, Any]) -> PluginsvcError:
    """Return the error that a child's answer stands for."""
    if kind == "archive":
        entry, offset = message.get("entry"), message.get("offset")
        try:
            name = bytes.fromhex(entry) if isinstance(entry, str) else None
        except ValueError:
            name = None
        return InvalidArchive(reason, entry=name, offset=offset if isinstance(offset, int) else None)
    if kind == "disk":
        return DiskFull(reason)
    if kind == "confinement":
        return ConfinementFailed(reason)
    return UnpackFailed(reason)

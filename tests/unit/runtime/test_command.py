"""Programs that are run to their end, however that comes."""

import os
import signal
import subprocess
import time
from pathlib import Path

import anyio
import pytest

from pluginsvc.runtime.command import CommandFailed, Ended, run

pytestmark = pytest.mark.anyio


def shell(text: str) -> list[str]:
    return ["sh", "-c", text]


def children() -> set[str]:
    """Return this process's children, those that nobody has waited for among them."""
    return {pid for task in os.listdir("/proc/self/task") for pid in _read(f"/proc/self/task/{task}/children").split()}


def _read(path: str) -> str:
    try:
        return Path(path).read_text("ascii")
    except FileNotFoundError:
        return ""


async def test_code_and_last_words() -> None:
    """The exit code comes with the last 4096 bytes of stderr, however many there were; stdin is empty."""
    assert await run(["true"], within=10) == Ended(0, b"")
    assert await run(shell("cat >&2; echo no >&2; exit 3"), within=10) == Ended(3, b"no\n")
    assert await run(shell("kill -9 $$"), within=10) == Ended(-signal.SIGKILL, b"")
    found = await run(shell("head -c 1000000 /dev/zero >&2; printf end >&2"), within=10)
    assert found.said == bytes(4093) + b"end"


async def test_surroundings(tmp_path: Path) -> None:
    """A program runs where it is told, in a session of its own, with the variables and descriptors it is given."""
    reading, writing = os.pipe()
    try:
        text = f'echo "$(pwd) $A $(cut -d" " -f6 /proc/self/stat) $$" >/proc/self/fd/{writing}'
        environment = {"PATH": "/usr/bin:/bin", "A": "b"}
        ended = await run(shell(text), within=10, environment=environment, directory=tmp_path, pass_fds=[writing])
        assert ended == Ended(0, b"")
        where, variable, session, pid = os.read(reading, 1000).split()
    finally:
        os.close(reading)
        os.close(writing)
    assert (where.decode(), variable) == (str(tmp_path), b"b")
    assert session == pid


async def test_who_is_left_behind_keeps_nobody_waiting() -> None:
    """What a program leaves running may hold its stderr open; the program's own end counts."""
    began = time.monotonic()
    ended = await run(shell("sleep 20 & echo $! >&2"), within=10)
    os.kill(int(ended.said), signal.SIGKILL)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("way", ["time", "cancelled"])
async def test_killed(tmp_path: Path, way: str) -> None:
    """A program that takes too long, or that nobody waits for any more, is dead and reaped when the call ends."""
    before = children()
    text = f"echo $$ >{tmp_path}/pid; exec sleep 60"
    if way == "time":
        with pytest.raises(TimeoutError):
            await run(shell(text), within=0.3)
    else:
        with anyio.move_on_after(0.3) as scope:
            await run(shell(text), within=60)
        assert scope.cancelled_caught
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert children() == before


async def test_nothing_stays(tmp_path: Path) -> None:
    """No call leaves a descriptor or a process, whether it works out or not."""
    (tmp_path / "broken").write_bytes(b"\x7fELF, or so it says")
    (tmp_path / "broken").chmod(0o755)
    await run(["true"], within=10)
    before = len(os.listdir("/proc/self/fd")), children()
    await run(shell("echo x >&2; exit 1"), within=10)
    with pytest.raises(CommandFailed, match="no-such-program is not there or not executable"):
        await run(["no-such-program"], within=10)
    with pytest.raises(OSError, match="Exec format error"):
        await run([str(tmp_path / "broken")], within=10)
    with pytest.raises(TimeoutError):
        await run(["sleep", "60"], within=0.05)
    assert (len(os.listdir("/proc/self/fd")), children()) == before


async def test_no_descriptor_to_wait_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that cannot be watched, for want of descriptors, is killed and reaped, and the error says why."""
    before = children()

    def refused(pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refused)
    with pytest.raises(OSError, match="Too many open files"):
        await run(["sleep", "60"], within=10)
    assert children() == before


def test_the_fast_way_is_taken() -> None:
    """This Python starts programs by vfork(2), on which the time of every enable depends."""
    assert subprocess._USE_VFORK

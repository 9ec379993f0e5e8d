"""Processes told apart by their start time."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from pluginsvc.runtime.process import ProcessId, with_argument

pytestmark = pytest.mark.anyio


@contextmanager
def sleeper(*, program: str = "sleep", word: str = "60") -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([program, word]) as child:
        try:
            yield child
        finally:
            child.kill()


def identify(pid: int) -> ProcessId:
    process = ProcessId.of(pid)
    assert process is not None
    return process


async def test_many_wait_for_one_end() -> None:
    """Any number of tasks see a process end; afterwards waiting returns at once and signals reach nobody."""
    with sleeper() as child:
        process = await to_thread.run_sync(identify, child.pid)
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(process.wait)
            await anyio.wait_all_tasks_blocked()
            assert await to_thread.run_sync(process.send, signal.SIGKILL)
        child.wait()
        await process.wait()
        assert not await to_thread.run_sync(process.send, signal.SIGKILL)
        assert await to_thread.run_sync(ProcessId.of, child.pid) is None


async def test_stranger_with_the_same_number_is_left_alone() -> None:
    """A process that has the number but another start time is neither waited for nor signalled."""
    with sleeper() as child:
        process = await to_thread.run_sync(identify, child.pid)
        earlier = ProcessId(process.pid, process.started - 1)
        with anyio.fail_after(5):
            await earlier.wait()
        assert not await to_thread.run_sync(earlier.send, signal.SIGKILL)
        assert child.poll() is None


def test_command_with_parentheses(tmp_path: Path) -> None:
    """A command that looks like the end of its field does not shift the others."""
    sleep = shutil.which("sleep")
    assert sleep
    (tmp_path / ") R 1 2 3").symlink_to(sleep)
    with sleeper() as one, sleeper(program=str(tmp_path / ") R 1 2 3")) as other:
        assert 0 <= identify(other.pid).started - identify(one.pid).started < 1000


def test_found_by_a_whole_argument() -> None:
    """Only a process that has the word as an argument of its own is found."""
    word = f"60.0{os.getpid()}"
    with sleeper(word=word) as one, sleeper(word=f"{word}0"):
        assert [found.pid for found in with_argument(word.encode())] == [one.pid]

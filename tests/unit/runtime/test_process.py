"""Processes told apart by their start time."""

import os
import signal
import subprocess
import sys

import anyio
import pytest
from anyio import to_thread

from pluginsvc.runtime.process import ProcessId, with_argument

pytestmark = pytest.mark.anyio


def sleeper(*words: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *words])


async def test_many_wait_for_one_end() -> None:
    """Any number of tasks see a process end; afterwards waiting returns at once and signals reach nobody."""
    with sleeper() as child:
        process = ProcessId.of(child.pid)
        assert process is not None
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(process.wait)
            await anyio.wait_all_tasks_blocked()
            assert await to_thread.run_sync(process.send, signal.SIGKILL)
        child.wait()
        await process.wait()
        assert not process.send(signal.SIGKILL)
        assert ProcessId.of(child.pid) is None


async def test_stranger_with_the_same_number_is_left_alone() -> None:
    """A process that has the number but another start time is neither waited for nor signalled."""
    with sleeper() as child:
        process = ProcessId.of(child.pid)
        assert process is not None
        earlier = ProcessId(process.pid, process.started - 1)
        with anyio.fail_after(5):
            await earlier.wait()
        assert not earlier.send(signal.SIGKILL)
        assert child.poll() is None
        child.kill()


def test_command_with_parentheses() -> None:
    """A command that looks like the end of the field does not shift the others."""
    name = b") R 1 2 3"
    with sleeper() as child:
        plain = ProcessId.of(child.pid)
        with open(f"/proc/{child.pid}/comm", "wb") as file:
            file.write(name)
        assert ProcessId.of(child.pid) == plain
        child.kill()


def test_found_by_a_whole_argument() -> None:
    """Only a process that has the word as an argument of its own is found."""
    word = f"word-{os.getpid()}"
    with sleeper(word) as one, sleeper(f"{word}-longer") as other:
        assert [found.pid for found in with_argument(word.encode())] == [one.pid]
        one.kill()
        other.kill()

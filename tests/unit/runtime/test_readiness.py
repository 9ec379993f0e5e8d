"""Waiting for a socket."""

import errno
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from pluginsvc.runtime.readiness import SocketWatch, connect
from pluginsvc.watches import Watches

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a directory with a short name, so that tests can bind in it."""
    with tempfile.TemporaryDirectory(prefix="p-") as path:
        yield Path(path)


@pytest.fixture
async def watches() -> AsyncIterator[Watches]:
    """Give watches that are served."""
    found = Watches()
    async with anyio.create_task_group() as group:
        await group.start(found.serve)
        yield found
        group.cancel_scope.cancel()


def bound(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    return made


async def test_socket_that_comes_later_is_noticed(folder: Path, watches: Watches) -> None:
    """The wait ends when the socket is there and listens, by an event and without asking again and again."""
    with SocketWatch(watches, folder, "s") as watch, anyio.fail_after(0.9):
        async with anyio.create_task_group() as group:
            group.start_soon(watch.accepted)
            await anyio.wait_all_tasks_blocked()
            (folder / "other").touch()
            made = bound(folder / "s")
            made.listen()
    made.close()


async def test_renamed_into_place(folder: Path, watches: Watches) -> None:
    """A socket that is bound elsewhere and renamed is noticed as well."""
    with bound(folder / "new") as made, SocketWatch(watches, folder, "s") as watch, anyio.fail_after(0.9):
        made.listen()
        async with anyio.create_task_group() as group:
            group.start_soon(watch.accepted)
            await anyio.wait_all_tasks_blocked()
            (folder / "new").rename(folder / "s")


async def test_refusing_socket_is_asked_again(folder: Path, watches: Watches) -> None:
    """Between bind and listen the wait goes on, and says that the connection was refused."""
    with bound(folder / "s") as made, SocketWatch(watches, folder, "s") as watch, anyio.fail_after(5):
        with anyio.move_on_after(0.05):
            await watch.accepted()
        assert watch.trouble == "Connection refused"
        made.listen()
        await watch.accepted()


async def test_found_without_any_event(folder: Path) -> None:
    """Should no event ever come, the socket is found all the same."""
    with SocketWatch(Watches(), folder, "s") as watch, anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(watch.accepted)
            await anyio.wait_all_tasks_blocked()
            made = bound(folder / "s")
            made.listen()
    made.close()


def test_path_longer_than_an_address(folder: Path) -> None:
    """A socket whose path does not fit into an address is reached."""
    deep = folder / ("d" * 120)
    deep.mkdir()
    fd = os.open(deep, os.O_PATH)
    with bound(Path(f"/proc/self/fd/{fd}/s")) as made:
        made.listen()
        assert connect(deep, "s") is None
    os.close(fd)


def test_link_is_not_followed(folder: Path) -> None:
    """A link to a socket of the host is no socket of the plugin."""
    with bound(folder / "host") as made:
        made.listen()
        inside = folder / "plugin"
        inside.mkdir()
        (inside / "s").symlink_to(folder / "host")
        error = connect(inside, "s")
        made.setblocking(False)
        with pytest.raises(BlockingIOError):
            made.accept()
    assert error is not None
    assert error.errno == errno.ENOTSOCK


def test_full_queue_counts_as_listening(folder: Path) -> None:
    """A socket that has more callers than it takes listens."""
    with bound(folder / "s") as made:
        made.listen(0)
        callers = []
        for _ in range(4):
            caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            caller.connect_ex(str(folder / "s"))
            callers.append(caller)
        assert connect(folder / "none", "s") is not None
        assert connect(folder, "s") is None
        for caller in callers:
            caller.close()


@pytest.mark.parametrize("kind", ["missing", "file", "directory", "fifo"])
def test_what_is_no_socket_gives_the_reason(folder: Path, kind: str) -> None:
    """Other things under the name are told apart from a socket, and none of them is opened."""
    place = folder / "s"
    if kind == "file":
        place.touch()
    elif kind == "directory":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    error = connect(folder, "s")
    assert error is not None
    assert error.errno == (errno.ENOENT if kind == "missing" else errno.ENOTSOCK)

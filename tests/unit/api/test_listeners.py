"""Sockets: who may connect, who is in the way, what is left behind."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from pluginsvc.api.listeners import CannotListen, FdListener, TcpListener, UnixListener, bind


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def test_unix_socket_has_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    """The socket gets exactly the mode asked for, and goes when it is removed."""
    path = tmp_path / "s"
    old = os.umask(0o077)
    try:
        bound = bind(UnixListener(path, mode=0o666))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert bound.address == f"unix://{path}"
    assert _answers(path)
    bound.remove()
    assert not path.exists()


def test_unix_socket_is_never_open_wider(tmp_path: Path) -> None:
    """At no moment can others connect: a watcher of the directory sees no mode but ours, even with umask 0."""
    path = tmp_path / "s"
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            try:
                seen.add(stat.S_IMODE(path.lstat().st_mode))
            except FileNotFoundError:
                continue

    watcher = threading.Thread(target=watch)
    old = os.umask(0)
    watcher.start()
    try:
        for _ in range(200):
            bind(UnixListener(path, mode=0o660)).remove()
    finally:
        done.set()
        watcher.join()
        os.umask(old)
    assert seen <= {0o600, 0o660}


@pytest.mark.root
def test_unix_socket_group(tmp_path: Path) -> None:
    """A group may be given by name or number."""
    by_name = bind(UnixListener(tmp_path / "a", group="daemon"))
    by_number = bind(UnixListener(tmp_path / "b", group=4242))
    assert (tmp_path / "a").group() == "daemon"
    assert (tmp_path / "b").stat().st_gid == 4242
    by_name.remove()
    by_number.remove()


def test_unknown_group(tmp_path: Path) -> None:
    """An unknown group is an error, and nothing is left behind."""
    with pytest.raises(CannotListen, match="there is no group 'nobody-has-this'"):
        bind(UnixListener(tmp_path / "s", group="nobody-has-this"))
    assert list(tmp_path.iterdir()) == []


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    """A socket file that nobody answers on is replaced."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    bound = bind(UnixListener(path))
    assert _answers(path)
    bound.remove()


def test_live_socket_is_left_alone(tmp_path: Path) -> None:
    """A socket that somebody listens on is not touched."""
    first = bind(UnixListener(tmp_path / "s"))
    with pytest.raises(CannotListen, match="another process is listening there"):
        bind(UnixListener(tmp_path / "s"))
    assert _answers(tmp_path / "s")
    first.remove()


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    """What is no socket is never removed."""
    file = tmp_path / "s"
    file.write_text("precious")
    with pytest.raises(CannotListen, match="not a socket"):
        bind(UnixListener(file))
    assert file.read_text() == "precious"


def test_only_our_own_socket_is_removed(tmp_path: Path) -> None:
    """If another process has replaced the socket file, it stays."""
    path = tmp_path / "s"
    bound = bind(UnixListener(path))
    path.unlink()
    other = bind(UnixListener(path))
    bound.remove()
    assert _answers(path)
    other.remove()


@pytest.mark.parametrize("name", ["missing/s", "x" * 200])
def test_impossible_paths(tmp_path: Path, name: str) -> None:
    """A missing directory and a path that is too long are told as what they are."""
    with pytest.raises(CannotListen, match=f"cannot listen on unix://{tmp_path}"):
        bind(UnixListener(tmp_path / name))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.9"])
def test_tcp(host: str) -> None:
    """A loopback port is opened, and the address tells which."""
    bound = bind(TcpListener(host, 0))
    port = bound.socket.getsockname()[1]
    assert bound.address.endswith(f":{port}")
    assert port
    bound.remove()


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "example.test", "", "127.1", "::ffff:127.0.0.1"])
def test_tcp_is_loopback_only(host: str) -> None:
    """No other address is offered."""
    with pytest.raises(CannotListen):
        bind(TcpListener(host, 0))


def test_taken_port() -> None:
    """A port that is taken is an error."""
    first = bind(TcpListener("127.0.0.1", 0))
    with pytest.raises(CannotListen, match="in use"):
        bind(TcpListener("127.0.0.1", first.socket.getsockname()[1]))
    first.remove()


def test_inherited_socket(tmp_path: Path) -> None:
    """A listening socket that was passed to us is served, and its file is not ours to remove."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(path))
        given.listen()
        os.set_inheritable(given.fileno(), True)
        bound = bind(FdListener(given.detach()))
    assert bound.address == f"unix://{path}"
    assert not bound.socket.get_inheritable()
    bound.remove()
    assert path.exists()


def test_inherited_rubbish(tmp_path: Path) -> None:
    """A descriptor that does not listen, is no socket or is open to the network is refused."""
    with socket.socket(socket.AF_UNIX) as idle, pytest.raises(CannotListen, match="not a listening stream socket"):
        bind(FdListener(os.dup(idle.fileno())))
    with (tmp_path / "file").open("w") as file, pytest.raises(CannotListen):
        bind(FdListener(os.dup(file.fileno())))
    with socket.create_server(("0.0.0.0", 0)) as wide, pytest.raises(CannotListen, match="only loopback"):
        bind(FdListener(os.dup(wide.fileno())))
    with pytest.raises(CannotListen):
        bind(FdListener(10_000))

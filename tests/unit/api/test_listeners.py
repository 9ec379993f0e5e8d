"""Sockets: who may connect, who is in the way, what is left behind."""

import os
import socket
import ssl
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from pluginsvc.api.listeners import CannotListen, FdListener, InvalidTls, TcpListener, TlsFiles, UnixListener, bind
from tests.support.pki import Authority


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


@pytest.fixture
def tls(tmp_path: Path) -> TlsFiles:
    authority = Authority(tmp_path / "pki")
    server = authority.server()
    return TlsFiles(authority.file, server.cert, server.key)


def _meet(bound: socket.socket, server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[str, dict[str, Any]]:
    """Shake hands over a listening socket; return what TLS is spoken, and the client's certificate."""
    found: list[tuple[str, dict[str, Any]]] = []

    def accept() -> None:
        end, _ = bound.accept()
        end.settimeout(5)
        try:
            with server.wrap_socket(end, server_side=True) as inner:
                found.append((inner.version() or "", inner.getpeercert() or {}))
                inner.sendall(b"x")
        except OSError:
            end.close()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        address = bound.getsockname()
        with (
            socket.create_connection(address, timeout=5) as raw,
            client.wrap_socket(raw, server_hostname="127.0.0.1") as end,
        ):
            # with TLS 1.3 a client learns of its refusal by its first read
            if end.recv(1) != b"x":
                raise ssl.SSLError("refused")
    finally:
        thread.join()
    return found[0]


def test_tls(tmp_path: Path, tls: TlsFiles) -> None:
    """TLS is spoken with those whom the authority vouches for, and with nobody else, and nothing older than 1.2."""
    client = ssl.create_default_context(cafile=str(tls.ca))
    bound = bind(TcpListener("127.0.0.1", 0, tls))
    assert bound.tls
    assert bound.address.startswith("tcp://127.0.0.1:")
    try:
        with pytest.raises(OSError, match=r"CERTIFICATE_REQUIRED|reset"):
            _meet(bound.socket, bound.tls, client)
        stranger = Authority(tmp_path / "other").client("stranger")
        client.load_cert_chain(stranger.cert, stranger.key)
        with pytest.raises(OSError, match=r"UNKNOWN_CA|reset"):
            _meet(bound.socket, bound.tls, client)
    finally:
        bound.remove()


def test_tls_with_a_certificate(tmp_path: Path) -> None:
    """A client with a certificate is known by it; with one that is for servers it is refused, as is TLS 1.1."""
    authority = Authority(tmp_path / "pki")
    server, known = authority.server(), authority.client("known")
    bound = bind(TcpListener("127.0.0.1", 0, TlsFiles(authority.file, server.cert, server.key)))
    assert bound.tls
    try:
        client = ssl.create_default_context(cafile=str(authority.file))
        client.load_cert_chain(known.cert, known.key)
        version, certificate = _meet(bound.socket, bound.tls, client)
        assert version == "TLSv1.3"
        assert certificate["subject"] == ((("commonName", "known"),),)
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        assert _meet(bound.socket, bound.tls, client)[0] == "TLSv1.2"
        assert bound.tls.minimum_version == ssl.TLSVersion.TLSv1_2
        wrong = ssl.create_default_context(cafile=str(authority.file))
        wrong.load_cert_chain(server.cert, server.key)
        with pytest.raises(OSError, match=r"ALERT|reset"):
            _meet(bound.socket, bound.tls, wrong)
    finally:
        bound.remove()


def test_tls_on_inherited_sockets(tmp_path: Path, tls: TlsFiles) -> None:
    """A TCP socket that was passed to us speaks TLS as our own do; a unix socket never does."""
    inherited = bind(FdListener(socket.create_server(("127.0.0.1", 0)).detach(), tls))
    assert inherited.tls
    inherited.remove()
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(tmp_path / "s"))
        given.listen()
        bound = bind(FdListener(given.detach(), tls))
    assert bound.tls is None
    bound.remove()


def test_tls_files_that_cannot_be_used(tmp_path: Path, tls: TlsFiles) -> None:
    """Whatever is wrong with the files of TLS, the file is named, and no socket is left open."""
    other = Authority(tmp_path / "other").client("x")
    empty, locked = tmp_path / "empty.pem", tmp_path / "locked.pem"
    empty.touch()
    os.mkfifo(tmp_path / "pipe")
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, 1024 * 1024 + 1)
    key = serialization.load_pem_private_key(tls.key.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))
    for files, named in [
        (replace(tls, ca=tmp_path / "none"), "none: it cannot be read: No such file"),
        (replace(tls, cert=tmp_path / "none"), "none: it cannot be read"),
        (replace(tls, key=tmp_path), f"{tmp_path}: it cannot be read: it is no regular file"),
        (replace(tls, ca=tmp_path / "pipe"), "pipe: it cannot be read: it is no regular file"),
        (replace(tls, cert=Path("/dev/zero")), "/dev/zero: it cannot be read: it is no regular file"),
        (replace(tls, key=huge), "huge: it cannot be read: it is larger than 1048576 bytes"),
        (replace(tls, ca=empty), "empty.pem: there is no certificate in it"),
        (replace(tls, ca=tls.key), f"{tls.key}: there is no certificate in it"),
        (replace(tls, cert=empty), f"empty.pem with {tls.key}: they are no certificate with its key"),
        (replace(tls, key=other.key), f"{tls.cert} with {other.key}: they are no certificate with its key"),
        (replace(tls, key=locked), "locked.pem: they are no certificate with its key, or the key has a password"),
    ]:
        with pytest.raises(InvalidTls, match="cannot speak TLS: ") as caught:
            bind(TcpListener("127.0.0.1", 0, files))
        assert named in str(caught.value)
        with pytest.raises(InvalidTls), socket.create_server(("127.0.0.1", 0)) as given:
            bind(FdListener(os.dup(given.fileno()), files))

"""Sockets to listen on: unix paths, loopback TCP with or without TLS, descriptors that systemd hands over.

The functions block; ``bind`` is called in a thread.
"""

from __future__ import annotations

import grp
import ipaddress
import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from pluginsvc.errors import Internal
from pluginsvc.fsutil import read_regular

BACKLOG = 1024
_PROBE_TIMEOUT = 2.0
_MAX_PEM = 1024 * 1024
_LOCAL = "and only loopback is offered over TCP: the API gives root on this host"


class CannotListen(Internal):
    """An address cannot be listened on."""

    def __init__(self, address: str, reason: str) -> None:
        self.address, self.reason = address, reason
        super().__init__(f"cannot listen on {address}: {reason}")


@dataclass(frozen=True, slots=True)
class UnixListener:
    """A socket in the file system.

    Attributes:
        path: where; its directory exists.
        mode: permission bits.
        group: name or number of the group that owns it; None leaves it to the process.
    """

    path: Path
    mode: int = 0o660
    group: str | int | None = None

    def __str__(self) -> str:
        return f"unix://{self.path}"


class InvalidTls(Internal):
    """A file that TLS needs cannot be used."""

    def __init__(self, file: str, reason: str) -> None:
        self.file, self.reason = file, reason
        super().__init__(f"cannot speak TLS: {file}: {reason}")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What TLS is spoken with, as files in PEM.

    Attributes:
        ca: the authorities that vouch for clients.
        cert: our certificate, with those between it and its authority.
        key: its key, without a password.
    """

    ca: Path
    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Read them. Blocks.

        Raises:
            InvalidTls: one cannot be used.
        """
        contents: dict[Path, bytes] = {}
        for path in (self.ca, self.cert, self.key):
            try:
                contents[path], _ = read_regular(path, _MAX_PEM)
            except OSError as exc:
                raise InvalidTls(str(path), f"it cannot be read: {exc.strerror}") from exc
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            # what is around the certificates may be in any language
            context.load_verify_locations(cadata=contents[self.ca].decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError) as exc:
            raise InvalidTls(str(self.ca), f"there is no certificate in it: {getattr(exc, 'reason', exc)}") from exc
        try:
            # without a password OpenSSL would ask for one on the terminal
            context.load_cert_chain(self.cert, self.key, password="")
        except ssl.SSLError as exc:
            reason = f"they are no certificate with its key, or the key has a password: {exc.reason}"
            raise InvalidTls(f"{self.cert} with {self.key}", reason) from exc
        return context


@dataclass(frozen=True, slots=True)
class TcpListener:
    """A port on loopback; it is as good as root, so nothing else is offered.

    Attributes:
        host: ``localhost`` or a loopback address.
        port: 0 takes a free one.
        tls: how TLS is spoken, if it is; then clients need a certificate.
    """

    host: str
    port: int
    tls: TlsFiles | None = None

    def __str__(self) -> str:
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class FdListener:
    """A listening socket that was passed to us (sd_listen_fds(3)); we own it from now on.

    Attributes:
        fd: its descriptor.
        tls: see ``TcpListener``; of no matter where it is a unix socket.
    """

    fd: int
    tls: TlsFiles | None = None

    def __str__(self) -> str:
        return f"fd://{self.fd}"


Listener = UnixListener | TcpListener | FdListener


@dataclass(slots=True)
class Bound:
    """A socket that listens.

    Attributes:
        socket: the socket.
        address: as a URI, with the port it really got.
        path: the socket file that is ours to remove.
        inode: device and inode of that file.
        tls: with which TLS is spoken; None: it is not.
    """

    socket: socket.socket
    address: str
    path: Path | None = None
    inode: tuple[int, int] = (0, 0)
    tls: ssl.SSLContext | None = None

    def remove(self) -> None:
        """Close the socket and remove its file, unless another has taken its place."""
        self.socket.close()
        if self.path is None:
            return
        try:
            if _inode(self.path) == self.inode:
                self.path.unlink()
        except FileNotFoundError:
            pass


def bind(listener: Listener) -> Bound:
    """Open a listening socket.

    Raises:
        CannotListen: taken, not permitted, not loopback, no such group.
    """
    try:
        if isinstance(listener, UnixListener):
            return _bind_unix(listener)
        if isinstance(listener, TcpListener):
            return _bind_tcp(listener)
        return _adopt(listener)
    except OSError as exc:
        raise CannotListen(str(listener), exc.strerror or str(exc)) from exc


def _bind_unix(listener: UnixListener) -> Bound:
    gid = _gid(listener)
    _remove_stale(listener)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    bound = Bound(sock, str(listener))
    try:
        # Linux gives the file the mode of the socket (unix(7)): nobody can connect before owner and mode are right
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(str(listener.path))
        bound.path, bound.inode = listener.path, _inode(listener.path)
        if gid is not None:
            os.chown(listener.path, -1, gid, follow_symlinks=False)
        listener.path.chmod(listener.mode)
        sock.listen(BACKLOG)
    except BaseException:
        bound.remove()
        raise
    return bound


def _gid(listener: UnixListener) -> int | None:
    if listener.group is None or isinstance(listener.group, int):
        return listener.group
    try:
        return grp.getgrnam(listener.group).gr_gid
    except KeyError as exc:
        raise CannotListen(
            str(listener), f"there is no group {listener.group!r}: create it or set another group"
        ) from exc


def _remove_stale(listener: UnixListener) -> None:
    """Remove a socket file that nobody answers on."""
    try:
        mode = listener.path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise CannotListen(str(listener), "something that is not a socket is in its place: move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT)
        try:
            probe.connect(str(listener.path))
        except ConnectionRefusedError:
            listener.path.unlink(missing_ok=True)
            return
        except TimeoutError:
            pass
    raise CannotListen(str(listener), "another process is listening there: stop it or choose another path")


def _bind_tcp(listener: TcpListener) -> Bound:
    host = {"localhost": "127.0.0.1"}.get(listener.host, listener.host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = socket.inet_pton(family, host)
    except OSError as exc:
        raise CannotListen(str(listener), "give localhost or a loopback address such as 127.0.0.1") from exc
    if address[:1] != b"\x7f" and address != b"\0" * 15 + b"\1":
        raise CannotListen(str(listener), f"it is not this machine alone, {_LOCAL}")
    tls = listener.tls.context() if listener.tls else None
    sock = socket.create_server((host, listener.port), family=family, backlog=BACKLOG)
    return Bound(sock, str(TcpListener(host, sock.getsockname()[1])), tls=tls)


def _adopt(listener: FdListener) -> Bound:
    sock = socket.socket(fileno=listener.fd)
    try:
        address = _adopted_address(listener, sock)
        tls = listener.tls.context() if listener.tls and address.startswith("tcp:") else None
        return Bound(sock, address, tls=tls)
    except BaseException:
        sock.close()
        raise


def _adopted_address(listener: FdListener, sock: socket.socket) -> str:
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise CannotListen(str(listener), "the descriptor is not a listening stream socket")
    sock.set_inheritable(False)
    name = sock.getsockname()
    if not isinstance(name, tuple):
        return f"unix://{name}" if name else str(listener)
    if not ipaddress.ip_address(name[0]).is_loopback:
        raise CannotListen(str(listener), f"it is open to {name[0]}, {_LOCAL}")
    return str(TcpListener(name[0], name[1]))


def _inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino

"""Where a plugin is called: addresses, its socket, TLS (REF §5)."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Final

import anyio
import msgspec
from anyio.abc import ByteStream
from yarl import URL

from pluginsvc.errors import InvalidParameter
from pluginsvc.fsutil import read_regular

MAX_PEM: Final = 1024 * 1024
"""Most bytes of a file with certificates or a key."""
_MAX_LINKS: Final = 40
"""As the kernel has it."""


class InvalidAddress(InvalidParameter):
    """No plugin can be at this address."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(
            f"invalid plugin address {address[:200]!r}: unknown protocol or place; "
            "give unix:///PATH, tcp://HOST:PORT, http://HOST[:PORT] or https://HOST[:PORT]"
        )


class TLSConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to speak TLS with a plugin, as ``TLSConfig`` of a ``.json`` file has it (REF §5).

    Without an authority nothing is verified, as in Docker.
    """

    insecure_skip_verify: bool = msgspec.field(default=False, name="InsecureSkipVerify")
    ca_file: str = msgspec.field(default="", name="CAFile")
    cert_file: str = msgspec.field(default="", name="CertFile")
    key_file: str = msgspec.field(default="", name="KeyFile")


def parse(address: str) -> tuple[Path | None, URL]:
    """Return the path of a unix socket, if it is one, and the URL of the plugin's root.

    Raises:
        InvalidAddress: nobody can be called there.
    """
    scheme, _, rest = address.partition("://")
    if scheme == "unix" and rest.startswith("/") and not rest.endswith("/") and "\0" not in rest:
        return Path(rest), URL("http://plugin.moby.localhost")
    if scheme in {"tcp", "http", "https"}:
        try:
            url = URL(f"{'https' if scheme == 'https' else 'http'}://{rest}")
            if url.host and url.port and not url.user:
                return None, url.origin()
        except ValueError:
            pass
    raise InvalidAddress(address)


def resolve(path: str, ours: Collection[str]) -> str | None:
    """Return where a path leads by whatever links, there or not; ``None``: it comes through a directory of ours.

    What is in there its plugin may replace by a link to anywhere, or to where the system hangs: it is not looked at.

    Args:
        path: absolute.
        ours: those directories.

    Raises:
        OSError: it has too many links.
    """
    at, links = "", 0
    rest = path.split("/")[::-1]
    while rest:
        part = rest.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            at = at.rpartition("/")[0]
            continue
        at = f"{at}/{part}"
        if at in ours:
            return None
        try:
            target = os.readlink(at)
        except OSError:
            # no link, or nothing there
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        at = "" if target.startswith("/") else at.rpartition("/")[0]
        rest += target.split("/")[::-1]
    return at or "/"


def connected(path: Path) -> socket.socket:
    """Return a connection to a unix socket. Blocks briefly.

    The socket is reached by a descriptor of its own inode: a path may be longer than the 107 bytes an address holds,
    and a symbolic link, by which the plugin could make us talk to another socket of the host, is not followed.

    Raises:
        OSError: there is no socket, or it takes no connection just now.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        node = os.open(path.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        if not stat.S_ISSOCK(os.fstat(node).st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), path.name)
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            end.connect(f"/proc/self/fd/{node}")
        except OSError:
            end.close()
            raise
        return end
    finally:
        os.close(node)


class UnixStream(ByteStream):
    """A connection to a unix socket; anyio's own has, under uvloop, callbacks that outlive a cancelled wait.

    Args:
        end: connected; it is closed with this.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return what there is."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self._end, max_bytes)
        except OSError as exc:
            raise anyio.BrokenResourceError from exc
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        """Send all of it."""
        try:
            await asyncio.get_running_loop().sock_sendall(self._end, item)
        except OSError as exc:
            raise anyio.BrokenResourceError from exc

    async def send_eof(self) -> None:
        """Send no more."""
        self._end.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        """Close."""
        self._end.close()


def make_context(tls: TLSConfig | None) -> ssl.SSLContext:
    """Return the context for connections to a plugin. Blocks: it reads files.

    Args:
        tls: as given; ``None``: verified with the machine's authorities.

    Raises:
        OSError: a file cannot be used.
        ValueError: it holds nothing of use.
    """
    context = ssl.create_default_context()
    if tls is None:
        return context
    if tls.insecure_skip_verify or not tls.ca_file:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        # what is around the certificates may be in any language
        context.load_verify_locations(cadata=read_regular(tls.ca_file, MAX_PEM)[0].decode("ascii", "ignore"))
    if tls.cert_file or tls.key_file:
        for file in filter(None, (tls.cert_file, tls.key_file)):
            # OpenSSL opens them itself, whatever they are
            read_regular(file, MAX_PEM)
        # without a password OpenSSL would ask for one on the terminal
        context.load_cert_chain(tls.cert_file, tls.key_file, password="")
    return context

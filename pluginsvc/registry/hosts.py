"""Which hosts stand behind a registry's name, and how far each of them is trusted (REF 4.1).

A host is *insecure* when it is on loopback, named as such, or inside a named network: its certificate is not
checked and plain HTTP is tried when HTTPS does not work. Every other host is spoken to over verified HTTPS only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
from yarl import URL

from pluginsvc.errors import Internal, InvalidParameter
from pluginsvc.model.reference import DEFAULT_DOMAIN

HUB: Final = "registry-1.docker.io"
"""The host behind ``docker.io``."""

_LOOKUP_TIMEOUT = 5.0
_LOOKUP_LIFETIME = 30.0
_MAX_LOOKED_UP = 256
_LOOPBACK = ("127.0.0.0/8", "::1/128")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class InvalidHost(InvalidParameter):
    """A text is not a registry host, mirror or insecure network."""

    def __init__(self, text: str, wanted: str) -> None:
        self.text = text
        super().__init__(f"invalid registry host {text[:200]!r}: give {wanted}")


class InvalidCertificates(Internal):
    """The files of a host in certs.d cannot be used."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"cannot use the certificates in {path}: {reason}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One host to ask.

    Attributes:
        host: host with optional port.
        schemes: what to try, in order.
        mirror: whether it stands in for another registry; it then never gets that registry's credentials.
    """

    host: str
    schemes: tuple[str, ...]
    mirror: bool = False

    @property
    def secure(self) -> bool:
        """Whether nothing but verified HTTPS may be spoken to it."""
        return self.schemes == ("https",)


def check_host(text: str) -> str:
    """Return ``text`` in lower case if it is a host with optional port.

    Raises:
        InvalidHost: it is not.
    """
    found = _HOST.fullmatch(text)
    if found is None or int(found["port"] or 0) > 65535:
        raise InvalidHost(text, "host or host:port")
    return text.lower()


class Hosts:
    """The registry settings of this daemon, and the TLS contexts that follow from them.

    Args:
        insecure: ``host``, ``host:port`` or CIDR of registries that are not verified, besides loopback.
        mirrors: base URLs asked before Docker Hub on pulls.
        certs_dirs: folders with one folder per ``host[:port]``: ``*.crt`` are authorities, ``*.cert`` with ``*.key``
            client certificates.

    Raises:
        InvalidHost: an entry of ``insecure`` or ``mirrors`` is malformed.
    """

    def __init__(
        self,
        *,
        insecure: Sequence[str] = (),
        mirrors: Sequence[str] = (),
        certs_dirs: Sequence[Path] = (Path("/etc/docker/certs.d"),),
    ) -> None:
        self._networks: list[_Network] = [ipaddress.ip_network(cidr) for cidr in _LOOPBACK]
        self._insecure: set[str] = set()
        for entry in insecure:
            try:
                self._networks.append(ipaddress.ip_network(entry))
            except ValueError:
                self._insecure.add(check_host(entry))
        self._mirrors = [_mirror(text) for text in mirrors]
        self._certs_dirs = tuple(certs_dirs)
        self._looked_up: dict[str, tuple[float, bool]] = {}
        self._contexts: dict[tuple[str, bool], tuple[tuple[object, ...], ssl.SSLContext]] = {}

    async def endpoints(self, domain: str, *, push: bool) -> list[Endpoint]:
        """Return the hosts to ask for ``domain``, in order; the last one is the registry itself.

        Args:
            domain: the domain of a reference.
            push: mirrors are left out.

        Raises:
            InvalidHost: the domain cannot be a host, for example by its port.
        """
        host = HUB if domain == DEFAULT_DOMAIN else check_host(domain)
        schemes = ("https", "http") if await self.insecure(host) else ("https",)
        own = Endpoint(host=host, schemes=schemes)
        if domain != DEFAULT_DOMAIN or push:
            return [own]
        mirrors: list[Endpoint] = []
        for mirror in self._mirrors:
            # a mirror written with http:// is the operator's own word that plain HTTP is good enough
            known = mirror.schemes == ("http",) or not await self.insecure(mirror.host)
            mirrors.append(mirror if known else Endpoint(host=mirror.host, schemes=("https", "http"), mirror=True))
        return [*mirrors, own]

    async def insecure(self, host: str) -> bool:
        """Tell whether ``host[:port]`` is insecure; a name is when all its addresses are in insecure networks."""
        host = host.lower()
        if host in self._insecure:
            return True
        if host == HUB:
            return False
        now = time.monotonic()
        until, known = self._looked_up.get(host, (0.0, False))
        if now < until:
            return known
        addresses = await _addresses(URL(f"//{host}").host or "")
        found = bool(addresses) and all(any(a in network for network in self._networks) for a in addresses)
        self._looked_up = {name: entry for name, entry in self._looked_up.items() if now < entry[0]}
        if len(self._looked_up) < _MAX_LOOKED_UP:
            self._looked_up[host] = time.monotonic() + _LOOKUP_LIFETIME, found
        return found

    async def tls(self, host: str, *, verify: bool) -> ssl.SSLContext:
        """Return the context for connections to ``host[:port]``, made anew when its files have changed.

        Args:
            host: where to.
            verify: check its certificate even if the host is insecure.

        Raises:
            InvalidCertificates: its files in certs.d cannot be used.
        """
        insecure = not verify and await self.insecure(host)
        return await asyncio.to_thread(self._context, host.lower(), insecure=insecure)

    def _context(self, host: str, *, insecure: bool) -> ssl.SSLContext:
        folders = [] if host.strip(".") == "" or "/" in host else [folder / host for folder in self._certs_dirs]
        files = [path for folder in folders for path in _listed(folder) if path.suffix in {".crt", ".cert", ".key"}]
        # one shared context for all hosts without files, so that foreign hosts cannot fill the table
        key = host if files else "", insecure
        stamp = tuple(_stamp(path) for path in files)
        cached = self._contexts.get(key)
        if cached is not None and cached[0] == stamp:
            return cached[1]
        context = _make_context(files, insecure=insecure)
        self._contexts[key] = stamp, context
        return context


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise InvalidCertificates(folder, exc.strerror or str(exc)) from exc


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError as exc:
        raise InvalidCertificates(path, exc.strerror or str(exc)) from exc
    return str(path), found.st_mtime_ns, found.st_size


def _make_context(files: list[Path], *, insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for path in files:
        try:
            if path.suffix == ".crt":
                context.load_verify_locations(cafile=path)
            elif path.suffix == ".cert":
                if (key := path.with_suffix(".key")) not in files:
                    raise InvalidCertificates(
                        path, f"{key.name} is missing beside this client certificate; an authority ends in .crt"
                    )
                context.load_cert_chain(path, key, password="")  # without one OpenSSL would ask on the terminal
            elif path.with_suffix(".cert") not in files:
                raise InvalidCertificates(path, f"{path.stem}.cert is missing beside this key")
        except (OSError, ssl.SSLError) as exc:
            raise InvalidCertificates(path, str(exc)) from exc
    return context


def _mirror(text: str) -> Endpoint:
    wanted = "a mirror as https://host[:port], without user, path or query"
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in {"https", "http"}:
        raise InvalidHost(text, wanted)
    try:
        return Endpoint(host=check_host(rest.removesuffix("/")), schemes=(scheme,), mirror=True)
    except InvalidHost as exc:
        raise InvalidHost(text, wanted) from exc


async def _addresses(name: str) -> list[_Address]:
    """Return the addresses of a host name or literal; none when it cannot be looked up in time."""
    if name == "localhost" or name.endswith(".localhost"):
        return [ipaddress.IPv4Address("127.0.0.1")]
    try:
        return [ipaddress.ip_address(name)]
    except ValueError:
        pass
    with anyio.move_on_after(_LOOKUP_TIMEOUT):
        try:
            found = await anyio.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return []
        return [ipaddress.ip_address(address[4][0].partition("%")[0]) for address in found]
    return []

"""A registry, token server or proxy that answers as a test scripts it, and keeps every request it got."""

import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from multidict import CIMultiDictProxy

from pluginsvc.model.auth import Credentials, RegistryAccess
from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import DOCKER_LAYER, DOCKER_MANIFEST, Descriptor
from pluginsvc.model.reference import Reference
from pluginsvc.registry.client import Registry
from pluginsvc.registry.hosts import Hosts
from tests.support.registry import _make_certificates

PASSWORD = Credentials(username="u", password="p4ss w&rd")
AGENT = "pluginsvc/test"


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    method: str
    target: str
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def line(self) -> str:
        return f"{self.method} {self.target}"

    @property
    def auth(self) -> str | None:
        return self.headers.get("Authorization")


Script = Callable[[web.BaseRequest, Seen], Awaitable[web.StreamResponse]]


@dataclass
class Server:
    """A running scripted server."""

    host: str
    url: str
    seen: list[Seen] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What was asked, without the look at which scheme is spoken."""
        return [seen.line for seen in self.seen if seen.line != "GET /v2/"]

    def real(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.line != "GET /v2/"]


@asynccontextmanager
async def serve(script: Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Serve `script` on a free loopback port."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        seen = Seen(request.method, request.raw_path, request.headers, body)
        server.seen.append(seen)
        return await script(request, seen)

    runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        host = f"127.0.0.1:{runner.addresses[0][1]}"
        server = Server(host, f"{'https' if tls else 'http'}://{host}")
        yield server
    finally:
        await runner.cleanup()


def certificates(folder: Path) -> tuple[ssl.SSLContext, Path, Path, Path]:
    """Make a server's TLS context; return it with the authority's, the certificate's and the key's files."""
    ca, certificate, key = _make_certificates(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context, ca, certificate, key


def registry(hosts: Hosts | None = None) -> Registry:
    """Return a client whose pauses are short."""
    return Registry(hosts or Hosts(certs_dirs=()), user_agent=AGENT, backoff=0.005)


def strict_hosts(certs: Path) -> Hosts:
    """Return hosts for which loopback is as any other network, so that TLS is verified there."""
    hosts = Hosts(certs_dirs=(certs,))
    hosts._networks = []
    return hosts


def reference(host: str, rest: str = "foo/bar:v1") -> Reference:
    return Reference.parse(f"{host}/{rest}")


def access(credentials: Credentials = PASSWORD) -> RegistryAccess:
    return RegistryAccess(credentials=credentials, meta={"X-Meta-Team": "a"}, client_agent="Docker-Client/28 (linux)")


def blob(data: bytes, media_type: str = DOCKER_LAYER) -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))


def manifest_answer(raw: bytes, **headers: str) -> web.Response:
    """Answer with a manifest as a registry does."""
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    return web.Response(body=raw, headers={"Content-Type": DOCKER_MANIFEST, "Docker-Content-Digest": digest, **headers})


def challenge(text: str) -> web.Response:
    return web.json_response(
        {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]},
        status=401,
        headers={"WWW-Authenticate": text},
    )


async def cut(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
    """Break the connection off."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()

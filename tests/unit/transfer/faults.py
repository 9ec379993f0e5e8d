"""A registry in memory that fails as scripted: cut connections, wrong lengths, wrong bytes, statuses, waiting."""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.test_utils import TestServer


@dataclass
class Status:
    """Answer with this status."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Cut:
    """Close the connection after so many bytes of the answer's body."""

    after: int


@dataclass
class Instead:
    """Send these bytes, with their own length."""

    data: bytes


@dataclass
class Hold:
    """Send so many bytes, then wait for `go`, then send the rest or cut the connection."""

    after: int
    cut: bool = False
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)


Fault = Status | Cut | Instead | Hold


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class FaultRegistry:
    """Blobs and manifests in memory, of all repositories alike.

    Attributes:
        host: `127.0.0.1:PORT`.
        blobs: by digest.
        manifests: by tag and by digest, with their media types.
        mountable: whether a mount of an existing blob succeeds.
        faults: for a blob's digest (GET), or `PUT` for uploads and `MANIFEST` for manifests: what to do next, in order.
        requests: method, last part of the path, and the Range header.
    """

    def __init__(self) -> None:
        self.host = ""
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.mountable = False
        self.faults: defaultdict[str, list[Fault]] = defaultdict(list)
        self.requests: list[tuple[str, str, str]] = []

    def add(self, data: bytes) -> str:
        """Add a blob and return its digest."""
        self.blobs[digest_of(data)] = data
        return digest_of(data)

    def publish(self, tag: str, media_type: str, raw: bytes) -> None:
        """Add a manifest under its tag and its digest."""
        self.manifests[tag] = self.manifests[digest_of(raw)] = media_type, raw

    def gets(self, digest: str) -> list[str]:
        """Return the Range headers of all requests for a blob."""
        return [sent for method, name, sent in self.requests if (method, name) == ("GET", digest)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FaultRegistry"]:
        """Serve on a free loopback port."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/v2/", self._base)
        app.router.add_route("*", "/v2/{repository:.+}/manifests/{name}", self._manifest)
        app.router.add_post("/v2/{repository:.+}/blobs/uploads/", self._begin)
        app.router.add_put("/v2/{repository:.+}/blobs/uploads/{name}", self._upload)
        app.router.add_route("*", "/v2/{repository:.+}/blobs/{name}", self._blob)
        server = TestServer(app, host="127.0.0.1")
        await server.start_server(shutdown_timeout=1)
        self.host = f"127.0.0.1:{server.port}"
        try:
            yield self
        finally:
            await server.close()

    async def _base(self, request: web.Request) -> web.StreamResponse:
        return web.Response(headers={"Docker-Distribution-Api-Version": "registry/2.0"})

    def _note(self, request: web.Request, key: str) -> Fault | None:
        self.requests.append((request.method, request.match_info.get("name", ""), request.headers.get("Range", "")))
        return self.faults[key].pop(0) if self.faults[key] else None

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        fault = self._note(request, "MANIFEST")
        if isinstance(fault, Status):
            return web.Response(status=fault.status, headers=fault.headers)
        name = request.match_info["name"]
        if request.method == "PUT":
            raw = await request.read()
            self.publish(name, request.headers["Content-Type"], raw)
            return web.Response(status=201, headers={"Docker-Content-Digest": digest_of(raw)})
        if name not in self.manifests:
            return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)
        kind, raw = self.manifests[name]
        return web.Response(body=raw, headers={"Content-Type": kind, "Docker-Content-Digest": digest_of(raw)})

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        mount = request.query.get("mount", "")
        self.requests.append(("POST", mount, request.query.get("from", "")))
        if self.mountable and mount in self.blobs:
            return web.Response(status=201, headers={"Docker-Content-Digest": mount})
        return web.Response(status=202, headers={"Location": f"{request.path}some-upload"})

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        fault = self._note(request, "PUT")
        if isinstance(fault, Hold):
            fault.reached.set()
            await fault.go.wait()
        data = await request.read()
        if isinstance(fault, Status):
            return web.Response(status=fault.status, headers=fault.headers)
        digest = request.query["digest"]
        if digest != digest_of(data):
            return web.json_response({"errors": [{"code": "DIGEST_INVALID"}]}, status=400)
        self.blobs[digest] = data
        return web.Response(status=201, headers={"Docker-Content-Digest": digest})

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["name"]
        data = self.blobs.get(digest)
        if request.method == "HEAD" or data is None:
            self.requests.append((request.method, digest, ""))
            headers = {"Content-Length": str(len(data))} if data is not None else {}
            return web.Response(status=404 if data is None else 200, headers=headers)
        fault = self._note(request, digest)
        if isinstance(fault, Status):
            return web.Response(status=fault.status, headers=fault.headers)
        return await self._send(request, data, fault)

    async def _send(self, request: web.Request, data: bytes, fault: Fault | None) -> web.StreamResponse:
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        body = fault.data if isinstance(fault, Instead) else data[start:]
        response = web.StreamResponse(status=206 if start else 200)
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        response.content_length = len(body)
        await response.prepare(request)
        if isinstance(fault, Cut):
            await response.write(body[: fault.after])
            assert request.transport is not None
            request.transport.close()
            return response
        if isinstance(fault, Hold):
            await response.write(body[: fault.after])
            body = body[fault.after :]
            fault.reached.set()
            try:
                await fault.go.wait()
            except asyncio.CancelledError:
                fault.gone.set()
                raise
            if fault.cut:
                assert request.transport is not None
                request.transport.close()
                return response
        await response.write(body)
        await response.write_eof()
        return response

"""What Docker has no word for, under ``/pluginsvc/v1/`` (design D11)."""

from __future__ import annotations

from importlib import resources

from aiohttp import web

from pluginsvc.api.handlers import Manager
from pluginsvc.api.params import boolean
from pluginsvc.api.replies import json_bytes, json_reply
from pluginsvc.api.routing import Route

OPENAPI = resources.files("pluginsvc.api").joinpath("openapi.json").read_bytes()
"""docs/openapi.yaml as JSON; a test keeps the two equal."""


class NativeHandlers:
    """The endpoints of our own."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def routes(self) -> list[Route]:
        """Return the endpoints; they have a version of their own and none of Docker's."""
        return [
            Route("GET", "/pluginsvc/v1/openapi.json", self.openapi, versioned=False),
            Route("POST", "/pluginsvc/v1/gc", self.collect, versioned=False),
        ]

    async def openapi(self, _request: web.BaseRequest, _name: str) -> web.Response:
        """Describe all that is served."""
        return json_bytes(OPENAPI)

    async def collect(self, request: web.BaseRequest, _name: str) -> web.Response:
        """Remove blobs that nothing needs; with ``dry-run`` only say which."""
        report = await self._manager.collect(dry_run=boolean(request.query, "dry-run"))
        return json_reply({"Removed": [str(digest) for digest in report.removed], "Bytes": report.bytes})

"""What Docker has no word for, under ``/pluginsvc/v1/`` (design D11)."""

from __future__ import annotations

from importlib import resources

from aiohttp import web

from pluginsvc.api.bodies import InvalidBody, read_json
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
            Route("GET", "/pluginsvc/v1/plugins", self.list, versioned=False),
            Route("GET", "/pluginsvc/v1/plugins/{name}/json", self.inspect, versioned=False),
            Route("POST", "/pluginsvc/v1/plugins/{name}/update", self.update, versioned=False),
        ]

    async def openapi(self, _request: web.BaseRequest, _name: str) -> web.Response:
        """Describe all that is served."""
        return json_bytes(OPENAPI)

    async def collect(self, request: web.BaseRequest, _name: str) -> web.Response:
        """Remove blobs that nothing needs; with ``dry-run`` only say which."""
        report = await self._manager.collect(dry_run=boolean(request.query, "dry-run"))
        return json_reply({"Removed": [str(digest) for digest in report.removed], "Bytes": report.bytes})

    async def list(self, _request: web.BaseRequest, _name: str) -> web.Response:
        """Say of each plugin what is wished, and what it does."""
        return json_reply(self._manager.summaries())

    async def inspect(self, _request: web.BaseRequest, name: str) -> web.Response:
        """Say all of a plugin that Docker has no word for."""
        return json_reply(await self._manager.describe(name))

    async def update(self, request: web.BaseRequest, name: str) -> web.Response:
        """Change a plugin's options; the body names those that change, ``null`` takes one back."""
        changes = await read_json(request)
        if not isinstance(changes, dict):
            raise InvalidBody('the body is no object of options, such as {"restart": "on-failure:3"}')
        return json_reply(await self._manager.update(name, changes))

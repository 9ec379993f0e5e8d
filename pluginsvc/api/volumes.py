"""Volumes of any plugin, under ``/pluginsvc/v1/`` (design D11; REF 3.13)."""

from __future__ import annotations

import msgspec
from aiohttp import web

from pluginsvc.api.bodies import read_as
from pluginsvc.api.replies import empty, json_reply
from pluginsvc.api.routing import Route
from pluginsvc.directory.volume_use import Volumes


class _Named(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    name: str


class _Remove(_Named, rename="pascal", forbid_unknown_fields=True):
    force: bool = False


class _Create(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    name: str
    options: dict[str, str] = {}


class _Mount(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    name: str
    user: str = msgspec.field(name="ID")


class VolumeHandlers:
    """The endpoints that use volume plugins."""

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes

    def routes(self) -> list[Route]:
        """Return the endpoints."""
        one = "/pluginsvc/v1/plugins/{name}/volumes"
        return [
            Route("GET", "/pluginsvc/v1/volumes", self.all, versioned=False),
            Route("GET", one, self.list, versioned=False),
            Route("POST", f"{one}/create", self.create, versioned=False),
            Route("POST", f"{one}/inspect", self.inspect, versioned=False),
            Route("POST", f"{one}/remove", self.remove, versioned=False),
            Route("POST", f"{one}/mount", self.mount, versioned=False),
            Route("POST", f"{one}/unmount", self.unmount, versioned=False),
        ]

    async def all(self, _request: web.BaseRequest, _name: str) -> web.Response:
        """List the volumes of all plugins, and say which plugins failed."""
        return json_reply(await self._volumes.all())

    async def list(self, _request: web.BaseRequest, name: str) -> web.Response:
        """List the volumes of a plugin."""
        return json_reply(await self._volumes.of(name))

    async def create(self, request: web.BaseRequest, name: str) -> web.Response:
        """Make a volume."""
        body = await read_as(request, _Create)
        plugin = await self._volumes.create(name, body.name, body.options)
        return json_reply({"Name": body.name, "Plugin": plugin})

    async def inspect(self, request: web.BaseRequest, name: str) -> web.Response:
        """Show a volume; its name may be anything, so it is in the body."""
        body = await read_as(request, _Named)
        return json_reply(await self._volumes.inspect(name, body.name))

    async def remove(self, request: web.BaseRequest, name: str) -> web.Response:
        """Remove a volume."""
        body = await read_as(request, _Remove)
        await self._volumes.remove(name, body.name, force=body.force)
        return empty(204)

    async def mount(self, request: web.BaseRequest, name: str) -> web.Response:
        """Mount a volume and say where on the host it is."""
        body = await read_as(request, _Mount)
        return json_reply({"Mountpoint": await self._volumes.mount(name, body.name, body.user)})

    async def unmount(self, request: web.BaseRequest, name: str) -> web.Response:
        """Undo a mount."""
        body = await read_as(request, _Mount)
        await self._volumes.unmount(name, body.name, body.user)
        return empty(204)

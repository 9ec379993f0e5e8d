"""Leases on plugins, and the mounts that hang on them, under ``/pluginsvc/v1/`` (design D11; REF 3.13)."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from pluginsvc.api.bodies import read_as
from pluginsvc.api.handlers import Manager
from pluginsvc.api.replies import json_reply
from pluginsvc.api.routing import Route

_TEN_YEARS = 10 * 366 * 86_400


class _Acquire(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    holder: str
    purpose: str
    seconds: Annotated[float, msgspec.Meta(gt=0, le=_TEN_YEARS)] | None = None
    capability: str = ""


class _Release(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    holder: str
    purpose: str | None = None
    everything: bool = msgspec.field(name="All", default=False)


class LeaseHandlers:
    """The endpoints that say who uses what."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def routes(self) -> list[Route]:
        """Return the endpoints."""
        return [
            Route("GET", "/pluginsvc/v1/plugins/{name}/leases", self.list, versioned=False),
            Route("POST", "/pluginsvc/v1/plugins/{name}/acquire", self.acquire, versioned=False),
            Route("POST", "/pluginsvc/v1/plugins/{name}/release", self.release, versioned=False),
            Route("GET", "/pluginsvc/v1/mounts", self.mounts, versioned=False),
        ]

    async def list(self, _request: web.BaseRequest, name: str) -> web.Response:
        """Say who uses a plugin."""
        return json_reply(await self._manager.leases(name))

    async def acquire(self, request: web.BaseRequest, name: str) -> web.Response:
        """Take a lease on an enabled plugin."""
        body = await read_as(request, _Acquire)
        lease = await self._manager.acquire(
            name, holder=body.holder, purpose=body.purpose, seconds=body.seconds, capability=body.capability
        )
        return json_reply(lease)

    async def release(self, request: web.BaseRequest, name: str) -> web.Response:
        """Give back a lease, or all; nothing to give back is fine."""
        body = await read_as(request, _Release)
        left = await self._manager.release(name, holder=body.holder, purpose=body.purpose, everything=body.everything)
        return json_reply({"Count": left})

    async def mounts(self, _request: web.BaseRequest, _name: str) -> web.Response:
        """Show what is mounted for plugins, and what should not be any more."""
        return json_reply(await self._manager.mounts())

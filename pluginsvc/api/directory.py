"""Who provides what, under ``/pluginsvc/v1/capabilities`` (design D11; REF 3.13)."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Any, cast

import anyio
import msgspec
from aiohttp import web

from pluginsvc.api.bodies import read_as
from pluginsvc.api.feed import Pipe
from pluginsvc.api.native_events import HEARTBEAT
from pluginsvc.api.params import boolean
from pluginsvc.api.replies import json_reply
from pluginsvc.api.routing import Route
from pluginsvc.api.stream import OpenStreams, open_stream
from pluginsvc.directory.directory import Change, Directory
from pluginsvc.directory.provider import Provider
from pluginsvc.model.plugin import Capability

_TEN_YEARS = 10 * 366 * 86_400
_ENCODER = msgspec.json.Encoder()


class _Lookup(msgspec.Struct, rename="pascal", forbid_unknown_fields=True, tag_field="Mode", tag="lookup"):
    name: str


class _Acquire(msgspec.Struct, rename="pascal", forbid_unknown_fields=True, tag_field="Mode", tag="acquire"):
    name: str
    holder: str
    purpose: str
    seconds: Annotated[float, msgspec.Meta(gt=0, le=_TEN_YEARS)] | None = None


class _Release(msgspec.Struct, rename="pascal", forbid_unknown_fields=True, tag_field="Mode", tag="release"):
    name: str
    holder: str
    purpose: str | None = None
    everything: bool = msgspec.field(name="All", default=False)


_Body = _Lookup | _Acquire | _Release


class DirectoryHandlers(OpenStreams):
    """The endpoints that find plugins by what they provide.

    Args:
        directory: knows them.
        timeout: seconds after which a reader that reads nothing is cut off.
        heartbeat: seconds between two signs of life to a reader.
    """

    def __init__(self, directory: Directory, *, timeout: float, heartbeat: float = HEARTBEAT) -> None:
        super().__init__()
        self._directory = directory
        self._timeout, self._heartbeat = timeout, heartbeat

    def routes(self) -> list[Route]:
        """Return the endpoints: those with more behind the name first, which takes slashes."""
        return [
            Route("GET", "/pluginsvc/v1/capabilities", self.list, versioned=False),
            Route("POST", "/pluginsvc/v1/capabilities/{name}/lookup", self.lookup, versioned=False),
            Route("GET", "/pluginsvc/v1/capabilities/{name}/watch", self.watch, versioned=False),
            Route("GET", "/pluginsvc/v1/capabilities/{name}", self.providers, versioned=False),
        ]

    async def list(self, request: web.BaseRequest, _name: str) -> web.Response:
        """Say what is provided, and by whom."""
        found: dict[str, set[str]] = defaultdict(set)
        for provider in await self._directory.providers(legacy=_legacy(request)):
            for capability in provider.capabilities:
                # a config may write it in any case, and it is the same
                found[str(capability).lower()].add(provider.name)
        return json_reply([{"Capability": text, "Plugins": sorted(found[text])} for text in sorted(found)])

    async def providers(self, request: web.BaseRequest, name: str) -> web.Response:
        """Say who provides something."""
        Capability.wanted(name)
        found = await self._directory.providers(name, legacy=_legacy(request))
        return json_reply([_shown(provider) for provider in found])

    async def lookup(self, request: web.BaseRequest, name: str) -> web.Response:
        """Find a plugin by its name, if it provides something, to use it from now on, or no longer."""
        Capability.wanted(name)
        body: _Body = await read_as(request, cast("Any", _Body))
        answer: dict[str, Any] = {"Plugin": None, "Lease": None, "Count": None}
        if isinstance(body, _Lookup):
            answer["Plugin"] = _shown(await self._directory.lookup(body.name, name))
        elif isinstance(body, _Acquire):
            provider, answer["Lease"] = await self._directory.acquire(
                body.name, name, holder=body.holder, purpose=body.purpose, seconds=body.seconds
            )
            answer["Plugin"] = _shown(provider)
        else:
            answer["Count"] = await self._directory.release(
                body.name, holder=body.holder, purpose=body.purpose, everything=body.everything
            )
        return json_reply(answer)

    async def watch(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        """Tell of the plugins that become ready with a capability, and go, as Server-Sent Events."""
        following = self._directory.follow(name)
        response = open_stream(request, "text/event-stream")
        response.headers["Cache-Control"] = "no-cache"
        pipe = Pipe(request, timeout=self._timeout)
        with self.opened():
            await response.prepare(request)
            async with anyio.create_task_group() as group:
                group.start_soon(self._beat, pipe)
                ready = await anext(following)
                await _tell(pipe, ready)
                # who has lost the connection, and came back, knows only now which of those that it knew are gone
                await pipe.write_raw(b'event: current\ndata: {"Count":%d}\n\n' % len(ready))
                async for changes in following:
                    await _tell(pipe, changes)
        return response

    async def _beat(self, pipe: Pipe) -> None:
        while True:
            await anyio.sleep(self._heartbeat)
            await pipe.write_raw(b": heartbeat\n\n")


async def _tell(pipe: Pipe, changes: list[Change]) -> None:
    for change in changes:
        body = _ENCODER.encode(_shown(change.provider) | {"Run": change.provider.run})
        await pipe.write_raw(b"event: %b\ndata: %b\n\n" % (change.kind.encode(), body))


def _legacy(request: web.BaseRequest) -> bool:
    return "legacy" not in request.query or boolean(request.query, "legacy")


def _shown(provider: Provider) -> dict[str, Any]:
    return {
        "Name": provider.name,
        "ID": provider.plugin_id,
        "Kind": "managed" if provider.plugin_id else "legacy",
        "State": provider.state,
        "Address": provider.address,
        "Capabilities": [str(capability) for capability in provider.capabilities],
    }

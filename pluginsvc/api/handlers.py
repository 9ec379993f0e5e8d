"""The plugin endpoints: arguments out of the request, one call of the manager, the answer (REF 1.4)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
from aiohttp import web

from pluginsvc.api import params
from pluginsvc.api.bodies import chunks, privilege_list, read_json, string_list
from pluginsvc.api.replies import CONTEXT, empty, json_bytes, json_reply
from pluginsvc.api.routing import Route
from pluginsvc.api.stream import Sink, stream
from pluginsvc.model.auth import Credentials, RegistryAccess
from pluginsvc.model.digest import Digest
from pluginsvc.model.filters import parse_filters
from pluginsvc.model.lease import PluginLease
from pluginsvc.model.lifecycle import State
from pluginsvc.model.options import Options
from pluginsvc.model.output import Form, Top, Wanted
from pluginsvc.model.privilege import Privilege
from pluginsvc.model.reference import Reference

T = TypeVar("T")


class Collected(Protocol):
    """What a collection removed, or would remove."""

    @property
    def removed(self) -> Sequence[Digest]:
        """The blobs."""
        ...

    @property
    def bytes(self) -> int:
        """Their size together."""
        ...


class Snapshot(Protocol):
    """What each plugin does, as of one event."""

    @property
    def seq(self) -> int:
        """The number of that event, 0 for none."""
        ...

    @property
    def plugins(self) -> Sequence[msgspec.Struct]:
        """What ``summaries`` returns."""
        ...


class Manager(Protocol):
    """What this room asks of ``plugins.manager``; the in-memory one of the tests is the other that stands behind it.

    Every method raises errors of our tree.
    """

    def list_json(self, filters: dict[str, list[str]]) -> bytes:
        """Return the plugins as the whole body of an answer."""
        ...

    def inspect_json(self, name: str) -> bytes:
        """Return one plugin as the whole body of an answer; ``name`` may be an ID or a prefix of one."""
        ...

    def states(self) -> Mapping[State, int]:
        """Return how many plugins there are in each state."""
        ...

    async def privileges(self, remote: Reference, access: RegistryAccess) -> list[Privilege]:
        """Return what a remote plugin asks for."""
        ...

    async def create(self, name: str, body: AsyncIterator[bytes]) -> None:
        """Make a plugin of an archive."""
        ...

    def pull_name(self, remote: Reference, name: str) -> str:
        """Return the local name that ``pull`` will give, or refuse it."""
        ...

    async def pull(
        self, remote: Reference, *, name: str, granted: list[Privilege], access: RegistryAccess, sink: Sink
    ) -> None:
        """Install a plugin, disabled."""
        ...

    def upgrade_name(self, name: str) -> str:
        """Return the name of the plugin that ``upgrade`` will change, or refuse it."""
        ...

    async def upgrade(
        self, name: str, remote: Reference, *, granted: list[Privilege], access: RegistryAccess, sink: Sink
    ) -> None:
        """Replace a plugin's content."""
        ...

    async def push(self, name: str, *, access: RegistryAccess, sink: Sink) -> None:
        """Send a plugin to its registry."""
        ...

    async def set(self, name: str, arguments: list[str]) -> None:
        """Change settings."""
        ...

    def summaries(self) -> Sequence[msgspec.Struct]:
        """Return what each plugin does."""
        ...

    async def snapshot(self) -> Snapshot:
        """Return what each plugin does, to follow the events from there."""
        ...

    async def describe(self, name: str) -> msgspec.Struct:
        """Return all of a plugin that Docker has no word for."""
        ...

    def logs(self, name: str, wanted: Wanted, form: Form) -> AsyncGenerator[bytes, None]:
        """Yield what a plugin prints; only the iteration waits, what is wrong with the name is told at once."""
        ...

    async def top(self, name: str) -> Top:
        """Return the processes of a plugin."""
        ...

    async def update(self, name: str, changes: dict[str, Any]) -> Options:
        """Change options of a plugin and return all that count."""
        ...

    async def enable(self, name: str, *, timeout: int) -> None:
        """Start; ``timeout`` in seconds, to wait, and for calls to the plugin."""
        ...

    async def disable(self, name: str, *, force: bool) -> None:
        """Stop."""
        ...

    async def remove(self, name: str, *, force: bool) -> None:
        """Remove."""
        ...

    async def login(self, credentials: Credentials) -> str:
        """Check credentials with their registry and return its identity token, which may be empty."""
        ...

    async def disk_usage(self) -> dict[str, int]:
        """Return sizes in bytes, under ``layers`` that of all blobs."""
        ...

    async def leases(self, name: str) -> Sequence[PluginLease]:
        """Return who uses a plugin."""
        ...

    async def acquire(
        self, name: str, *, holder: str, purpose: str, seconds: float | None, capability: str
    ) -> PluginLease:
        """Take a lease on an enabled plugin that provides ``capability``, unless that is empty."""
        ...

    async def release(self, name: str, *, holder: str, purpose: str | None, everything: bool) -> int:
        """Give back one lease, or all, and return how many are left."""
        ...

    async def finish(self, name: str, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Run a change that a plugin makes, one at a time for a key; once begun it goes on without its caller."""
        ...

    async def mounts(self) -> Sequence[msgspec.Struct]:
        """Return every mount that the daemon has made."""
        ...

    async def collect(self, *, dry_run: bool) -> Collected:
        """Remove blobs that nothing needs."""
        ...

    def enabled_network_drivers(self) -> list[str]:
        """Return the names of enabled plugins that are network drivers."""
        ...


class PluginHandlers:
    """The endpoints under ``/plugins``."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def routes(self) -> list[Route]:
        """Return the endpoints, literal paths and patterns."""
        return [
            Route("GET", "/plugins", self.list),
            Route("GET", "/plugins/privileges", self.privileges),
            Route("GET", "/plugins/{name}/json", self.inspect),
            Route("POST", "/plugins/pull", self.pull),
            Route("POST", "/plugins/create", self.create),
            Route("POST", "/plugins/{name}/enable", self.enable),
            Route("POST", "/plugins/{name}/disable", self.disable),
            Route("POST", "/plugins/{name}/set", self.set),
            Route("POST", "/plugins/{name}/upgrade", self.upgrade, since="1.26"),
            Route("POST", "/plugins/{name}/push", self.push),
            # docker-py pushes to this path, which Moby does not have (REF 1.4)
            Route("POST", "/plugins/{name}/pull", self.push),
            Route("DELETE", "/plugins/{name}", self.remove),
        ]

    async def list(self, request: web.BaseRequest, _name: str) -> web.Response:
        """List plugins, sorted and filtered (REF 3.8)."""
        # most clients send no query, and to parse none costs as much as to find the answer
        filters = parse_filters(request.query.get("filters", "")) if "?" in request.raw_path else {}
        return json_bytes(self._manager.list_json(filters))

    async def privileges(self, request: web.BaseRequest, _name: str) -> web.Response:
        """Say what a remote plugin asks for; ``[]`` for nothing (REF 7.4)."""
        found = await self._manager.privileges(params.remote(request.query), params.registry_access(request.headers))
        return json_reply(found)

    async def inspect(self, _request: web.BaseRequest, name: str) -> web.Response:
        """Show one plugin."""
        return json_bytes(self._manager.inspect_json(name))

    async def pull(self, request: web.BaseRequest, _name: str) -> web.StreamResponse:
        """Install a plugin, disabled; what is wrong is found in this order: body, remote, name (REF 1.1)."""
        granted = privilege_list(await read_json(request))
        remote = params.remote(request.query)
        name = request.query.get("name", "")
        local = self._manager.pull_name(remote, name)
        # a name with a tag is echoed as it was typed (REF 3.1)
        typed = name and Reference.parse(name).tag
        request[CONTEXT].headers["Docker-Plugin-Name"] = name if typed else local
        access = params.registry_access(request.headers)
        return await stream(
            request, lambda sink: self._manager.pull(remote, name=name, granted=granted, access=access, sink=sink)
        )

    async def create(self, request: web.BaseRequest, _name: str) -> web.Response:
        """Make a plugin of an archive; its content type does not matter (REF 1.1)."""
        await self._manager.create(request.query.get("name", ""), chunks(request))
        return empty(204)

    async def enable(self, request: web.BaseRequest, name: str) -> web.Response:
        """Start a plugin; ``timeout`` is mandatory (REF 3.6)."""
        await self._manager.enable(name, timeout=params.integer(request.query.get("timeout", "")))
        return empty()

    async def disable(self, request: web.BaseRequest, name: str) -> web.Response:
        """Stop a plugin."""
        await self._manager.disable(name, force=params.boolean(request.query, "force"))
        return empty()

    async def set(self, request: web.BaseRequest, name: str) -> web.Response:
        """Change settings of a plugin."""
        await self._manager.set(name, string_list(await read_json(request)))
        return empty(204)

    async def upgrade(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        """Replace a plugin's content by that of a remote."""
        granted = privilege_list(await read_json(request))
        remote = params.remote(request.query)
        request[CONTEXT].headers["Docker-Plugin-Name"] = self._manager.upgrade_name(name)
        access = params.registry_access(request.headers)
        return await stream(
            request, lambda sink: self._manager.upgrade(name, remote, granted=granted, access=access, sink=sink)
        )

    async def push(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        """Send a plugin to the registry that its name says."""
        access = params.registry_access(request.headers)
        return await stream(request, lambda sink: self._manager.push(name, access=access, sink=sink))

    async def remove(self, request: web.BaseRequest, name: str) -> web.Response:
        """Remove a plugin."""
        await self._manager.remove(name, force=params.boolean(request.query, "force"))
        return empty()

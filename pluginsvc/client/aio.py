"""The asynchronous Python client: the daemon's API for programs, over a unix socket or loopback TCP.

``pluginctl`` does without this, since loading aiohttp takes longer than most answers; see ``connection``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple, Self, TypeVar

import anyio
import msgspec

from pluginsvc.client.answers import Offer, Provider
from pluginsvc.client.connection import DEFAULT_HOST, AnswerLost
from pluginsvc.client.paths import capability_path
from pluginsvc.client.watch import Watch
from pluginsvc.client.wire import Wire
from pluginsvc.errors import PluginsvcError
from pluginsvc.model.lease import PluginLease

ANSWER_TIMEOUT: Final = 60.0
"""Seconds for a whole answer."""

_GIVE_BACK_TIMEOUT = 10.0

T = TypeVar("T")


class Acquired(NamedTuple):
    """A plugin that is used.

    Attributes:
        plugin: as it was found.
        lease: what says that it is; ``None`` on a legacy plugin, which others run.
    """

    plugin: Provider
    lease: PluginLease | None


class _Found(msgspec.Struct, rename="pascal"):
    """``POST …/lookup``."""

    plugin: Provider | None
    lease: PluginLease | None
    count: int | None


class Client:
    """One daemon; an async context manager, for any number of tasks at once.

    Every method raises ``DaemonUnreachable``, ``AnswerLost``, or for an error of the API the kind that its status
    means, with its text as it is. A cancelled call may have been carried out, unless it says otherwise. Outside of its
    ``async with`` block they raise ``RuntimeError``, and so does a second block inside of the first.

    Args:
        host: ``unix:///PATH`` or ``tcp://HOST:PORT``.
        timeout: seconds for an answer.

    Raises:
        InvalidHost: it is neither.
    """

    def __init__(self, host: str = DEFAULT_HOST, *, timeout: float = ANSWER_TIMEOUT) -> None:
        self._wire = Wire(host, timeout=timeout)

    @property
    def host(self) -> str:
        """Return where the daemon is."""
        return self._wire.host

    async def __aenter__(self) -> Self:
        """Open; nothing is sent yet."""
        await self._wire.__aenter__()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Close all connections."""
        await self._wire.__aexit__()

    async def capabilities(self) -> list[Offer]:
        """Return what enabled plugins provide."""
        return await self._wire.call(list[Offer], "GET", "/pluginsvc/v1/capabilities")

    async def providers(self, capability: str, *, legacy: bool = True) -> list[Provider]:
        """Return the enabled plugins that provide something, the managed ones first, each by name.

        Args:
            capability: such as ``volumedriver``, of any version, or exactly ``docker.volumedriver/1.0``.
            legacy: whether to ask those that others run.

        Raises:
            InvalidCapability: nobody can provide it.
        """
        query = {} if legacy else {"legacy": "0"}
        return await self._wire.call(list[Provider], "GET", capability_path(capability), query)

    async def lookup(self, name: str, capability: str) -> Provider:
        """Return the plugin of a name, which need not be up: it may be starting again.

        Args:
            name: name, ID or prefix of one.
            capability: what it has to provide, see ``providers``.

        Raises:
            NotFound: nobody has that name.
            InvalidParameter: it does something else, or several IDs begin so.
            Conflict: it is not enabled.
        """
        found = await self._find(capability, {"Mode": "lookup", "Name": name})
        return self._there(found.plugin)

    async def acquire(
        self, name: str, capability: str, *, holder: str, purpose: str, seconds: float | None = None
    ) -> Acquired:
        """Say that somebody uses a plugin: until the release it is disabled and removed by force only.

        Args:
            name: as for ``lookup``, which also says what is raised.
            capability: what it has to provide.
            holder: who uses it.
            purpose: what for.
            seconds: until the lease ends by itself; ``None``: never.
        """
        body = {"Mode": "acquire", "Name": name, "Holder": holder, "Purpose": purpose, "Seconds": seconds}
        found = await self._find(capability, body)
        return Acquired(self._there(found.plugin), found.lease)

    async def release(
        self, name: str, capability: str, *, holder: str, purpose: str | None = None, everything: bool = False
    ) -> int:
        """Say that somebody uses a plugin one time less, and return how many times are left.

        This works whatever the plugin provides, when it is disabled, and when it is gone.

        Args:
            name: name or ID.
            capability: what it was acquired for.
            holder: who used it.
            purpose: by default whatever it was, the oldest first.
            everything: every use and not only one.
        """
        body = {"Mode": "release", "Name": name, "Holder": holder, "Purpose": purpose, "All": everything}
        return self._there((await self._find(capability, body)).count)

    @asynccontextmanager
    async def leased(
        self, name: str, capability: str, *, holder: str, purpose: str, seconds: float | None = None
    ) -> AsyncIterator[Acquired]:
        """Use a plugin inside the block; see ``acquire``.

        On the way out, also by cancellation of whichever kind and however often, it is released, within ten seconds of
        trying, for which the way out waits; a failure of that is raised only where nothing else is. The client has to
        be open until then.
        """
        # in a task of its own: who is cancelled while he waits for the answer would not know what to give back
        taking = asyncio.ensure_future(self.acquire(name, capability, holder=holder, purpose=purpose, seconds=seconds))
        try:
            await asyncio.wait([taking])
            yield taking.result()
        except BaseException:
            with suppress(PluginsvcError):
                await _to_the_end(self._give_back(taking, capability, holder, purpose))
            raise
        await _to_the_end(self._give_back(taking, capability, holder, purpose))

    async def _give_back(self, taking: asyncio.Future[Acquired], capability: str, holder: str, purpose: str) -> None:
        await asyncio.wait([taking], timeout=_GIVE_BACK_TIMEOUT)
        if not taking.done():
            taking.cancel()
            await asyncio.wait([taking])
        if taking.cancelled() or taking.exception() is not None or taking.result().lease is None:
            return
        # by its ID: another may have got its name meanwhile
        plugin_id = taking.result().plugin.id
        body = {"Mode": "release", "Name": plugin_id, "Holder": holder, "Purpose": purpose}
        await self._find(capability, body, timeout=_GIVE_BACK_TIMEOUT)

    @asynccontextmanager
    async def watch(self, capability: str) -> AsyncIterator[Watch]:
        """Give an iterator over the plugins that become ready with a capability, at every start and restart, and go.

        Those that are ready come first. It goes on when the daemon was away, and then tells only what is different.

        Args:
            capability: see ``providers``.

        Raises:
            PluginsvcError: the daemon is not there now, or refuses; also while iterating, if it comes to refuse later.
        """
        changes = Watch(self._wire, capability_path(capability, "watch"))
        try:
            await changes.connect()
            yield changes
        finally:
            changes.close()

    async def _find(self, capability: str, body: object, *, timeout: float | None = None) -> _Found:
        return await self._wire.call(_Found, "POST", capability_path(capability, "lookup"), json=body, timeout=timeout)

    def _there(self, value: T | None) -> T:
        if value is None:
            raise AnswerLost(self.host, ValueError("a part of the answer is missing"))
        return value


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Do it in a task of its own, and return when that has ended; who is cancelled meanwhile is so after it.

    A shield of anyio's alone does not hold off the cancellation of asyncio's tasks.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as exc:
                cancelled = exc
    if cancelled is not None:
        # retrieved, or asyncio complains of it
        if not task.cancelled():
            task.exception()
        raise cancelled
    task.result()

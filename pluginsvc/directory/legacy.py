"""Legacy (v1) plugins: found by files, asked once what they implement (REF §5).

What the files say is looked at anew each time: events only tell when to look, so that one that is lost, or a kernel
without inotify, makes things late and never wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import anyio
import anyio.abc
import msgspec
import structlog
from anyio import to_thread

from pluginsvc.directory.discovery import BadPluginFile, Found, locate, plausible, scan
from pluginsvc.directory.lookout import Lookout
from pluginsvc.directory.provider import Provider
from pluginsvc.directory.rpc import RETRY_FOR, BadAnswer, Client, PluginFault
from pluginsvc.errors import NotFound
from pluginsvc.model.plugin import Capability

ACTIVATE_TIMEOUT: Final = 5.0
"""Seconds for each try to activate a plugin; Docker waits for ever."""

_ACTIVATE = "Plugin.Activate"
_WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further look for a plugin that is waited for (REF §5)."""
_SHORTLY = 4.0
"""Seconds for which activation is tried again where nobody asked to wait: a plugin that starts binds, then listens."""
_MAX_HOLD = 60.0
_AT_ONCE = 32
_log = structlog.get_logger()


class LegacyNotFound(NotFound):
    """No file says where such a plugin is; the text ends as Docker's."""

    def __init__(self, name: str) -> None:
        self.name = name
        shown = name[:300].encode(errors="backslashreplace").decode()
        quoted = msgspec.json.encode(shown).decode()
        text = f"plugin {quoted} not found: could not find plugin {shown} in v1 plugin registry: plugin not found"
        super().__init__(text if name else "Unable to find plugin without name")


_Word = Annotated[str, msgspec.Meta(max_length=256)]


class _Manifest(msgspec.Struct, frozen=True):
    """The answer to activation; the limits are far beyond any plugin's wants."""

    implements: Annotated[list[_Word], msgspec.Meta(max_length=64)] | None = msgspec.field(
        default=None, name="Implements"
    )


@dataclass(slots=True)
class _Flight:
    """An activation under way, for all who want it."""

    patience: float
    done: anyio.Event = field(default_factory=anyio.Event)
    error: Exception | None = None


class _Failure(NamedTuple):
    """A plugin that did not answer, and is left out of lists until ``until``."""

    found: Found
    reason: str
    hold: float
    until: float


class Legacy:
    """The plugins that others run.

    Args:
        directories: where their files are, the first that has a name wins.
        sockets: RUN/plugins, absolute: what leads there is ours, and no legacy plugin.
        clock: tells seconds.
        sleep: waits between tries.
    """

    def __init__(
        self,
        directories: Iterable[Path],
        sockets: Path,
        *,
        clock: Callable[[], float] = anyio.current_time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._directories, self._sockets = tuple(directories), sockets
        self._clock, self._sleep = clock, sleep
        self._watchers: list[Callable[[], None]] = []
        self._active: dict[str, tuple[Found, Provider]] = {}
        self._flights: dict[Found, _Flight] = {}
        self._failures: dict[str, _Failure] = {}
        self._told = frozenset[str]()
        self._lookout = Lookout(self._directories, lambda: [found for found, _ in self._active.values()], clock)

    def watch(self, call: Callable[[], None]) -> None:
        """Have ``call``, which does not wait, called whenever a plugin may have come or gone."""
        self._watchers.append(call)

    def _tell(self) -> None:
        for call in self._watchers:
            call()

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Watch the directories until cancelled."""
        await self._lookout.serve(self._tell, task_status=task_status)

    async def get(self, name: str, *, wait: bool = False) -> Provider:
        """Return the plugin of a name, activated.

        Args:
            name: of its file, without the ending.
            wait: whether one that is not there, or whose file cannot be used, is waited for as Docker does: it is
                looked for again after 1, 2, 4 and 8 s, and whenever something changes in the directories; one that does
                not answer is asked again as long. This is for names from a configuration, where the plugin may be
                starting beside us. A person who has mistyped a name wants to know that now and not in 15 s.

        Raises:
            LegacyNotFound: there is none.
            BadPluginFile: a file does not say where it is.
            PluginFault: it does not say what it implements.
        """
        found = await self._found(name, wait=wait)
        return await self._activated(found, RETRY_FOR if wait else _SHORTLY)

    async def all(self) -> list[Provider]:
        """Return those that there are and that answer, by name.

        One that does not answer to its only try is left out, and is asked again when its file changes or after a while:
        the longer, the longer that took and the more often it did, so that lists are not always late because of it.
        """
        before = dict(self._active)
        plugins, troubles = await to_thread.run_sync(scan, self._directories, self._sockets)
        for trouble in sorted(troubles - self._told):
            _log.warning("legacy.trouble", error=trouble)
        self._told = troubles
        names = {found.name for found in plugins}
        for name, active in before.items():
            # one that has become active meanwhile may have come after the look
            if name not in names and self._active.get(name) is active:
                self._drop(name)
        self._failures = {name: failure for name, failure in self._failures.items() if name in names}
        providers: list[Provider] = []
        limit = anyio.CapacityLimiter(_AT_ONCE)

        async def ask(found: Found) -> None:
            async with limit:
                if (provider := await self._answering(found)) is not None:
                    providers.append(provider)

        async with anyio.create_task_group() as group:
            for found in plugins:
                failure = self._failures.get(found.name)
                if failure is None or failure.found != found or failure.until <= self._clock():
                    group.start_soon(ask, found)
        return sorted(providers, key=lambda provider: provider.name)

    async def _found(self, name: str, *, wait: bool) -> Found:
        if not plausible(name):
            raise LegacyNotFound(name)
        pauses = iter(_WAITS if wait else ())
        due = self._clock()
        while True:
            changed = self._lookout.next
            try:
                found = await to_thread.run_sync(locate, self._directories, self._sockets, name)
                if found is not None:
                    return found
                raise LegacyNotFound(name)  # noqa: TRY301 - both reasons are waited for
            except (LegacyNotFound, BadPluginFile):
                self._drop(name)
                # one that has been looked for early is looked for when that was due all the same
                if self._clock() >= due:
                    pause = next(pauses, None)
                    if pause is None:
                        raise
                    due = self._clock() + pause
            await self._sleep_unless(changed, due - self._clock())

    async def _sleep_unless(self, event: anyio.Event, seconds: float) -> None:
        async with anyio.create_task_group() as group:

            async def wake() -> None:
                await event.wait()
                group.cancel_scope.cancel()

            group.start_soon(wake)
            await self._sleep(seconds)
            group.cancel_scope.cancel()

    async def _activated(self, found: Found, patience: float) -> Provider:
        """Return it as it is active, or activate it: for all who want that at the same time, once.

        Who is cancelled while others wait for his outcome leaves it to one of them, who asks the plugin once more:
        what no caller waits for any more is not done by anybody.

        Args:
            found: what to activate.
            patience: seconds for which it is tried again.
        """
        while True:
            if (provider := self._known(found)) is not None:
                return provider
            flight = self._flights.get(found)
            if flight is None:
                return await self._activate(found, patience)
            await flight.done.wait()
            if flight.error is not None and flight.patience >= patience:
                raise flight.error

    async def _activate(self, found: Found, patience: float) -> Provider:
        self._drop(found.name)
        flight = self._flights[found] = _Flight(patience)
        try:
            client = Client(found.address, name=found.name, tls=found.tls, clock=self._clock, sleep=self._sleep)
            answer = await client.call(_ACTIVATE, timeout=ACTIVATE_TIMEOUT, retry_for=patience)
            try:
                implements = msgspec.convert(answer, _Manifest).implements or []
            except msgspec.ValidationError as exc:
                raise BadAnswer(plugin=found.name, method=_ACTIVATE, reason=str(exc)) from exc
        except Exception as exc:
            flight.error = exc
            raise
        finally:
            del self._flights[found]
            flight.done.set()
        provider = Provider(
            name=found.name,
            plugin_id="",
            capabilities=tuple(Capability("docker", name.lower(), "1.0") for name in dict.fromkeys(implements)),
            address=found.address,
            enabled=True,
            state="legacy",
            up=True,
            run=_run(found),
            client=client,
        )
        self._active[found.name] = found, provider
        self._failures.pop(found.name, None)
        # for whoever had left it out; and its socket is to be watched
        self._lookout.look_at(self._clock())
        return provider

    def _known(self, found: Found) -> Provider | None:
        active, provider = self._active.get(found.name, (None, None))
        return provider if active == found else None

    def _drop(self, name: str) -> None:
        if self._active.pop(name, None) is not None:
            self._tell()

    async def _answering(self, found: Found) -> Provider | None:
        """Return it if it is active, or answers to one try; ``None``: that failed, which is kept in mind."""
        started = self._clock()
        try:
            # somebody else may be at it, with more patience
            with anyio.fail_after(ACTIVATE_TIMEOUT + 1):
                return await self._activated(found, 0.0)
        except (PluginFault, TimeoutError) as exc:
            reason = exc.reason if isinstance(exc, PluginFault) else "it took too long"
        known = self._failures.get(found.name)
        again = known if known is not None and known.found == found else None
        if again is None or again.reason != reason:
            _log.warning("legacy.silent", plugin=found.name, file=str(found.file), error=reason)
        took = self._clock() - started
        hold = min(_MAX_HOLD, max(1.0, 12 * took, 2 * again.hold if again else 0.0))
        until = self._clock() + hold
        self._failures[found.name] = _Failure(found, reason, hold, until)
        self._lookout.look_at(until)
        return None


def _run(found: Found) -> str:
    """Return what tells starts apart, also for daemons after us: the socket, which a process binds when it starts.

    A process that listens at no socket of a file system may start again unseen, unless it writes its file anew.
    """
    file, socket = found.stamps
    return "-".join(map(str, socket or file))

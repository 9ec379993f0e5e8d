"""Legacy (v1) plugins: found by files, asked once what they implement (REF §5).

What the files say is looked at anew each time: events only tell when to look, so that one that is lost, or a kernel
without inotify, makes things late and never wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import anyio
import anyio.abc
import msgspec
import structlog

from pluginsvc.directory.aside import Aside, Shared
from pluginsvc.directory.discovery import BadPluginFile, Found, locate, plausible, scan
from pluginsvc.directory.lookout import Lookout
from pluginsvc.directory.provider import Provider
from pluginsvc.directory.rpc import RETRY_FOR, BadAnswer, Client, PluginFault
from pluginsvc.directory.silent import Silent
from pluginsvc.errors import NotFound
from pluginsvc.model.plugin import Capability

ACTIVATE_TIMEOUT: Final = 5.0
"""Seconds for each try to activate a plugin; Docker waits for ever."""

_ACTIVATE = "Plugin.Activate"
_WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further look for a plugin that is waited for (REF §5)."""
_SHORTLY = 4.0
"""Seconds for which activation is tried again where nobody asked to wait: a plugin that starts binds, then listens."""
_AT_ONCE = 128
_LOOKUPS = 8
_MAX_TOLD = 100
"""Files of no use that are named in the log at once."""
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
        self._silent = Silent(clock)
        self._told = frozenset[str]()
        self._listed: list[Found] = []
        self._scanning, self._locating = Aside(1), Aside(_LOOKUPS)
        self._scans = Shared(self._scan)
        self._asking = anyio.Lock()
        self._lookout = Lookout(self._directories, sockets, self._in_use, clock)

    def watch(self, call: Callable[[], None]) -> None:
        """Have ``call``, which does not wait, called whenever a plugin may have come or gone."""
        self._watchers.append(call)

    def _in_use(self) -> list[Found]:
        return [found for found, _ in self._active.values()]

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
        After a few seconds the list is whatever has answered, also where the directories do not.
        """
        deadline = anyio.current_time() + ACTIVATE_TIMEOUT + 1
        listed: list[Found] | None = None
        with anyio.CancelScope(deadline=deadline):
            listed = await self._scans.get()
            # who comes later finds active or failed what was asked meanwhile
            async with self._asking:
                await self._ask(listed, deadline)
        if listed is None:
            _log.warning("legacy.late", error="the directories were not read in time; the list is that of before")
        providers = map(self._known, self._listed if listed is None else listed)
        return sorted((provider for provider in providers if provider), key=lambda provider: provider.name)

    async def _scan(self) -> list[Found]:
        before = dict(self._active)
        plugins, troubles = await self._scanning.run(scan, self._directories, self._sockets)
        for trouble in sorted(troubles - self._told)[:_MAX_TOLD]:
            _log.warning("legacy.trouble", error=trouble)
        self._told = troubles
        names = {found.name for found in plugins}
        for name, active in before.items():
            # one that has become active meanwhile may have come after the look
            if name not in names and self._active.get(name) is active:
                self._drop(name)
        self._silent.keep(names)
        self._listed = plugins
        return plugins

    async def _ask(self, listed: Iterable[Found], deadline: float) -> None:
        """Activate those that are not and have not failed just now, by one try each."""
        limit = anyio.CapacityLimiter(_AT_ONCE)

        async def ask(found: Found) -> None:
            async with limit:
                if found not in self._silent:
                    await self._try(found, deadline)

        # those that never failed first, in case the time is too short for all
        rest = [found for found in listed if self._known(found) is None and found not in self._silent]
        async with anyio.create_task_group() as group:
            for found in sorted(rest, key=lambda found: self._silent.before(found.name)):
                group.start_soon(ask, found)

    async def _found(self, name: str, *, wait: bool) -> Found:
        if not plausible(name):
            raise LegacyNotFound(name)
        pauses = iter(_WAITS if wait else ())
        due = self._clock()
        while True:
            changed = self._lookout.next
            try:
                found = await self._locating.run(locate, self._directories, self._sockets, name)
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
            run=found.run,
            client=client,
        )
        self._active[found.name] = found, provider
        self._silent.forget(found.name)
        # for whoever had left it out; and its socket is to be watched
        self._lookout.look_at(self._clock())
        return provider

    def _known(self, found: Found) -> Provider | None:
        active, provider = self._active.get(found.name, (None, None))
        return provider if active == found else None

    def _drop(self, name: str) -> None:
        if self._active.pop(name, None) is not None:
            self._tell()

    async def _try(self, found: Found, deadline: float) -> None:
        """Activate it by one try; that it failed, or did not come to an end in time, is kept in mind."""
        started = self._clock()
        try:
            # somebody else may be at it, with more patience
            await self._activated(found, 0.0)
        except PluginFault as exc:
            self._set_aside(found, exc.reason, started)
        except Exception as exc:  # noqa: BLE001 - see below
            # whatever it is, the others are listed
            _log.exception("legacy.failed", plugin=found.name)
            self._set_aside(found, str(exc) or type(exc).__name__, started)
        except anyio.get_cancelled_exc_class():
            if anyio.current_time() >= deadline:
                self._set_aside(found, "it took too long", started)
            raise

    def _set_aside(self, found: Found, reason: str, started: float) -> None:
        self._lookout.look_at(self._silent.add(found, reason, started=started))

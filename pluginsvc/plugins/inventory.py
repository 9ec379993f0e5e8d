"""The plugins that exist: by ID and by name, with the names that are being made (REF 3.1, 3.8; design D9, D12)."""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import msgspec

from pluginsvc.errors import Conflict, InvalidParameter, NotFound
from pluginsvc.model.filters import InvalidFilter
from pluginsvc.model.lifecycle import UP, State, Status
from pluginsvc.model.plugin import Plugin, PluginConfig, PluginRecord
from pluginsvc.model.reference import InvalidReference, Reference

_ID = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{1,63}")
_STOPPED = Status()
_TRUE, _FALSE = frozenset({"true", "1"}), frozenset({"false", "0"})


class PluginNotFound(NotFound):
    """No plugin answers to what the caller typed."""

    def __init__(self, typed: str) -> None:
        self.typed = typed
        super().__init__(f"plugin {msgspec.json.encode(typed).decode()} not found")


class AmbiguousName(InvalidParameter):
    """Several plugins' IDs start with what the caller typed."""

    def __init__(self, typed: str) -> None:
        self.typed = typed
        super().__init__(f'multiple plugins found for "{typed}"')


class PluginExists(Conflict):
    """The name is taken, or is being taken at this moment."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"plugin {name} already exists")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin as it stands: replaced whole at each change, never altered.

    Attributes:
        record: what the database holds.
        config: the decoded config blob.
        document: the plugin as the API shows it, encoded once (design D12).
    """

    record: PluginRecord
    config: PluginConfig
    document: bytes

    @classmethod
    def of(cls, record: PluginRecord, config: PluginConfig) -> Entry:
        """Encode the API's view of ``record``."""
        plugin = Plugin(
            config=config,
            enabled=record.enabled,
            id=record.id,
            name=record.name,
            plugin_reference=record.reference or msgspec.UNSET,
            settings=record.settings,
        )
        return cls(record=record, config=config, document=msgspec.json.encode(plugin))


class Inventory:
    """All plugins, in memory; the database is their truth and is written first."""

    def __init__(self) -> None:
        self._by_id: dict[str, Entry] = {}
        self._by_name: dict[str, str] = {}
        self._ruins: dict[str, Entry] = {}
        self._statuses: dict[str, Status] = {}
        self._watchers: list[Callable[[], None]] = []
        self._reserved: set[str] = set()
        self._listing: bytes | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Entry]:
        """Entries sorted by name (REF 7.50)."""
        return iter(sorted(self._by_id.values(), key=lambda entry: entry.record.name))

    def counts(self) -> str:
        """Say in a line how many plugins there are, how many of them enabled, and what ails those."""
        found = self.states()
        enabled = sum(entry.record.enabled for entry in self._by_id.values())
        ailing = [f"{found[state]} {state}" for state in ("unhealthy", "backing-off", "crash-loop") if found[state]]
        return ", ".join([f"{len(self)} plugins", f"{enabled} enabled", *ailing])

    def states(self) -> Counter[State]:
        """Return how many plugins there are in each state."""
        return Counter(self.status(plugin_id).state for plugin_id in self._by_id)

    def put(self, entry: Entry) -> None:
        """Add an entry, or replace the one with the same ID."""
        self._by_id[entry.record.id] = entry
        self._by_name[entry.record.name] = entry.record.id
        self._listing = None

    def put_ruin(self, entry: Entry) -> None:
        """Add a plugin whose config is lost: it is not shown, keeps its name and ID, and can only be removed."""
        self._ruins[entry.record.id] = entry

    @property
    def ruined(self) -> Collection[str]:
        """Return the IDs of plugins that are not shown, because their config is lost."""
        return self._ruins.keys()

    def drop(self, plugin_id: str) -> None:
        """Forget an entry, or a ruin."""
        self._statuses.pop(plugin_id, None)
        if self._ruins.pop(plugin_id, None) is None:
            entry = self._by_id.pop(plugin_id)
            del self._by_name[entry.record.name]
            self._listing = None

    def status(self, plugin_id: str) -> Status:
        """Return what a plugin is doing."""
        return self._statuses.get(plugin_id, _STOPPED)

    def put_status(self, plugin_id: str, status: Status) -> None:
        """Say what a plugin is doing now; its entry is there."""
        was_up = self.status(plugin_id).state in UP
        self._statuses[plugin_id] = status
        if was_up != (status.state in UP):
            for call in self._watchers:
                call()

    def watch(self, call: Callable[[], None]) -> None:
        """Have ``call``, which does not wait, called whenever a plugin has come up or gone down."""
        self._watchers.append(call)

    def get(self, plugin_id: str) -> Entry:
        """Return the entry, or the ruin, with this ID as it stands now.

        Raises:
            PluginNotFound: it is gone.
        """
        entry = self._by_id.get(plugin_id) or self._ruins.get(plugin_id)
        if entry is None:
            raise PluginNotFound(plugin_id)
        return entry

    def find_ruin(self, typed: str) -> Entry:
        """Look up a plugin that can only be removed, by its full ID or its name.

        Raises:
            PluginNotFound: there is none.
        """
        for entry in self._ruins.values():
            if typed in {entry.record.id, entry.record.name} or f"{typed}:latest" == entry.record.name:
                return entry
        raise PluginNotFound(typed)

    def find(self, typed: str) -> Entry:
        """Look up what a user typed: full ID, name, or unique ID prefix, in that order (REF 3.1).

        Raises:
            PluginNotFound: nothing fits, or it can never be a plugin's name.
            AmbiguousName: several IDs start with it.
        """
        if _ID.fullmatch(typed):
            if typed not in self._by_id:
                raise PluginNotFound(typed)
            return self._by_id[typed]
        try:
            reference = Reference.parse(typed)
        except InvalidReference:
            raise PluginNotFound(typed) from None
        if reference.digest:
            raise PluginNotFound(typed)
        if found := self._by_name.get(reference.local_name()):
            return self._by_id[found]
        matches = [i for i in self._by_id if i.startswith(typed)] if _PREFIX.fullmatch(typed) else []
        if len(matches) > 1:
            raise AmbiguousName(typed)
        if not matches:
            raise PluginNotFound(typed)
        return self._by_id[matches[0]]

    @contextmanager
    def reserve(self, name: str) -> Iterator[None]:
        """Hold a name that no plugin has yet, until the block ends (REF 7.33).

        Raises:
            PluginExists: a plugin has it, or somebody else holds it.
        """
        ruined = any(entry.record.name == name for entry in self._ruins.values())
        if ruined or name in self._by_name or name in self._reserved:
            raise PluginExists(name)
        self._reserved.add(name)
        try:
            yield
        finally:
            self._reserved.discard(name)

    def new_id(self) -> str:
        """Draw an unused ID whose short form does not look like a number (REF 3.1)."""
        while True:
            drawn = secrets.token_hex(32)
            if not drawn[:12].isdecimal() and drawn not in self._by_id:
                return drawn

    def listing(self, filters: dict[str, list[str]]) -> bytes:
        """Return the body of ``GET /plugins`` (REF 3.8; capabilities match exactly, 7.6).

        Raises:
            InvalidFilter: an unknown filter or a value it cannot have.
        """
        if not filters:
            if self._listing is None:
                self._listing = _array(self)
            return self._listing
        if unknown := sorted(set(filters) - {"enabled", "capability"}):
            raise InvalidFilter(unknown[0])
        wanted = _flag(filters["enabled"]) if "enabled" in filters else None
        capabilities = set(filters.get("capability", ()))
        return _array(
            entry
            for entry in self
            if wanted in {None, entry.record.enabled}
            and ("capability" not in filters or _provides(entry, capabilities))
        )


def _array(entries: Iterator[Entry] | Inventory) -> bytes:
    return b"[" + b",".join(entry.document for entry in entries) + b"]\n"


def _flag(values: list[str]) -> bool:
    given = set(values)
    if given and given <= _TRUE:
        return True
    if given and given <= _FALSE:
        return False
    raise InvalidFilter(f"enabled=[{' '.join(values)}]" if values else "enabled")


def _provides(entry: Entry, names: set[str]) -> bool:
    return any(c.prefix == "docker" and c.name in names for c in entry.config.interface.capabilities)

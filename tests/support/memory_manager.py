"""A manager that keeps plugins in memory and starts nothing, so that the API can be tested without root.

It behaves as REF §3 says as far as a client can see: names, states, privileges, settings, events, texts.
"""

import io
import json
import secrets
import tarfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import anyio
import msgspec
from anyio import to_thread

from pluginsvc.api.params import go_quote
from pluginsvc.api.stream import Sink
from pluginsvc.directory.directory import Directory
from pluginsvc.directory.legacy import Legacy
from pluginsvc.directory.provider import Provider, Scope
from pluginsvc.directory.rpc import Client
from pluginsvc.errors import Conflict, InvalidParameter, NotFound, Unauthorized
from pluginsvc.model.auth import Credentials, RegistryAccess
from pluginsvc.model.config import parse_config
from pluginsvc.model.digest import Digest
from pluginsvc.model.filters import InvalidFilter
from pluginsvc.model.lease import PluginLease, check_text, holders
from pluginsvc.model.lifecycle import State
from pluginsvc.model.options import Options, changed
from pluginsvc.model.output import Form, Top, Wanted
from pluginsvc.model.plugin import Capability, Plugin, PluginConfig, PluginSettings
from pluginsvc.model.privilege import Privilege, check_privileges, required_privileges
from pluginsvc.model.progress import Aux, Line, ProgressDetail
from pluginsvc.model.reference import InvalidReference, Reference
from pluginsvc.runtime import history
from tests.support.memory_events import MemoryEvents

T = TypeVar("T")


class PluginNotFoundError(NotFound):
    def __init__(self, name: str) -> None:
        super().__init__(f"plugin {go_quote(name)} not found")


class RemoteNotFoundError(NotFound):
    def __init__(self, remote: Reference) -> None:
        super().__init__(f"error resolving plugin reference: {remote}: not found")


class WrongStateError(Conflict):
    pass


class RefusedError(InvalidParameter):
    pass


class LoginRefusedError(Unauthorized):
    pass


class Summary(msgspec.Struct, rename="pascal"):
    id: str
    name: str
    desired: str
    state: str = "stopped"
    reference: str = ""
    digest: str = ""

    @classmethod
    def of(cls, plugin: Plugin) -> Self:
        return cls(plugin.id, plugin.name, "enabled" if plugin.enabled else "disabled")


@dataclass(frozen=True)
class Snapshot:
    seq: int
    plugins: list[Summary]


class Mount(msgspec.Struct, rename="pascal"):
    path: str
    plugin: str
    plugin_id: str = msgspec.field(name="PluginID", default="")
    mount_id: int = msgspec.field(name="MountID", default=1)
    since: str = "2026-11-22T00:00:00Z"
    state: str = "mounted"
    trouble: str = ""


@dataclass(frozen=True)
class Report:
    removed: list[Digest]
    bytes: int


def _config_of(data: bytes) -> PluginConfig:
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = {member.name.removeprefix("./"): member for member in archive}
            if "config.json" not in members:
                raise RefusedError("config not found")
            file = archive.extractfile(members["config.json"])
            assert file is not None
            return parse_config(file.read())
    except tarfile.TarError as exc:
        raise RefusedError(f"failed to read from tar: {exc}") from exc


@dataclass
class MemoryManager:
    """See the module.

    Attributes:
        plugins: by ID.
        remotes: what registries hold, by full reference.
        accesses: what each registry call brought along.
        options: the plugins' own, by ID.
        in_use: leases, by plugin ID.
        log_root: directory of the plugins' log files, each in a directory named by its ID.
        place: directory of the plugins' own, each in a directory named by its ID: socket, rootfs, propagated-mount.
        printed: to be set, and replaced, when a log file has grown.
        held: while set, `pull` waits after its first line.
        holding: set when it does.
        cancelled: set when a pull was cancelled.
    """

    events: MemoryEvents = field(default_factory=MemoryEvents)
    plugins: dict[str, Plugin] = field(default_factory=dict)
    remotes: dict[str, PluginConfig] = field(default_factory=dict)
    accesses: list[RegistryAccess] = field(default_factory=list)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    in_use: dict[str, list[PluginLease]] = field(default_factory=dict)
    log_root: Path = Path("/nonexistent")
    place: Path = Path("/nonexistent")
    printed: anyio.Event = field(default_factory=anyio.Event)
    held: anyio.Event | None = None
    holding: anyio.Event = field(default_factory=anyio.Event)
    cancelled: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        """Make a directory that knows no others' plugins."""
        self.watchers: list[Callable[[], None]] = []
        self.directory = Directory(self, self.watchers.append, Legacy([], Path("/nonexistent")))

    async def publish(self, reference: str, config: dict[str, Any]) -> str:
        self.remotes[str(Reference.parse(reference).with_default_tag())] = parse_config(json.dumps(config).encode())
        return reference

    def find(self, name: str) -> Plugin:
        if len(name) == 64 and name in self.plugins:
            return self.plugins[name]
        try:
            reference = Reference.parse(name)
        except InvalidReference as exc:
            raise PluginNotFoundError(name) from exc
        for plugin in self.plugins.values():
            if reference.digest is None and plugin.name == reference.local_name():
                return plugin
        found = [plugin for plugin in self.plugins.values() if plugin.id.startswith(name)]
        if len(found) > 1:
            raise RefusedError(f"multiple plugins found for {go_quote(name)}")
        if not found:
            raise PluginNotFoundError(name)
        return found[0]

    def provider(self, name: str) -> Provider:
        return self._provider(self.find(name))

    def providers(self) -> list[Provider]:
        return [self._provider(plugin) for plugin in sorted(self.plugins.values(), key=lambda plugin: plugin.name)]

    def _provider(self, plugin: Plugin) -> Provider:
        folder = self.place / plugin.id
        address = f"unix://{folder}/{plugin.config.interface.socket}"
        return Provider(
            name=plugin.name,
            plugin_id=plugin.id,
            capabilities=tuple(plugin.config.interface.capabilities),
            address=address,
            enabled=plugin.enabled,
            state="running" if plugin.enabled else "stopped",
            up=plugin.enabled,
            run="1" if plugin.enabled else "",
            client=Client(address, name=plugin.name),
            scope=Scope(folder / "rootfs", plugin.config.propagated_mount, folder / "propagated-mount"),
        )

    def list_json(self, filters: dict[str, list[str]]) -> bytes:
        for key, values in filters.items():
            if key not in {"enabled", "capability"}:
                raise InvalidFilter(key)
            if key == "enabled" and (len(values) != 1 or values[0] not in {"true", "false", "1", "0"}):
                raise InvalidFilter(f"enabled=[{' '.join(values)}]")
        found = sorted(self.plugins.values(), key=lambda plugin: plugin.name)
        if state := filters.get("enabled"):
            found = [plugin for plugin in found if plugin.enabled == (state[0] in {"true", "1"})]
        if wanted := filters.get("capability"):
            found = [
                plugin
                for plugin in found
                if any(capability.name in wanted for capability in plugin.config.interface.capabilities)
            ]
        return msgspec.json.encode(found) + b"\n"

    def inspect_json(self, name: str) -> bytes:
        return msgspec.json.encode(self.find(name)) + b"\n"

    def _remote(self, remote: Reference, access: RegistryAccess) -> PluginConfig:
        self.accesses.append(access)
        try:
            return self.remotes[str(remote)]
        except KeyError as exc:
            raise RemoteNotFoundError(remote) from exc

    async def privileges(self, remote: Reference, access: RegistryAccess) -> list[Privilege]:
        return required_privileges(self._remote(remote, access))

    def _free(self, name: str) -> None:
        if any(plugin.name == name for plugin in self.plugins.values()):
            raise WrongStateError(f"plugin {name} already exists")

    def _add(self, config: PluginConfig, name: str, reference: str) -> Plugin:
        plugin = Plugin(
            config=config,
            enabled=False,
            id=secrets.token_hex(32),
            name=name,
            plugin_reference=reference,
            settings=PluginSettings.defaults(config),
        )
        self.plugins[plugin.id] = plugin
        return plugin

    async def create(self, name: str, body: AsyncIterator[bytes]) -> None:
        reference = Reference.parse(name)
        if reference.digest is not None:
            raise RefusedError("canonical references are not permitted")
        self._free(reference.local_name())
        data = b"".join([chunk async for chunk in body])
        config = await to_thread.run_sync(_config_of, data)
        plugin = self._add(config, reference.local_name(), reference.familiar)
        self.events.publish("create", plugin.id, plugin.name)

    def pull_name(self, remote: Reference, name: str) -> str:
        if not name:
            return remote.local_name()
        if Reference.parse(name).digest is not None:
            raise RefusedError("cannot use digest in plugin tag")
        return name

    async def _fetch(self, remote: Reference, config: PluginConfig, sink: Sink) -> None:
        digest = Digest.of(msgspec.json.encode(config))
        await sink(Line(status=f"Pulling from {remote.familiar_name}", id=remote.tag or ""))
        if self.held is not None:
            self.holding.set()
            try:
                await self.held.wait()
            except BaseException:
                self.cancelled.set()
                raise
        await sink(Line(status=f"Digest: {digest}"))
        for status, current in (("Pulling fs layer", 0), ("Downloading", 50), ("Download complete", 0)):
            await sink(Line.step(status, digest.short, current=current, total=current * 2))
        await sink(Line.step("Complete", digest.short))

    async def pull(
        self, remote: Reference, *, name: str, granted: list[Privilege], access: RegistryAccess, sink: Sink
    ) -> None:
        config = self._remote(remote, access)
        local = Reference.parse(self.pull_name(remote, name)).local_name()
        self._free(local)
        await self._fetch(remote, config, sink)
        check_privileges(granted, required_privileges(config))
        self._free(local)
        self._add(config, local, str(remote))
        self.events.publish("pull", remote.familiar, local)

    def upgrade_name(self, name: str) -> str:
        return self.find(name).name

    async def upgrade(
        self, name: str, remote: Reference, *, granted: list[Privilege], access: RegistryAccess, sink: Sink
    ) -> None:
        plugin = self.find(name)
        if plugin.enabled:
            raise WrongStateError(f"plugin must be disabled before upgrading: plugin {plugin.name} is enabled")
        config = self._remote(remote, access)
        await self._fetch(remote, config, sink)
        check_privileges(granted, required_privileges(config))
        self.plugins[plugin.id] = msgspec.structs.replace(plugin, config=config, plugin_reference=str(remote))
        self.events.publish("pull", remote.familiar, plugin.name)

    async def push(self, name: str, *, access: RegistryAccess, sink: Sink) -> None:
        plugin = self.find(name)
        self.accesses.append(access)
        reference = Reference.parse(plugin.name)
        digest = Digest.of(msgspec.json.encode(plugin.config))
        await sink(Line(status=f"The push refers to repository [{reference.repository}]"))
        for status in ("Preparing", "Pushing", "Pushed"):
            await sink(Line.step(status, digest.short))
        self.remotes[str(reference)] = plugin.config
        aux = Aux(tag=reference.tag or "", digest=str(digest), size=500)
        await sink(Line(progress_detail=ProgressDetail(), aux=aux))

    async def set(self, name: str, arguments: list[str]) -> None:
        plugin = self.find(name)
        if plugin.enabled:
            raise WrongStateError("cannot set on an active plugin, disable plugin before setting")
        env = dict(item.split("=", 1) for item in plugin.settings.env)
        settable = {item.name for item in plugin.config.env or () if item.settable}
        for argument in arguments:
            key, _, value = argument.partition("=")
            if key not in settable:
                raise RefusedError(f"setting {go_quote(key)} not found in the plugin configuration")
            env[key] = value
        settings = msgspec.structs.replace(plugin.settings, env=[f"{key}={value}" for key, value in env.items()])
        self.plugins[plugin.id] = msgspec.structs.replace(plugin, settings=settings)

    def logs(self, name: str, wanted: Wanted, form: Form) -> AsyncGenerator[bytes, None]:
        plugin_id = self.find(name).id
        return history.follow(
            self.log_root / plugin_id,
            wanted,
            form,
            printed=lambda: self.printed,
            going=lambda: plugin_id in self.plugins and self.plugins[plugin_id].enabled,
        )

    async def top(self, name: str) -> Top:
        plugin = self.find(name)
        if not plugin.enabled:
            raise WrongStateError(f"plugin {plugin.name} is not running")
        return Top(("PID", "CMD"), [["7", "/sample \x1b[31m"]])

    def states(self) -> Counter[State]:
        return Counter("running" if plugin.enabled else "stopped" for plugin in self.plugins.values())

    def summaries(self) -> list[Summary]:
        return [Summary.of(plugin) for plugin in sorted(self.plugins.values(), key=lambda each: each.name)]

    async def snapshot(self) -> Snapshot:
        return Snapshot(len(self.events.journal), self.summaries())

    async def describe(self, name: str) -> Summary:
        return Summary.of(self.find(name))

    async def update(self, name: str, changes: dict[str, Any]) -> Options:
        plugin = self.find(name)
        own = self.options[plugin.id] = changed(self.options.get(plugin.id, {}), changes)
        return Options().with_own(own)

    async def enable(self, name: str, *, timeout: int) -> None:
        plugin = self.find(name)
        if plugin.enabled:
            raise WrongStateError(f"plugin already enabled: plugin {plugin.name} is enabled")
        self._switch(plugin, name, on=True)

    async def disable(self, name: str, *, force: bool) -> None:
        plugin = self.find(name)
        if not plugin.enabled:
            raise WrongStateError(f"plugin is already disabled: plugin {plugin.name} found but disabled")
        self._unused(plugin, force=force)
        self._switch(plugin, name, on=False)

    def _unused(self, plugin: Plugin, *, force: bool) -> None:
        if not force and (found := self.in_use.get(plugin.id)):
            raise WrongStateError(f"plugin {plugin.name} is in use by {holders(found)}")

    def _switch(self, plugin: Plugin, typed: str, *, on: bool) -> None:
        self.plugins[plugin.id] = msgspec.structs.replace(plugin, enabled=on)
        self.events.publish("enable" if on else "disable", plugin.id, typed)

    async def remove(self, name: str, *, force: bool) -> None:
        plugin = self.find(name)
        self._unused(plugin, force=force)
        if plugin.enabled and not force:
            raise WrongStateError(f"plugin {plugin.name} is enabled")
        del self.plugins[plugin.id]
        self.events.publish("remove", plugin.id, name)

    async def login(self, credentials: Credentials) -> str:
        if credentials.password != "right":
            raise LoginRefusedError(f"{credentials.server_address}: unauthorized: incorrect username or password")
        return "token-of-identity"

    async def disk_usage(self) -> dict[str, int]:
        return {"plugins": len(self.plugins), "layers": 1000 * len(self.plugins)}

    async def leases(self, name: str) -> list[PluginLease]:
        return self.in_use.get(self.find(name).id, [])

    async def acquire(
        self, name: str, *, holder: str, purpose: str, seconds: float | None, capability: str
    ) -> PluginLease:
        plugin = self.find(name)
        check_text("Holder", holder)
        check_text("Purpose", purpose)
        if not plugin.enabled:
            raise WrongStateError(f"plugin {plugin.name} found but disabled")
        provided = plugin.config.interface.capabilities
        if capability and not any(c.fits(Capability.wanted(capability)) for c in provided):
            raise RefusedError(f'plugin does not provide "{capability}" capability')
        others = [lease for lease in await self.leases(name) if (lease.holder, lease.purpose) != (holder, purpose)]
        count = 1 + sum(lease.count for lease in await self.leases(name) if lease not in others)
        expires = None if seconds is None else 1 + int(seconds * 1e9)
        lease = PluginLease(holder=holder, purpose=purpose, count=count, since_ns=1, expires_ns=expires)
        self.in_use[plugin.id] = [*others, lease]
        return lease

    async def finish(self, name: str, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        return await work()

    async def release(self, name: str, *, holder: str, purpose: str | None, everything: bool) -> int:
        plugin, found = self.find(name), await self.leases(name)
        mine = [lease for lease in found if lease.holder == holder and purpose in {None, lease.purpose}]
        left = [] if everything else [msgspec.structs.replace(lease, count=lease.count - 1) for lease in mine[:1]]
        left = [lease for lease in left if lease.count] + ([] if everything else mine[1:])
        self.in_use[plugin.id] = [*(lease for lease in found if lease not in mine), *left]
        return sum(lease.count for lease in left)

    async def mounts(self) -> list[Mount]:
        return [Mount(f"/plugins/{plugin.id}", plugin.name) for plugin in self.plugins.values() if plugin.enabled]

    async def collect(self, *, dry_run: bool) -> Report:
        return Report([Digest.of(b"dry" if dry_run else b"gone")], 7)

    def enabled_network_drivers(self) -> list[str]:
        return [
            plugin.name
            for plugin in self.plugins.values()
            if plugin.enabled and any(c.name == "networkdriver" for c in plugin.config.interface.capabilities)
        ]

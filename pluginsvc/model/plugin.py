"""What a plugin is on the wire: its config, its settings and itself (REF §2).

Fields stand in the order Moby emits them: alphabetical, ``rootfs`` last.
A list that may be ``null`` on the wire is ``None`` here.
"""

from __future__ import annotations

import re
from typing import Any, Self

import msgspec

from pluginsvc.errors import InvalidParameter
from pluginsvc.model.digest import Digest

_WANTED = re.compile(r"(?:([a-z0-9.-]+)\.)?([a-z0-9_-]+)(?:/([0-9][a-z0-9]*(?:\.[a-z0-9]+)*))?")


class InvalidCapability(InvalidParameter):
    """Nobody can provide this."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(
            f"invalid capability {text[:200]!r}: expected one like volumedriver or docker.volumedriver/1.0"
        )


class Capability(msgspec.Struct, frozen=True, order=True):
    """An interface type, ``prefix.capability/version`` (REF §2)."""

    prefix: str
    name: str
    version: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split at the first slash, then at the last dot before it; any part may be empty."""
        left, _, version = text.partition("/")
        prefix, _, name = left.rpartition(".")
        return cls(prefix, name, version)

    @classmethod
    def wanted(cls, text: str) -> Self:
        """Read what somebody looks for: a name in any case, ``docker.`` before it and ``/VERSION`` after it optional.

        A version begins with a digit: what comes after the name in a URL and does not is another endpoint. A plugin
        may say another one of itself, and is then found without.

        Raises:
            InvalidCapability: it is no such thing.
        """
        found = _WANTED.fullmatch(text.lower())
        if found is None:
            raise InvalidCapability(text)
        return cls(found[1] or "docker", found[2], found[3] or "")

    def fits(self, wanted: Capability) -> bool:
        """Tell whether this is what is ``wanted``: any version where that names none, else exactly that (REF 7.44)."""
        same = (self.prefix.lower(), self.name.lower()) == (wanted.prefix, wanted.name)
        return same and wanted.version in {"", self.version}

    def __str__(self) -> str:
        """Both separators are always shown: ``volumedriver`` becomes ``.volumedriver/``."""
        return f"{self.prefix}.{self.name}/{self.version}"


class Args(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The plugin's arguments as a whole."""

    description: str = ""
    name: str = ""
    settable: list[str] | None = None
    value: list[str] | None = None


class Env(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One environment variable; a null value means "no default"."""

    description: str = ""
    name: str = ""
    settable: list[str] | None = None
    value: str | None = None


class Interface(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """Where the plugin listens and what it provides."""

    protocol_scheme: str | msgspec.UnsetType = msgspec.UNSET
    socket: str = ""
    types: list[str] | None = None

    @property
    def capabilities(self) -> list[Capability]:
        """The types, parsed."""
        return [Capability.parse(text) for text in self.types or ()]


class Device(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A host device the plugin asks for; a null path means "to be set"."""

    description: str = ""
    name: str = ""
    path: str | None = None
    settable: list[str] | None = None


class Linux(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What the plugin wants of the kernel."""

    allow_all_devices: bool = False
    capabilities: list[str] | None = None
    devices: list[Device] | None = None


class Mount(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A mount; a null source means "to be set", an empty one is a value."""

    description: str = ""
    destination: str = ""
    name: str = ""
    options: list[str] | None = None
    settable: list[str] | None = None
    source: str | None = None
    type: str = ""


class Network(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The network the plugin wants: ``host``, ``none``, ``bridge`` or nothing."""

    type: str = ""


class User(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The user asked for; root all the same, as upstream (REF 7.18), unless the option ``config-user`` is set."""

    gid: int = msgspec.field(default=0, name="GID")
    uid: int = msgspec.field(default=0, name="UID")


class RootFS(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The layers' diff IDs; in plugins of others often the compressed digests (REF §0.8), so never verified."""

    diff_ids: list[str] = []
    type: str = ""


class PluginConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """``config.json`` of a plugin, and the config blob of its image."""

    args: Args = Args()
    description: str = ""
    docker_version: str | msgspec.UnsetType = msgspec.UNSET
    documentation: str = ""
    entrypoint: list[str] | None = None
    env: list[Env] | None = None
    interface: Interface = Interface()
    ipc_host: bool = False
    linux: Linux = Linux()
    mounts: list[Mount] | None = None
    network: Network = Network()
    pid_host: bool = False
    propagated_mount: str = ""
    user: User = User()
    work_dir: str = ""
    rootfs: RootFS | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="rootfs")


class PluginSettings(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What the operator may change; lists, never null (REF §2)."""

    args: list[str] = []
    devices: list[Device] = []
    env: list[str] = []
    mounts: list[Mount] = []

    @classmethod
    def defaults(cls, config: PluginConfig) -> Self:
        """Return the settings a new plugin starts with (REF 3.4)."""
        return cls(
            args=list(config.args.value or ()),
            devices=list(config.linux.devices or ()),
            env=[f"{env.name}={env.value}" for env in config.env or () if env.value is not None],
            mounts=list(config.mounts or ()),
        )


class Plugin(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A plugin as the Engine API shows it."""

    config: PluginConfig
    enabled: bool
    id: str
    name: str
    plugin_reference: str | msgspec.UnsetType = msgspec.UNSET
    settings: PluginSettings


class PluginRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known for good of one plugin; one row of the database.

    Attributes:
        id: 64 hex digits.
        name: familiar local name with tag.
        reference: ``PluginReference`` of the wire.
        enabled: the *desired* state (design D2); the actual one is a ``model.lifecycle.Status``.
        config: digest of the config blob.
        manifest: digest of the manifest blob.
        blobs: every digest the plugin needs, manifest and config included; the roots of collection.
        settings: what the operator set.
        generation: number of the directory that holds the rootfs (design D14).
        source: repository it was pulled from, ``host/path``; empty for a created one.
        timeout: seconds for calls to the plugin, from ``enable``; 0 means none.
        options: those of the operator's that differ from the daemon's, by name (``model.options``).
        unsynced_boot: boot ID under which the rootfs was written, until it is known to be on disk; then empty
            (design D15).
    """

    id: str
    name: str
    reference: str = ""
    enabled: bool = False
    config: Digest
    manifest: Digest
    blobs: list[Digest]
    settings: PluginSettings = PluginSettings()
    generation: int = 1
    source: str = ""
    timeout: int = 0
    options: dict[str, Any] = {}
    unsynced_boot: str = ""

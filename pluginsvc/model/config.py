"""Reading ``config.json``: keys folded, nulls normalised, every wrong field reported at once (REF §2, 7.5).

Go matches keys without regard to case and takes null for "nothing"; both are put right here and nowhere else.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec

from pluginsvc.errors import InvalidParameter
from pluginsvc.model.plugin import Mount, PluginConfig, RootFS

MAX_SOCKET_NAME = 64
"""Longest socket name accepted, in bytes; sockets are reached through a directory descriptor (design §6)."""

_LINUX_CAPABILITY = re.compile(r"CAP_[A-Z0-9_]+")
_SETTABLE = {"args": ("value",), "env": ("value",), "mounts": ("source",), "devices": ("path",)}


class InvalidPluginConfig(InvalidParameter):
    """A plugin's config is not usable; lists every wrong field with its path."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("failed to parse config: " + "; ".join(problems))


def parse_config(raw: bytes) -> PluginConfig:
    """Decode and validate a plugin config.

    Args:
        raw: JSON as a plugin's author wrote it, or a config blob.

    Raises:
        InvalidPluginConfig: not JSON, fields of the wrong type, or values that can never work.
    """
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidPluginConfig([str(exc)]) from exc
    if not isinstance(document, dict):
        raise InvalidPluginConfig(["the document is not a JSON object"])
    folded = fold_keys(document, PluginConfig)
    problems = list(_type_problems(folded, PluginConfig, ""))
    if problems:
        raise InvalidPluginConfig(problems)
    config = _normalised(msgspec.convert(folded, PluginConfig))
    problems = list(_value_problems(config))
    if problems:
        raise InvalidPluginConfig(problems)
    return config


def _normalised(config: PluginConfig) -> PluginConfig:
    """Write types with both separators and leave out empty members that Moby leaves out (REF §2)."""
    interface = msgspec.structs.replace(
        config.interface,
        protocol_scheme=config.interface.protocol_scheme or msgspec.UNSET,
        types=None if config.interface.types is None else [str(found) for found in config.interface.capabilities],
    )
    return msgspec.structs.replace(config, interface=interface, docker_version=config.docker_version or msgspec.UNSET)


def fold_keys(value: Any, kind: Any) -> Any:
    """Give every key of ``value`` the spelling that ``kind`` has for it, and drop nulls.

    Unknown keys are dropped; of several spellings of one key the last wins, as in Go.
    """
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = _fields(kind)
        folded: dict[str, Any] = {}
        for key, member in value.items():
            found = fields.get(key.lower())
            if found is not None and member is not None:
                folded[found[0]] = fold_keys(member, found[1])
        return folded
    if isinstance(value, list) and typing.get_origin(kind) is list:
        (item,) = typing.get_args(kind)
        return [fold_keys(member, item) for member in value]
    return value


@cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, tuple[str, Any]]:
    """Lower-cased wire name → (wire name, type without ``None`` and ``UNSET``)."""
    hints = typing.get_type_hints(kind)
    return {
        field.encode_name.lower(): (field.encode_name, _core(hints[field.name]))
        for field in msgspec.structs.fields(kind)
    }


def _core(hint: Any) -> Any:
    options = [o for o in typing.get_args(hint) if o not in {type(None), msgspec.UnsetType}]
    return options[0] if len(options) == 1 and typing.get_origin(hint) is not list else hint


def _type_problems(value: Any, kind: Any, path: str) -> Iterable[str]:
    """Yield one sentence for each field whose type is wrong."""
    where = path or "config"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if not isinstance(value, dict):
            yield f"{where}: expected an object, got {_json_name(value)}"
            return
        by_name = dict(_fields(kind).values())
        for name, member in value.items():
            yield from _type_problems(member, by_name[name], f"{path}.{name}" if path else name)
    elif typing.get_origin(kind) is list:
        if not isinstance(value, list):
            yield f"{where}: expected a list, got {_json_name(value)}"
            return
        for number, member in enumerate(value):
            yield from _type_problems(member, typing.get_args(kind)[0], f"{path}[{number}]")
    elif kind is int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
            yield f"{where}: expected an unsigned 32-bit number, got {_json_name(value)}"
    elif not isinstance(value, kind):
        yield f"{where}: expected a {'boolean' if kind is bool else 'string'}, got {_json_name(value)}"


def _json_name(value: Any) -> str:
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


def _value_problems(config: PluginConfig) -> Iterable[str]:
    """Yield one sentence for each value that can never work (REF 7.5, 7.17, 7.47)."""
    yield from _interface_problems(config)
    for number, word in enumerate(config.entrypoint or ()):
        if "\0" in word or (number == 0 and not word):
            yield f"Entrypoint[{number}]: not a usable word"
    yield from _path_problem("WorkDir", config.work_dir)
    yield from _path_problem("PropagatedMount", config.propagated_mount)
    for number, env in enumerate(config.env or ()):
        if not env.name or "=" in env.name or "\0" in env.name + (env.value or ""):
            yield f"Env[{number}].Name: {env.name!r} is not a usable variable name"
    for number, mount in enumerate(config.mounts or ()):
        yield from _mount_problems(f"Mounts[{number}]", mount)
    for number, device in enumerate(config.linux.devices or ()):
        if device.path is None and "path" not in (device.settable or ()):
            yield f"Linux.Devices[{number}].Path: is null and not settable, so it can never be given"
        elif device.path and not device.path.startswith("/"):
            yield f"Linux.Devices[{number}].Path: {device.path!r} is not an absolute path"
    for number, name in enumerate(config.linux.capabilities or ()):
        if not _LINUX_CAPABILITY.fullmatch(name):
            yield f"Linux.Capabilities[{number}]: {name!r} is not a capability name such as CAP_SYS_ADMIN"
    groups: dict[str, list[Any]] = {
        "Env": config.env or [],
        "Mounts": config.mounts or [],
        "Linux.Devices": config.linux.devices or [],
    }
    yield from _settable_problems("Args", config.args.settable, _SETTABLE["args"])
    for label, items in groups.items():
        seen: set[str] = set()
        for number, item in enumerate(items):
            if item.name and item.name in seen:
                yield f"{label}[{number}].Name: {item.name!r} is used twice"
            seen.add(item.name)
            allowed = _SETTABLE[label.rpartition(".")[2].lower()]
            yield from _settable_problems(f"{label}[{number}]", item.settable, allowed)


def _interface_problems(config: PluginConfig) -> Iterable[str]:
    socket = config.interface.socket
    if "/" in socket or "\0" in socket or socket in {".", ".."} or len(socket.encode()) > MAX_SOCKET_NAME:
        yield f"Interface.Socket: {socket[:80]!r} must be a plain file name of at most {MAX_SOCKET_NAME} bytes"
    for number, capability in enumerate(config.interface.capabilities):
        if not capability.name:
            yield f"Interface.Types[{number}]: names no capability, expected one like docker.volumedriver/1.0"


def _path_problem(where: str, path: str, *, required: bool = False) -> Iterable[str]:
    if (path or required) and (not path.startswith("/") or "\0" in path or ".." in path.split("/")):
        yield f"{where}: {path!r} is not an absolute path without '..'"


def _mount_problems(where: str, mount: Mount) -> Iterable[str]:
    yield from _path_problem(f"{where}.Destination", mount.destination, required=True)
    if "\0" in (mount.source or "") + mount.type:
        yield f"{where}: holds a NUL byte"


def _settable_problems(where: str, settable: list[str] | None, allowed: tuple[str, ...]) -> Iterable[str]:
    for name in settable or ():
        if name not in allowed:
            yield f"{where}.Settable: {name!r} cannot be set here, only {' and '.join(map(repr, allowed))} can"


def with_layer(config: PluginConfig, diff_id: str) -> bytes:
    """Encode the config of a created plugin with its one layer's diff ID (REF 3.2)."""
    return msgspec.json.encode(msgspec.structs.replace(config, rootfs=RootFS(type="layers", diff_ids=[str(diff_id)])))

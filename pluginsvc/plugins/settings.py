"""``docker plugin set`` and what an upgrade does to settings; pure (REF 3.7, 3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from pluginsvc.errors import InvalidParameter
from pluginsvc.model.plugin import PluginConfig, PluginSettings


class InvalidSetting(InvalidParameter):
    """A setting cannot be made; the texts are Docker's."""

    def __init__(self, argument: str, message: str) -> None:
        self.argument = argument
        super().__init__(message)


def apply_settings(config: PluginConfig, settings: PluginSettings, arguments: Sequence[str]) -> PluginSettings:
    """Return ``settings`` with every argument applied, or raise and apply none (REF 7.49).

    Args:
        config: says what may be set.
        settings: the present ones.
        arguments: ``name[.field][=value]`` each.

    Raises:
        InvalidSetting: wrong grammar, nothing by that name, not settable, or nothing that a program can be given.
    """
    for argument in arguments:
        settings = _apply(config, settings, argument)
    return settings


def _apply(config: PluginConfig, settings: PluginSettings, argument: str) -> PluginSettings:
    if "\0" in argument:
        raise InvalidSetting(argument, "a setting cannot hold a NUL byte")
    left, _, value = argument.partition("=")
    name, dot, field = left.rpartition(".")
    if not dot:
        name, field = left, ""
    if not name:
        raise InvalidSetting(argument, "invalid format, must be <name>[.<field>][=<value>]")
    shown = left
    for env in config.env or ():
        if env.name == name:
            _check(shown, argument, field, env.settable, "value")
            return msgspec.structs.replace(settings, env=_with_env(settings.env, name, value))
    for mount in settings.mounts:
        if mount.name == name:
            _check(shown, argument, field, mount.settable, "source")
            if mount.source is None:
                raise InvalidSetting(argument, "plugin config has no mount source")
            return msgspec.structs.replace(settings, mounts=_with(settings.mounts, name, source=value))
    for device in settings.devices:
        if device.name == name:
            _check(shown, argument, field, device.settable, "path")
            if device.path is None:
                raise InvalidSetting(argument, "plugin config has no device path")
            return msgspec.structs.replace(settings, devices=_with(settings.devices, name, path=value))
    if config.args.name == name:
        _check(shown, argument, field, config.args.settable, "value")
        return msgspec.structs.replace(settings, args=value.split(" "))
    raise InvalidSetting(argument, f'setting "{name}" not found in the plugin configuration')


def _check(shown: str, argument: str, field: str, settable: list[str] | None, only: str) -> None:
    """Check that the field asked for, or the one that is meant, may be set."""
    offered = settable or []
    if not field and len(offered) > 1:
        raise InvalidSetting(argument, "multiple fields are settable, one must be specified")
    meant = field or (offered[0] if offered else "")
    if meant not in offered or meant != only:
        raise InvalidSetting(argument, f'"{shown}" is not settable')


def _with_env(env: list[str], name: str, value: str) -> list[str]:
    entry = f"{name}={value}"
    if any(old.partition("=")[0] == name for old in env):
        return [entry if old.partition("=")[0] == name else old for old in env]
    return [*env, entry]


def _with(items: list[Any], name: str, **change: str) -> list[Any]:
    return [msgspec.structs.replace(item, **change) if item.name == name else item for item in items]


def carry_over(settings: PluginSettings, old: PluginConfig, new: PluginConfig) -> PluginSettings:
    """Return the settings after an upgrade: the new config's defaults, with what the operator had set.

    A value counts as set when it differs from the old config's default; it is kept where the new config has the
    same name and lets it be set.
    """
    before, after = PluginSettings.defaults(old), PluginSettings.defaults(new)
    had = dict(line.split("=", 1) for line in settings.env)
    defaults = dict(line.split("=", 1) for line in before.env)
    for env in new.env or ():
        if "value" in (env.settable or ()) and env.name in had and had[env.name] != defaults.get(env.name):
            after = msgspec.structs.replace(after, env=_with_env(after.env, env.name, had[env.name]))
    if settings.args != before.args and new.args.name == old.args.name and "value" in (new.args.settable or ()):
        after = msgspec.structs.replace(after, args=settings.args)
    return msgspec.structs.replace(
        after,
        mounts=_keep(after.mounts, settings.mounts, before.mounts, "source"),
        devices=_keep(after.devices, settings.devices, before.devices, "path"),
    )


def _keep(items: list[Any], current: list[Any], defaults: list[Any], field: str) -> list[Any]:
    old = {item.name: getattr(item, field) for item in defaults}
    changed = {
        item.name: getattr(item, field) for item in current if item.name and getattr(item, field) != old.get(item.name)
    }
    return [
        msgspec.structs.replace(item, **{field: changed[item.name]})
        if item.name in changed and field in (item.settable or ())
        else item
        for item in items
    ]

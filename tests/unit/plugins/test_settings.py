"""Settings: what `docker plugin set` accepts, and what an upgrade keeps."""

from __future__ import annotations

import msgspec
import pytest

from pluginsvc.model.config import parse_config
from pluginsvc.model.plugin import PluginConfig, PluginSettings
from pluginsvc.plugins.settings import InvalidSetting, apply_settings, carry_over


def config_of(**members: object) -> PluginConfig:
    return parse_config(msgspec.json.encode(members))


CONFIG = config_of(
    Env=[
        {"Name": "DEBUG", "Settable": ["value"], "Value": "0"},
        {"Name": "RO", "Value": "fixed"},
        {"Name": "UNSET", "Settable": ["value"]},
    ],
    Mounts=[
        {"Name": "pmount1", "Settable": ["source"], "Source": "/foo", "Destination": "/a", "Type": "bind"},
        {"Name": "pmount2", "Settable": ["source"], "Destination": "/b", "Type": "bind"},
    ],
    Linux={
        "Devices": [
            {"Name": "pdev1", "Path": "/dev/pdev1", "Settable": ["path"]},
            {"Name": "pdev2", "Settable": ["path"]},
        ]
    },
    Args={"Name": "args", "Settable": ["value"], "Value": ["one"]},
)
DEFAULTS = PluginSettings.defaults(CONFIG)


@pytest.mark.parametrize(
    ("argument", "env"),
    [
        ("DEBUG=1", ["DEBUG=1", "RO=fixed"]),
        ("DEBUG.value=1", ["DEBUG=1", "RO=fixed"]),
        ("DEBUG", ["DEBUG=", "RO=fixed"]),
        ("DEBUG=a=b.c", ["DEBUG=a=b.c", "RO=fixed"]),
        ("UNSET=x", ["DEBUG=0", "RO=fixed", "UNSET=x"]),
    ],
)
def test_set_env(argument: str, env: list[str]) -> None:
    """A settable variable is replaced in place, or appended when it had no value."""
    assert apply_settings(CONFIG, DEFAULTS, [argument]).env == env


@pytest.mark.parametrize(("value", "words"), [("x y  z", ["x", "y", "", "z"]), ("", [""])])
def test_set_args_splits_at_single_spaces(value: str, words: list[str]) -> None:
    """Arguments are split at each single space, as Docker does."""
    assert apply_settings(CONFIG, DEFAULTS, [f"args={value}"]).args == words


def test_set_mount_and_device() -> None:
    """A mount takes a source and a device a path; the config stays as it was."""
    changed = apply_settings(CONFIG, DEFAULTS, ["pmount1.source=bar", "pdev1=/dev/null"])
    assert changed.mounts[0].source == "bar"
    assert changed.devices[0].path == "/dev/null"
    assert CONFIG.mounts is not None
    assert CONFIG.mounts[0].source == "/foo"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("=x", "invalid format, must be <name>[.<field>][=<value>]"),
        ("", "invalid format, must be <name>[.<field>][=<value>]"),
        ("nope=1", 'setting "nope" not found in the plugin configuration'),
        ("RO=1", '"RO" is not settable'),
        ("DEBUG.foo=1", '"DEBUG.foo" is not settable'),
        ("pmount2.source=x", "plugin config has no mount source"),
        ("pdev2.path=x", "plugin config has no device path"),
    ],
)
def test_set_refusals(argument: str, message: str) -> None:
    """Each refusal has Docker's text."""
    with pytest.raises(InvalidSetting) as caught:
        apply_settings(CONFIG, DEFAULTS, [argument])
    assert str(caught.value) == message


def test_set_all_or_nothing() -> None:
    """A bad argument after a good one raises, and nothing of the good one is kept."""
    with pytest.raises(InvalidSetting):
        apply_settings(CONFIG, DEFAULTS, ["DEBUG=1", "nope=1"])
    assert DEFAULTS.env == ["DEBUG=0", "RO=fixed"]


def test_upgrade_keeps_what_was_set_and_still_applies() -> None:
    """An upgrade keeps changed settings, takes new defaults for the rest, and drops what is gone."""
    changed = apply_settings(CONFIG, DEFAULTS, ["DEBUG=1", "pmount1=/mine", "args=a b", "pdev1=/dev/null"])
    new = config_of(
        Env=[
            {"Name": "DEBUG", "Settable": ["value"], "Value": "7"},
            {"Name": "RO", "Value": "newer"},
            {"Name": "EXTRA", "Value": "1"},
        ],
        Mounts=[{"Name": "pmount1", "Settable": ["source"], "Source": "/new", "Destination": "/c", "Type": "bind"}],
        Args={"Name": "args", "Settable": ["value"], "Value": ["two"]},
    )
    kept = carry_over(changed, CONFIG, new)
    assert kept.env == ["DEBUG=1", "RO=newer", "EXTRA=1"]
    assert [(m.source, m.destination) for m in kept.mounts] == [("/mine", "/c")]
    assert kept.args == ["a", "b"]
    assert kept.devices == []


def test_upgrade_takes_new_defaults_for_what_was_never_set() -> None:
    """What the operator left alone follows the new config."""
    new = config_of(Env=[{"Name": "DEBUG", "Settable": ["value"], "Value": "7"}])
    assert carry_over(DEFAULTS, CONFIG, new).env == ["DEBUG=7"]


def test_upgrade_does_not_keep_what_may_no_longer_be_set() -> None:
    """A value the operator set is dropped where the new config does not let it be set."""
    changed = apply_settings(CONFIG, DEFAULTS, ["DEBUG=1"])
    new = config_of(Env=[{"Name": "DEBUG", "Value": "7"}])
    assert carry_over(changed, CONFIG, new).env == ["DEBUG=7"]


def test_set_with_several_settable_fields() -> None:
    """Where several fields may be set one must be named, and only the one that the kind has can be."""
    mount = CONFIG.mounts[0] if CONFIG.mounts else None
    assert mount is not None
    # no config that is checked says so: Docker never checked those it once stored
    many = msgspec.structs.replace(DEFAULTS, mounts=[msgspec.structs.replace(mount, settable=["source", "type"])])
    for argument, message in (
        ("pmount1=x", "multiple fields are settable, one must be specified"),
        ("pmount1.type=x", '"pmount1.type" is not settable'),
    ):
        with pytest.raises(InvalidSetting) as caught:
            apply_settings(CONFIG, many, [argument])
        assert str(caught.value) == message
    assert apply_settings(CONFIG, many, ["pmount1.source=x"]).mounts[0].source == "x"

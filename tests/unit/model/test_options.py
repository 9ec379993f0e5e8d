"""Options of plugins."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.model.options import InvalidOptions, Options, changed

NAMES = Options.__struct_encode_fields__
EVERY = {
    "restart": "on-failure:3",
    "burst": 5,
    "start-timeout": 20.5,
    "probe": "VolumeDriver.Capabilities",
    "probe-interval": 1.0,
    "probe-timeout": 0.5,
    "probe-failures": 1,
    "memory": 256 << 20,
    "pids": 200,
    "cpu-weight": 50,
    "seccomp": "/etc/pluginsvc/seccomp.json",
    "no-new-privileges": True,
    "read-only": True,
    "config-user": True,
}


def test_defaults_ask_for_nothing_that_docker_does_not_do() -> None:
    """Without a word of the operator there is no limit and no confinement."""
    options = Options()
    assert (options.memory, options.pids, options.cpu_weight, options.seccomp) == (0, 0, 0, "")
    assert not any((options.no_new_privileges, options.read_only, options.config_user))


def test_every_option_can_be_changed() -> None:
    """Each option can be set by its kebab-case name, and comes back as it was set."""
    assert set(EVERY) == set(NAMES)
    assert changed({}, EVERY) == EVERY
    assert msgspec.to_builtins(Options().with_own(EVERY)) == EVERY


@given(st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)))
def test_own_options_win_and_can_be_taken_away(before: set[str], given_up: set[str], default: set[str]) -> None:
    """A plugin's own value wins over the daemon's until it is taken away, and no other value moves."""
    daemon = Options().with_own({name: EVERY[name] for name in default})
    own = changed({name: EVERY[name] for name in before}, dict.fromkeys(given_up))
    assert set(own) == before - given_up
    found = msgspec.to_builtins(daemon.with_own(own))
    plain = msgspec.to_builtins(Options())
    assert found == {name: (EVERY if name in default or name in own else plain)[name] for name in NAMES}


def test_own_value_may_be_the_plain_default() -> None:
    """A plugin can be freed of a limit that the daemon has for all."""
    daemon = Options(memory=64 << 20, read_only=True)
    own = changed({}, {"memory": 0, "read-only": False})
    assert own == {"memory": 0, "read-only": False}
    assert daemon.with_own(own) == Options()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("restart", ["no", "always", "on-failure", "on-failure:1", "on-failure:999999"]),
        ("start-timeout", [0.0, 0.5, 86_400.0]),
        ("probe", ["auto", "none", "Plugin.Activate"]),
        ("memory", [0, 6 << 20, 1 << 62]),
        ("pids", [0, 1, 4_194_304]),
        ("cpu-weight", [0, 1, 10_000]),
        ("seccomp", ["", "/p", "/a b/ö.json"]),
    ],
)
def test_limits_of_values_belong_to_them(name: str, values: list[Any]) -> None:
    """The smallest and the largest values are taken."""
    for value in values:
        assert changed({}, {name: value}) == {name: value}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("restart", ["", "never", "on-failure:0", "on-failure:", "always\n", "xalways", 1]),
        ("burst", [0, 1_000_001, "5"]),
        ("start-timeout", [-1, 86_401]),
        ("probe", ["", "Activate", "a.b.c", "../x.y", "auto\n"]),
        ("probe-interval", [0, -0.5]),
        ("probe-timeout", [0]),
        ("probe-failures", [0]),
        ("memory", [-1, 1, (6 << 20) - 1, "256m", 1.5, 1 << 63]),
        ("pids", [-1, 4_194_305]),
        ("cpu-weight", [-1, 10_001]),
        ("seccomp", ["profile.json", "/p\n", "/a\0b", "/" + "a" * 4096]),
        ("no-new-privileges", [1, "true"]),
        ("read-only", ["yes"]),
        ("config-user", [0]),
    ],
)
def test_other_values_are_refused_by_name(name: str, values: list[Any]) -> None:
    """What an option cannot be is refused with its name, and the old options stay as they are."""
    own: dict[str, Any] = {"pids": 5} if name != "pids" else {"burst": 5}
    before = dict(own)
    for value in values:
        with pytest.raises(InvalidOptions, match=rf"invalid options: .*{name}"):
            changed(own, {name: value})
    assert own == before


def test_unknown_options_are_refused() -> None:
    """A name that is none is refused with those that there are, even when it is to be taken away."""
    for change in ({"memori": 1}, {"no_new_privileges": True}, {"memori": None}):
        with pytest.raises(InvalidOptions, match=r"'(memori|no_new_privileges)' is none of restart, .*config-user"):
            changed({}, change)


def test_configuration_tells_what_is_wrong() -> None:
    """The daemon's own options are checked in the same way."""
    with pytest.raises(msgspec.ValidationError, match="memory: 1000 bytes are too few"):
        msgspec.toml.decode("memory = 1000", type=Options)
    with pytest.raises(msgspec.ValidationError, match="unknown field `cpu`"):
        msgspec.toml.decode("cpu = 1", type=Options)

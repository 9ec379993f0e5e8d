"""Capability strings and the settings a plugin starts with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.model.plugin import Args, Capability, Device, Env, Linux, Mount, PluginConfig, PluginSettings


@pytest.mark.parametrize(
    ("text", "parts", "shown"),
    [
        ("docker.volumedriver/1.0", ("docker", "volumedriver", "1.0"), "docker.volumedriver/1.0"),
        ("volumedriver", ("", "volumedriver", ""), ".volumedriver/"),
        ("a.b.c/d/e", ("a.b", "c", "d/e"), "a.b.c/d/e"),
        ("docker.authz/", ("docker", "authz", ""), "docker.authz/"),
        (".x/1", ("", "x", "1"), ".x/1"),
        ("/1.0", ("", "", "1.0"), "./1.0"),
        ("", ("", "", ""), "./"),
    ],
)
def test_capability_strings(text: str, parts: tuple[str, str, str], shown: str) -> None:
    """A type is cut at its first slash and at the last dot before it, and shown with both separators."""
    found = Capability.parse(text)
    assert (found.prefix, found.name, found.version) == parts
    assert str(found) == shown


@given(
    st.text().filter(lambda text: "/" not in text),
    st.text().filter(lambda text: "/" not in text and "." not in text),
    st.text(),
)
def test_capability_round_trip(prefix: str, name: str, version: str) -> None:
    """Any prefix without a slash, name without slash and dot, and version come back from their text."""
    found = Capability(prefix, name, version)
    assert Capability.parse(str(found)) == found


def test_default_settings() -> None:
    """A new plugin's settings are copies of its config; only variables with a value appear, an empty one too."""
    mount, device = Mount(name="m", source="/a"), Device(name="d", path=None)
    config = PluginConfig(
        args=Args(value=["a", ""]),
        env=[Env(name="A", value="1"), Env(name="B"), Env(name="C", value="")],
        mounts=[mount],
        linux=Linux(devices=[device]),
    )
    assert PluginSettings.defaults(config) == PluginSettings(
        args=["a", ""], devices=[device], env=["A=1", "C="], mounts=[mount]
    )
    assert PluginSettings.defaults(PluginConfig()) == PluginSettings(args=[], devices=[], env=[], mounts=[])

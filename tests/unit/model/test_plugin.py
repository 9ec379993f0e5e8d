"""Capability strings and the settings a plugin starts with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.model.plugin import (
    Args,
    Capability,
    Device,
    Env,
    InvalidCapability,
    Linux,
    Mount,
    PluginConfig,
    PluginSettings,
)


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


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("volumedriver", ("docker", "volumedriver", "")),
        ("VolumeDriver", ("docker", "volumedriver", "")),
        ("volumedriver/1.0", ("docker", "volumedriver", "1.0")),
        ("docker.volumedriver/1.0", ("docker", "volumedriver", "1.0")),
        ("Docker.VolumeDriver/2.0", ("docker", "volumedriver", "2.0")),
        ("org.example.my_driver-2/1", ("org.example", "my_driver-2", "1")),
    ],
)
def test_wanted(text: str, parts: tuple[str, str, str]) -> None:
    """What is looked for is a name in any case, Docker's unless it says whose, of any version unless it says which."""
    found = Capability.wanted(text)
    assert (found.prefix, found.name, found.version) == parts


@pytest.mark.parametrize(
    "text",
    [
        *["", "/", "/1.0", "docker./1.0", "a/", "a/b/c", "a b", "docker.authz/1.0\n", "é", ".x", "a.é"],
        *["a/.", "a/..", "a/1.", "a/.1", "a/1..0", "a/v1", "a/watch", "a/lookup"],
    ],
)
def test_wanted_refuses(text: str) -> None:
    """What nobody can provide is refused, and shown."""
    with pytest.raises(InvalidCapability) as caught:
        Capability.wanted(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("provided", "wanted", "fits"),
    [
        ("docker.volumedriver/1.0", "VolumeDriver", True),
        ("docker.volumedriver/2.0", "volumedriver", True),
        ("Docker.VolumeDriver/1.0", "docker.volumedriver/1.0", True),
        ("docker.volumedriver/2.0", "volumedriver/1.0", False),
        ("docker.volumedriver/", "volumedriver/1.0", False),
        ("docker.volumedriver/1.0.1", "volumedriver/1.0", False),
        ("docker.networkdriver/1.0", "volumedriver", False),
        ("other.volumedriver/1.0", "volumedriver", False),
        ("other.volumedriver/1.0", "other.volumedriver", True),
        ("volumedriver", "volumedriver", False),
        ("docker.volumedriver/v1", "volumedriver", True),
    ],
)
def test_fits(provided: str, wanted: str, fits: bool) -> None:  # noqa: FBT001 - a column of the table above
    """Prefix and name have to be the same in any case, and the version exactly where one is asked for (REF 7.44)."""
    assert Capability.parse(provided).fits(Capability.wanted(wanted)) is fits


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

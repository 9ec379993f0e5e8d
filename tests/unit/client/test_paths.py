"""Paths made of what somebody has typed."""

import pytest

from pluginsvc.client.paths import InvalidName, capability_path, native_path, plugin_path
from pluginsvc.model.plugin import InvalidCapability


@pytest.mark.parametrize("name", ["", "/", "a//b", "../x", "a/../b", "a/.", "a/"])
def test_names_that_would_change_the_path(name: str) -> None:
    """A name that a path would swallow is refused."""
    with pytest.raises(InvalidName):
        plugin_path(name, "enable")


def test_names_are_quoted() -> None:
    """Whatever else is in a name stays in the name."""
    assert plugin_path("host:5000/a/b:1@sha256:00") == "/plugins/host:5000/a/b:1@sha256:00"
    assert plugin_path("a?force=1#x y%2F\n", "json") == "/plugins/a%3Fforce%3D1%23x%20y%252F%0A/json"
    assert native_path("a/b", "leases") == "/pluginsvc/v1/plugins/a/b/leases"


@pytest.mark.parametrize("text", ["", "a b", "..", "a/..", "a/.", "a/b/c", "../plugins"])
def test_capabilities_that_would_change_the_path(text: str) -> None:
    """What nobody can provide is refused, with all that a path would swallow."""
    with pytest.raises(InvalidCapability):
        capability_path(text, "watch")


def test_capabilities() -> None:
    """A capability stands in the path as it was typed, with its version."""
    assert capability_path("VolumeDriver") == "/pluginsvc/v1/capabilities/VolumeDriver"
    assert capability_path("docker.authz/1.0", "watch") == "/pluginsvc/v1/capabilities/docker.authz/1.0/watch"

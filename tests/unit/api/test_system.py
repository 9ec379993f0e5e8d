"""What the daemon tells of itself."""

from pathlib import Path

from packaging.version import Version

from pluginsvc.api.system import SystemFacts, registry_config


def test_registry_config() -> None:
    """Networks and hosts are kept apart, loopback is always insecure, mirrors end in a slash."""
    found = registry_config(["10.0.0.0/8", "a.test:5000"], ["https://m.test", "https://n.test/"])
    assert found["InsecureRegistryCIDRs"] == ["10.0.0.0/8", "::1/128", "127.0.0.0/8"]
    assert found["Mirrors"] == ["https://m.test/", "https://n.test/"]
    assert found["IndexConfigs"]["docker.io"]["Mirrors"] == found["Mirrors"]
    assert found["IndexConfigs"]["docker.io"]["Secure"]
    assert not found["IndexConfigs"]["a.test:5000"]["Secure"]


def test_engine_version_is_no_pre_release() -> None:
    """Clients that compare versions take ours for the Engine with the same API, not for something before it."""
    version = Version(SystemFacts(id="i", name="n", root=Path("/"), version="0.1.0").engine_version)
    assert version.release == (27, 5, 1)
    assert not version.is_prerelease
    assert version >= Version("27.5.1")

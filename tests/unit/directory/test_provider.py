"""Where on the host a plugin's paths are, and how long calls to it may take (REF 3.10, 7.46)."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pluginsvc.directory.provider import Provider, Scope
from pluginsvc.directory.rpc import Client, PluginUnreachable
from pluginsvc.model.plugin import Capability
from tests.unit.directory.peers import Clock, answer, endless, plugin

ROOTFS, OUT = Path("/var/p/rootfs"), Path("/var/p/propagated-mount")


@pytest.mark.parametrize(
    ("mount", "path", "expected"),
    [
        ("/mnt/vol", "/mnt/vol", OUT),
        ("/mnt/vol", "/mnt/vol/", OUT),
        ("/mnt/vol", "/mnt/vol/a/b", OUT / "a/b"),
        ("/mnt/vol", "/mnt/volumes", ROOTFS / "mnt/volumes"),
        ("/mnt/vol", "/mnt/volumes/a", ROOTFS / "mnt/volumes/a"),
        ("/mnt/vol", "/mnt", ROOTFS / "mnt"),
        ("/mnt/vol", "/data/mnt/vol", ROOTFS / "data/mnt/vol"),
        ("/mnt/vol", "/mnt/vol/../vol2", ROOTFS / "mnt/vol2"),
        ("/mnt/vol", "/data/../mnt/vol/a", OUT / "a"),
        ("/mnt/vol", "/mnt/vol/../../../../etc/shadow", ROOTFS / "etc/shadow"),
        ("/mnt/vol", "/mnt/vol/a/../../vol/b", OUT / "b"),
        ("/mnt/vol", "//mnt//vol//a", OUT / "a"),
        ("/mnt/vol", "///mnt/vol/./a", OUT / "a"),
        ("/mnt/vol", "mnt/vol/a", OUT / "a"),
        ("/mnt/vol", "a", ROOTFS / "a"),
        ("/mnt/vol", "/", ROOTFS),
        ("/mnt/vol", "/..", ROOTFS),
        ("/mnt/vol/", "/mnt/vol/a", OUT / "a"),
        ("//mnt/./vol", "/mnt/vol/a", OUT / "a"),
        ("mnt/vol", "/mnt/vol/a", OUT / "a"),
        ("/", "/", OUT),
        ("/", "/a", OUT / "a"),
        ("/", "//a/../../b", OUT / "b"),
        ("", "/mnt/vol", ROOTFS / "mnt/vol"),
        ("", "/..//../etc", ROOTFS / "etc"),
    ],
)
def test_scope(mount: str, path: str, expected: Path) -> None:
    """What is below the propagated mount, by whole components, is there on the host, and the rest in the rootfs."""
    assert Scope(ROOTFS, mount, OUT).host(path) == expected


BINDS = (("/x", Path("/srv")), ("/mnt/vol/deep", Path("/deep")), ("/x/y/", Path("/y")), ("/x", Path("/last")))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/x", Path("/last")),
        ("/x/v/../w", Path("/last/w")),
        ("/x/y/z", Path("/y/z")),
        ("/xy", ROOTFS / "xy"),
        ("/x/../y", ROOTFS / "y"),
        ("/mnt/vol/a", OUT / "a"),
        ("/mnt/vol/deep/a", Path("/deep/a")),
        ("/mnt/vol/deeper", OUT / "deeper"),
    ],
)
def test_binds(path: str, expected: Path) -> None:
    """What is below a directory of the host that was bound into the plugin is there, by the innermost, last mount."""
    assert Scope(ROOTFS, "/mnt/vol", OUT, BINDS).host(path) == expected


def test_a_bind_over_the_propagated_mount() -> None:
    """A bind at the place of the propagated mount covers it, and counts without one, too."""
    for mount in ("/mnt", ""):
        assert Scope(ROOTFS, mount, OUT, (("/mnt", Path("/srv")),)).host("/mnt/a") == Path("/srv/a")


_paths = st.lists(st.sampled_from(["", ".", "..", "...", "mnt", "vol", "volumes", "a b", "\n"])).map("/".join)


@given(mount=_paths, path=_paths | st.text())
@example(mount="/", path="//")
@example(mount="..", path="/../..")
def test_never_outside(mount: str, path: str) -> None:
    """Whatever a plugin says, the host's name of it has no ``..`` and is below the rootfs or the propagated mount."""
    found = Scope(ROOTFS, mount, OUT).host(path)
    assert ".." not in found.parts
    assert found.is_relative_to(ROOTFS) or found.is_relative_to(OUT)


@given(rest=_paths)
def test_under_the_mount(rest: str) -> None:
    """A path under the propagated mount that does not leave it is under it on the host, too."""
    below = [part for part in rest.split("/") if part not in {"", ".", ".."}]
    assert Scope(ROOTFS, "/mnt/vol", OUT).host("/mnt/vol/" + "/".join(below)) == OUT.joinpath(*below)


def provider(address: str, *, timeout: float = 0.0, scope: Scope | None = None) -> Provider:
    """Return a plugin whose calls are tried once."""
    clock = Clock()

    async def late(wait: float) -> None:
        clock.now += 100

    return Provider(
        name="p",
        plugin_id="a" * 64,
        capabilities=(Capability("docker", "volumedriver", "1.0"),),
        address=address,
        enabled=True,
        state="running",
        up=True,
        run="1",
        client=Client(address, name="p", clock=clock, sleep=late),
        timeout=timeout,
        scope=scope,
    )


@pytest.mark.anyio
@pytest.mark.parametrize(("own", "most"), [(0.1, 3600.0), (3600.0, 0.1), (0.0, 0.1)])
async def test_timeouts(own: float, most: float) -> None:
    """A call ends by the shorter of the operator's and its own time-out, and 0 from the operator is none."""
    async with plugin(endless(b"", b"", every=0.01)) as peer:
        found = provider(peer.address, timeout=own)
        with anyio.fail_after(20), pytest.raises(PluginUnreachable, match="it took too long"):
            await found.call("VolumeDriver.List", {}, timeout=most)


@pytest.mark.anyio
async def test_within_both_timeouts() -> None:
    """A plugin that answers within both gets its answer through."""
    async with plugin(answer(body=b'{"Volumes": null}')) as peer:
        assert await provider(peer.address, timeout=30).call("VolumeDriver.List", {}, timeout=60) == {"Volumes": None}


def test_what_it_provides() -> None:
    """Any version fits where none is asked for, else only that one."""
    found = provider("unix:///s")
    assert found.provides(Capability.wanted("VolumeDriver"))
    assert found.provides(Capability.wanted("docker.volumedriver/1.0"))
    assert not found.provides(Capability.wanted("volumedriver/2.0"))
    assert not found.provides(Capability.wanted("authz"))

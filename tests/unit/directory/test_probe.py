"""Whether a plugin answers."""

import os
from pathlib import Path

import anyio
import pytest

from pluginsvc.directory.probe import alive, probe_call
from pluginsvc.model.plugin import Capability
from tests.unit.directory.peers import Script, answer, bound, endless, plugin, raw

pytestmark = pytest.mark.anyio

CALL = "VolumeDriver.Capabilities"


@pytest.mark.parametrize(
    ("types", "call"),
    [
        (["docker.volumedriver/1.0"], "VolumeDriver.Capabilities"),
        (["docker.networkdriver/1.0"], "NetworkDriver.GetCapabilities"),
        (["docker.ipamdriver/1.0"], "IpamDriver.GetCapabilities"),
        (["docker.logdriver/2.0"], "LogDriver.Capabilities"),
        (["docker.authz/1.0", "docker.logdriver/1.0"], "LogDriver.Capabilities"),
        (["docker.authz/1.0"], None),
        (["docker.metricscollector/1.0"], None),
        (["docker.graphdriver/1.0"], None),
        (["other.volumedriver/1.0", "volumedriver"], None),
        ([], None),
    ],
)
def test_call_of_a_type(types: list[str], call: str | None) -> None:
    """The types whose capabilities can be asked for are asked for those, and no other type is sent anything."""
    assert probe_call([Capability.parse(text) for text in types]) == call


@pytest.mark.parametrize(
    "script",
    [
        answer(),
        answer("404 Not Found", b"404 page not found\n"),
        answer("500 Oops", b""),
        answer("200 OK", b"no JSON"),
        endless(b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 65536),
    ],
)
async def test_any_answer_is_alive(tmp_path: Path, script: Script) -> None:
    """A plugin that answers at all is alive, whatever it says, and is asked once."""
    async with plugin(script, tmp_path / "s") as peer:
        assert await alive(tmp_path / "s", CALL, timeout=5) == ""
    (head, body), = peer.seen  # fmt: skip
    assert head.startswith(f"POST /{CALL} HTTP/1.1\r\n")
    assert body == b"{}"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (raw(b""), "it closed the connection"),
        (raw(b"nonsense\r\n\r\n"), "no HTTP"),
        (endless(b"", b"", every=0.01), "it took too long"),
        (endless(b"HTTP/1.1 200 OK\r\nX: ", b"a", every=0.01), "it took too long"),
    ],
)
async def test_no_answer_is_not(tmp_path: Path, script: Script, reason: str) -> None:
    """A plugin that closes, babbles, is silent or never ends a header is not alive, and is asked once."""
    async with plugin(script, tmp_path / "s") as peer:
        assert await alive(tmp_path / "s", CALL, timeout=0.1) == reason
    assert len(peer.seen) == 1


async def test_nobody_there(tmp_path: Path) -> None:
    """A socket that is missing, that nobody listens on, or that is a link to another one is not alive."""
    async with plugin(answer(), tmp_path / "host") as host:
        (tmp_path / "link").symlink_to(tmp_path / "host")
        with bound(tmp_path / "deaf"):
            assert await alive(tmp_path / "none", CALL, timeout=5) == "No such file or directory"
            assert await alive(tmp_path / "deaf", CALL, timeout=5) == "Connection refused"
            assert await alive(tmp_path / "link", CALL, timeout=5) == "Socket operation on non-socket"
    assert host.seen == []


async def test_many_probes_leave_nothing(tmp_path: Path) -> None:
    """Probes of many plugins at once leave no descriptor behind, answered or not."""

    async def probes(times: int) -> int:
        good, mute = tmp_path / f"good{times}", tmp_path / f"mute{times}"
        async with (
            plugin(answer("404 Not Found"), good),
            plugin(endless(b"", b"", every=0.01), mute),
            anyio.create_task_group() as group,
        ):
            for _ in range(times):
                group.start_soon(lambda: alive(good, CALL, timeout=5))
                group.start_soon(lambda: alive(mute, CALL, timeout=0.1))
        await anyio.wait_all_tasks_blocked()
        return len(os.listdir("/proc/self/fd"))

    # the first time the loop and the threads make descriptors for themselves
    assert await probes(1) == await probes(50)

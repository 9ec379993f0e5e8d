"""Plugins' output on its way through conmon, the log files and the daemon's log."""

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
import structlog.testing

from pluginsvc.runtime.executor import LOG_ROOM, Exit
from tests.system.probe import Bench
from tests.system.test_executor import bench as _bench
from tests.system.test_executor import running, serving

pytestmark = [pytest.mark.anyio, pytest.mark.root]
bench = _bench


@pytest.fixture
def logged() -> Iterator[list[dict[str, object]]]:
    """Give what the daemon logs."""
    with structlog.testing.capture_logs() as found:
        yield found  # type: ignore[misc]  # structlog says MutableMapping, and gives dicts


def lines(logged: list[dict[str, object]]) -> list[object]:
    return [entry["line"] for entry in logged if entry["event"] == "plugin.output"]


async def until(logged: list[dict[str, object]], last: str) -> None:
    """Return when the daemon has logged that line."""
    with anyio.fail_after(20):
        while last not in lines(logged)[-1:]:  # noqa: ASYNC110 - a log cannot notify us
            await anyio.sleep(0.02)


async def test_rotation_loses_nothing(bench: Bench, logged: list[dict[str, object]]) -> None:
    """A log is renamed when it is large, the oldest is dropped, and not one line is missing or doubled on the way."""
    executor = bench.executor(log_size=8 * 1024)
    launch = bench.launch("count", "200")
    async with serving(executor):
        instance = await running(executor, launch)
        for number in range(1, 7):
            os.kill(instance.pid, signal.SIGUSR1)
            await until(logged, f"line {200 * number - 1}")
        folder = bench.logs / launch.plugin_id
        assert sorted(path.name for path in folder.iterdir()) == ["plugin.log", "plugin.log.1", "plugin.log.2"]
        assert (await instance.tail(3))[-1] == "line 1199"
        assert len(await instance.tail(150)) == 150
        await instance.stop()
        await executor.cleanup(launch.plugin_id)
    assert lines(logged) == ["begins", *(f"line {number}" for number in range(1200)), "ends"]
    assert {entry["log_level"] for entry in logged} == {"info"}
    assert {entry["plugin"] for entry in logged} == {launch.plugin_id}
    await executor.remove_logs(launch.plugin_id)
    assert not folder.exists()


async def test_restart_of_the_daemon_doubles_nothing(bench: Bench, logged: list[dict[str, object]]) -> None:
    """What one daemon has passed on the next does not repeat, and what was printed between the two is not lost."""
    launch = bench.launch("count", "10")
    async with serving(first := bench.executor()):
        instance = await running(first, launch)
        os.kill(instance.pid, signal.SIGUSR1)
        await until(logged, "line 9")
    os.kill(instance.pid, signal.SIGUSR1)
    async with serving(second := bench.executor()):
        found = await second.attach(launch.plugin_id)
        assert found is not None
        await until(logged, "line 19")
        await found.stop()
        await second.cleanup(launch.plugin_id)
    assert lines(logged) == ["begins", *(f"line {number}" for number in range(20)), "ends"]


async def test_rotation_cut_short_by_a_crash_is_finished(bench: Bench, logged: list[dict[str, object]]) -> None:
    """When the daemon died after it renamed the log, the next one has the monitor open a new one."""
    launch = bench.launch("count", "10")
    first = bench.executor()
    instance = await running(first, launch)
    log = bench.logs / launch.plugin_id / "plugin.log"
    log.rename(log.with_name("plugin.log.1"))
    async with serving(second := bench.executor()):
        found = await second.attach(launch.plugin_id)
        assert found is not None
        with anyio.fail_after(5):
            while not log.exists():  # noqa: ASYNC110 - nor can a file
                await anyio.sleep(0.02)
        os.kill(instance.pid, signal.SIGUSR1)
        await until(logged, "line 9")
        await found.stop()
        await second.cleanup(launch.plugin_id)
    assert "line 9" in log.read_text()
    assert lines(logged) == ["begins", *(f"line {number}" for number in range(10)), "ends"]


async def test_stderr_is_no_error_and_starts_share_a_log(bench: Bench, logged: list[dict[str, object]]) -> None:
    """What goes to stderr is logged as its text says; a second start appends, and its tail begins with itself."""
    executor = bench.executor()
    launch = bench.launch("exit", "0")
    for _ in range(2):
        instance = await executor.start(launch)
        assert await instance.wait() == Exit(0, None, False)
        assert len(await instance.tail()) == 2
        await executor.cleanup(launch.plugin_id)
    assert [(e["log_level"], e["line"]) for e in logged if e.get("stream") == "stderr"] == [
        ("info", "on stderr \\x1b[31m")
    ] * 2
    assert len((bench.logs / launch.plugin_id / "plugin.log").read_text().splitlines()) == 4


async def test_flood_hurts_nobody(bench: Bench, logged: list[dict[str, object]]) -> None:
    """A plugin that prints without end costs neither much memory nor the loop, and its files stay bounded."""
    size = 1 << 20
    executor = bench.executor(log_size=size)
    launch = bench.launch("flood")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest = 0.0
    async with serving(executor):
        instance = await running(executor, launch)
        end = anyio.current_time() + 2
        while (began := anyio.current_time()) < end:
            await anyio.sleep(0.01)
            slowest = max(slowest, anyio.current_time() - began)
        used = sum(path.stat().st_size for path in Path(bench.logs / launch.plugin_id).iterdir())
        with anyio.fail_after(5):
            assert await instance.stop() == Exit(0, None, False)
        await executor.cleanup(launch.plugin_id)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024
    assert slowest < 0.5
    assert used <= 3 * (size + LOG_ROOM)
    assert any(entry["event"] == "plugin.output_skipped" for entry in logged)
    assert len(logged) < 20_000


async def test_flood_with_no_daemon_is_bounded(bench: Bench) -> None:
    """While nobody is there to rotate, the monitor alone keeps the log from growing without end."""
    size = 1 << 18
    launch = bench.launch("flood")
    log = bench.logs / launch.plugin_id / "plugin.log"
    async with serving(first := bench.executor(log_size=size)):
        await running(first, launch)
    beginnings: set[bytes] = set()
    largest = 0
    with anyio.fail_after(20):
        while len(beginnings) < 5:
            with log.open("rb") as file:
                # an inode is used again
                beginnings.add(file.read(40))
                largest = max(largest, os.fstat(file.fileno()).st_size)
            await anyio.sleep(0.01)
    assert largest <= size + LOG_ROOM
    async with serving(second := bench.executor(log_size=size)):
        found = await second.attach(launch.plugin_id)
        assert found is not None
        await found.stop()
        await second.cleanup(launch.plugin_id)
    assert sum(path.stat().st_size for path in log.parent.iterdir()) <= 3 * (size + LOG_ROOM)


async def test_colon_in_the_path_of_the_logs(bench: Bench) -> None:
    """A directory whose name conmon would cut at a colon holds logs all the same."""
    bench.logs = bench.root / "with:colon"
    executor = bench.executor()
    launch = bench.launch("exit", "0")
    instance = await executor.start(launch)
    await instance.wait()
    assert len(await instance.tail()) == 2
    await executor.cleanup(launch.plugin_id)

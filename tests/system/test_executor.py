"""The executor against the real runc and conmon."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from pluginsvc.model.plugin import Device, Linux, Mount
from pluginsvc.rootfs.mounts import make_shared, unmount_below
from pluginsvc.runtime.executor import Executor, Exit, Instance, Launch
from pluginsvc.runtime.instance import PluginDied, StartTimeout
from pluginsvc.runtime.oci import RuntimeFailed
from pluginsvc.runtime.spec import UnusableSettings
from tests.support.parts import PROJECT
from tests.system.probe import SOCKET, Bench, cgroups

pytestmark = [pytest.mark.anyio, pytest.mark.root]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Give a bench, and find nothing left of it afterwards: no file on RUN, process, cgroup or mount."""
    with tempfile.TemporaryDirectory(prefix="pluginsvc-test-") as root:
        found = Bench(Path(root))
        yield found
        if left := found.leftovers():
            # a failed test must not leave plugins running
            anyio.run(found.clear)
        assert left == []


@asynccontextmanager
async def serving(executor: Executor) -> AsyncIterator[Executor]:
    """Run the executor's service for the length of a block."""
    async with anyio.create_task_group() as group:
        await group.start(executor.serve)
        yield executor
        group.cancel_scope.cancel()


@pytest.fixture
async def executor(bench: Bench) -> AsyncIterator[Executor]:
    """Give an executor that serves."""
    async with serving(bench.executor()) as found:
        yield found


async def running(executor: Executor, launch: Launch) -> Instance:
    """Start a plugin and wait until it listens."""
    instance = await executor.start(launch)
    await instance.ready(SOCKET, 10)
    return instance


async def test_lives_from_start_to_cleanup(bench: Bench, executor: Executor) -> None:
    """A plugin starts, its socket accepts, TERM ends it, cleanup leaves nothing, and all of it may be done again."""
    launch = bench.launch("listen")
    seen = set()
    for _ in range(2):
        instance = await running(executor, launch)
        seen.add(instance.container_id)
        assert await executor.instances() == [launch.plugin_id]
        assert Path(f"/proc/{instance.pid}/cmdline").read_bytes() == b"/probe\0listen\0"
        assert await instance.stop() == Exit(0, None, False)
        assert await instance.tail() == ["begins", "ends"]
        await executor.cleanup(launch.plugin_id)
        assert await executor.instances() == []
    assert len(seen) == 2


async def test_foreign_names_are_left_alone(bench: Bench, executor: Executor) -> None:
    """A directory on RUN that is no plugin's is nobody's business, and no reason to fail."""
    for place in ("plugins", "instances"):
        (bench.run / place / "lost+found").mkdir(parents=True)
    assert await executor.instances() == []
    for place in ("plugins", "instances"):
        (bench.run / place / "lost+found").rmdir()


async def test_stop_after_the_end_and_cleanup_of_nothing(bench: Bench, executor: Executor) -> None:
    """Stopping what has ended, stopping twice at once and clearing what is not there are all fine."""
    launch = bench.launch("listen")
    instance = await running(executor, launch)
    statuses: list[Exit | None] = []

    async def stop() -> None:
        statuses.append(await instance.stop())

    async def wait() -> None:
        statuses.append(await instance.wait())

    async with anyio.create_task_group() as group:
        for work in (wait, stop, stop, wait):
            group.start_soon(work)
    statuses.append(await instance.stop())
    assert statuses == [Exit(0, None, False)] * 5
    await executor.cleanup(launch.plugin_id)
    await executor.cleanup(launch.plugin_id)
    await executor.cleanup("0" * 64)


async def test_kills_what_ignores_term(bench: Bench, executor: Executor) -> None:
    """A plugin that ignores TERM is killed when its grace is over."""
    launch = bench.launch("stubborn")
    instance = await running(executor, launch)
    assert await instance.stop(grace=0.2) == Exit(137, 9, False)
    await executor.cleanup(launch.plugin_id)


async def test_stop_takes_the_whole_family(bench: Bench, executor: Executor) -> None:
    """With the host's process IDs children outlive the first process, and are killed by the cgroup."""
    launch = bench.launch("family", pid_host=True)
    instance = await running(executor, launch)
    (any_group, *_) = cgroups(launch.plugin_id)
    assert len((any_group / "cgroup.procs").read_text().split()) == 3
    assert await instance.stop() == Exit(0, None, False)
    assert cgroups(launch.plugin_id) == []
    await executor.cleanup(launch.plugin_id)


async def test_death_before_ready_tells_code_and_output(bench: Bench, executor: Executor) -> None:
    """A plugin that dies ends the wait at once, and the error gives its code and its last lines, made harmless."""
    launch = bench.launch("exit", "7")
    instance = await executor.start(launch)
    began = time.monotonic()
    with pytest.raises(PluginDied, match="exited with code 7 before") as caught:
        await instance.ready(SOCKET, 30)
    assert time.monotonic() - began < 5
    assert sorted(caught.value.output) == ["on stderr \\x1b[31m", "on stdout"]
    assert await instance.wait() == Exit(7, None, False)
    await executor.cleanup(launch.plugin_id)


async def test_mute_plugin_times_out(bench: Bench, executor: Executor) -> None:
    """A plugin that lives but makes no socket fails with Moby's words when its time is over."""
    launch = bench.launch("mute")
    instance = await executor.start(launch)
    with pytest.raises(StartTimeout, match=r"dial unix /run/docker/plugins/p.sock: connect: no such file or directory"):
        await instance.ready(SOCKET, 0.3)
    await executor.cleanup(launch.plugin_id)


async def test_late_listener_is_waited_for(bench: Bench, executor: Executor) -> None:
    """Between bind and listen the socket refuses; that is no failure."""
    launch = bench.launch("late", "300")
    await running(executor, launch)
    await executor.cleanup(launch.plugin_id)


async def test_missing_program_tells_what_the_runtime_says(bench: Bench) -> None:
    """An entrypoint that is not in the rootfs fails the start with the runtime's words, and nothing stays."""
    with pytest.raises(RuntimeFailed, match=r"cannot start plugin probe:latest: runc create: .*/nope.*no such file"):
        await bench.executor().start(bench.launch(entrypoint=("/nope",)))
    assert bench.leftovers() == []


@pytest.mark.parametrize("missing", [{"runtime": "no-such-runtime"}, {"conmon": "/no/such/conmon"}])
async def test_missing_tool_is_named(bench: Bench, missing: dict[str, str]) -> None:
    """Without runtime or monitor the start fails and says which is missing."""
    with pytest.raises(RuntimeFailed, match=f"{next(iter(missing.values()))} is not there"):
        await bench.executor(**missing).start(bench.launch("listen"))  # type: ignore[arg-type]  # names two strings
    assert bench.leftovers() == []


async def test_missing_bind_source_is_named(bench: Bench) -> None:
    """A bind mount of a host path that is not there fails with the plugin, the mount and the path."""
    mount = Mount(name="data", source="/no/such/place", destination="/sub", type="bind", options=["rbind"])
    with pytest.raises(UnusableSettings, match=r"'data': its source /no/such/place .*probe:latest"):
        await bench.executor().start(bench.launch("listen", mounts=[mount]))
    assert bench.leftovers() == []


async def test_plugin_sees_what_was_asked_for(bench: Bench, executor: Executor) -> None:
    """Words, variables, mounts, devices and capabilities reach the plugin, and no more than those."""
    (bench.root / "sub").mkdir()
    (bench.root / "sub" / "file").touch()
    mounts = [
        Mount(name="s", source=str(bench.root / "sub"), destination="/sub", type="bind", options=["rbind", "ro"]),
        Mount(name="t", destination="/mine", type="tmpfs"),
        Mount(name="e", source="", destination="/empty", type="bind", options=["rbind"]),
    ]
    launch = bench.launch(
        "show",
        "two words",
        mounts=mounts,
        devices=[Device(name="d", path="/dev/loop-control")],
        env=["A=b"],
        linux=Linux(capabilities=["CAP_SYS_ADMIN"]),
        network="host",
    )
    instance = await executor.start(launch)
    assert await instance.wait() == Exit(0, None, False)
    shown = await instance.tail(100)
    await executor.cleanup(launch.plugin_id)
    assert "arg two words" in shown
    assert [line for line in shown if line.startswith("env ")][1:] == ["env A=b", "env HOME=/"]
    assert "cwd /" in shown
    assert {"device /dev/null opens", "device /dev/loop-control opens"} <= set(shown)
    assert "device /dev/fuse No such file or directory" in shown
    assert {"path /sub directory 1", "path /mine directory 0", "path /empty directory 0"} <= set(shown)
    assert f"path /etc/hosts file {Path('/etc/hosts').stat().st_size}" in shown
    caps = {line.split(":\t")[0]: int(line.split(":\t")[1], 16) for line in shown if line.startswith("Cap")}
    defaults = 0xA80425FB
    assert caps["CapEff"] == caps["CapBnd"] == defaults | 1 << 21
    assert caps["CapInh"] == 1 << 21


async def test_propagated_mount_reaches_the_host(bench: Bench, executor: Executor) -> None:
    """What a plugin mounts below its propagated mount is mounted on the host, and goes with the plugin."""
    shared = bench.root / "propagated-mount"
    (shared / "volume").mkdir(parents=True)
    await to_thread.run_sync(make_shared, shared)
    try:
        launch = bench.launch(
            "mount",
            "/mnt/state/volume",
            linux=Linux(capabilities=["CAP_SYS_ADMIN"]),
            propagated=("/mnt/state", shared),
        )
        instance = await running(executor, launch)
        assert os.path.ismount(shared / "volume")
        await instance.stop()
        await executor.cleanup(launch.plugin_id)
    finally:
        await to_thread.run_sync(lambda: unmount_below(shared, lazy=True))


async def test_mount_in_the_sockets_directory_is_undone(bench: Bench, executor: Executor) -> None:
    """A mount that a plugin makes beside its socket, and that reaches the host, does not survive the cleanup."""
    bench.run.mkdir()
    await to_thread.run_sync(make_shared, bench.run)
    shared = bench.root / "propagated-mount"
    shared.mkdir()
    await to_thread.run_sync(make_shared, shared)
    try:
        launch = bench.launch(
            "mount",
            "/run/docker/plugins/disk",
            linux=Linux(capabilities=["CAP_SYS_ADMIN"]),
            propagated=("/mnt/state", shared),
        )
        await running(executor, launch)
        assert os.path.ismount(bench.run / "plugins" / launch.plugin_id / "disk")
        await executor.cleanup(launch.plugin_id)
    finally:
        await to_thread.run_sync(lambda: unmount_below(bench.run, lazy=True))
        await to_thread.run_sync(lambda: unmount_below(shared, lazy=True))


async def test_lost_monitor_ends_the_plugin(bench: Bench, executor: Executor) -> None:
    """When somebody kills the monitor, the plugin is killed as well and its end is told, though not its code."""
    launch = bench.launch("listen")
    instance = await running(executor, launch)
    monitor = int((bench.run / "instances" / launch.plugin_id / "monitor.pid").read_text())
    os.kill(monitor, signal.SIGKILL)
    with anyio.fail_after(10):
        assert await instance.wait() == Exit(255, None, False)
    await executor.cleanup(launch.plugin_id)


OTHER_DAEMON = """
import json, sys
from pathlib import Path
import anyio
from pluginsvc import log
from tests.system.probe import SOCKET, Bench

async def main():
    log.configure()
    bench = Bench(Path(sys.argv[1]))
    launch = bench.launch(*sys.argv[3:], plugin_id=sys.argv[2])
    executor = bench.executor()
    async with anyio.create_task_group() as group:
        await group.start(executor.serve)
        instance = await executor.start(launch)
        await instance.ready(SOCKET, 10)
        print(json.dumps([instance.container_id, instance.pid, instance.started_ns]), flush=True)

anyio.run(main)
"""


def start_in_a_daemon_that_is_killed(bench: Bench, launch: Launch) -> list[object]:
    """Start the launch in another process, kill that process with KILL, and return what it knew of the instance."""
    words = [sys.executable, "-c", OTHER_DAEMON, str(bench.root), launch.plugin_id, *launch.settings.args]
    with subprocess.Popen(words, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        line = daemon.stdout.readline()
        daemon.kill()
        daemon.wait(10)
    known: list[object] = json.loads(line)
    return known


async def test_plugin_outlives_its_daemon(bench: Bench, executor: Executor) -> None:
    """A plugin goes on when the daemon that started it is killed, and the next one finds it and sees it end."""
    launch = bench.launch("listen")
    known = await to_thread.run_sync(start_in_a_daemon_that_is_killed, bench, launch)
    assert await executor.instances() == [launch.plugin_id]
    instance = await executor.attach(launch.plugin_id)
    assert instance is not None
    assert [instance.container_id, instance.pid, instance.started_ns] == known
    await instance.ready(SOCKET, 5)
    assert await instance.stop() == Exit(0, None, False)
    await executor.cleanup(launch.plugin_id)
    assert await executor.attach(launch.plugin_id) is None


async def test_death_while_nobody_watched_is_seen(bench: Bench, executor: Executor) -> None:
    """A plugin that dies while no daemon runs is found with its exit code by the next one."""
    launch = bench.launch("listen")
    _, pid, _ = await to_thread.run_sync(start_in_a_daemon_that_is_killed, bench, launch)
    assert isinstance(pid, int)
    fd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    await anyio.wait_readable(fd)
    os.close(fd)
    instance = await executor.attach(launch.plugin_id)
    assert instance is not None
    with anyio.fail_after(5):
        assert await instance.wait() == Exit(137, 9, False)
    await executor.cleanup(launch.plugin_id)


async def test_reused_numbers_fool_nobody(bench: Bench, executor: Executor) -> None:
    """When the recorded numbers belong to strangers by now, those are neither waited for nor signalled."""
    launch = bench.launch("listen")
    instance = await running(executor, launch)
    await instance.stop()
    stranger = await to_thread.run_sync(lambda: subprocess.Popen(["sleep", "60"]))
    try:
        file = bench.run / "instances" / launch.plugin_id / "instance.json"
        record = json.loads(file.read_bytes())
        for role in ("monitor", "container"):
            record[role]["pid"] = stranger.pid
        file.write_text(json.dumps(record))
        found = await bench.executor().attach(launch.plugin_id)
        assert found is not None
        with anyio.fail_after(5):
            assert await found.wait() == Exit(0, None, False)
        await found.stop()
        await executor.cleanup(launch.plugin_id)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_record_of_another_boot_is_void(bench: Bench, executor: Executor) -> None:
    """What an earlier boot left on RUN is cleared away without touching any process."""
    launch = bench.launch("listen")
    instance = await running(executor, launch)
    await instance.stop()
    file = bench.run / "instances" / launch.plugin_id / "instance.json"
    record = json.loads(file.read_bytes())
    record["boot"] = "another"
    record["monitor"]["pid"] = os.getpid()
    file.write_text(json.dumps(record))
    assert await executor.attach(launch.plugin_id) is None


def wrapper(bench: Bench, case: str, action: str) -> str:
    """Return a runtime that is runc, except that `action` (shell) comes first in one operation."""
    path = bench.root / f"runtime-{case}"
    path.write_text(f"""#!/bin/sh
case " $* " in *" {case} "*) {action} ;; esac
exec {shutil.which("runc")} "$@"
""")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("case", ["create", "start"])
@pytest.mark.parametrize("action", ["echo no luck today >&2; exit 3", "kill -9 $$"])
async def test_failing_runtime_leaves_nothing(bench: Bench, case: str, action: str) -> None:
    """A runtime that fails or is killed in create or in start fails the start, and nothing stays."""
    with pytest.raises(RuntimeFailed, match="no luck today" if "luck" in action else case):
        await bench.executor(runtime=wrapper(bench, case, action)).start(bench.launch("listen"))
    assert bench.leftovers() == []


async def test_runtime_that_hangs_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that hangs in create is ended, with the monitor that waits for it."""
    monkeypatch.setattr("pluginsvc.runtime.executor._COMMAND_SECONDS", 0.5)
    with pytest.raises(RuntimeFailed, match=r"did not create it within 0\.5 s"):
        await bench.executor(runtime=wrapper(bench, "create", "exec sleep 60")).start(bench.launch("listen"))
    assert bench.leftovers() == []


async def test_container_is_cleared_though_delete_fails(bench: Bench) -> None:
    """A runtime that cannot delete does not keep a plugin's processes alive."""
    executor = bench.executor(runtime=wrapper(bench, "delete", "exit 1"))
    launch = bench.launch("stubborn")
    await running(executor, launch)
    await executor.cleanup(launch.plugin_id)


@pytest.mark.parametrize("case", ["create", "start"])
async def test_cancelled_in_the_runtime_leaves_nothing(bench: Bench, case: str) -> None:
    """A start that is cancelled while the runtime is at work is undone."""
    reached = bench.root / "reached"
    os.mkfifo(reached)
    executor = bench.executor(runtime=wrapper(bench, case, f"echo > {reached}; sleep 0.2"))
    async with anyio.create_task_group() as group:
        group.start_soon(executor.start, bench.launch("listen"))
        await to_thread.run_sync(reached.read_bytes)
        group.cancel_scope.cancel()
    assert bench.leftovers() == []


async def test_cancelled_at_any_moment_leaves_nothing(bench: Bench, executor: Executor) -> None:
    """A start that is cancelled after 0, 5, 10 … ms is undone, whatever it was doing."""
    launch = bench.launch("listen")
    for step in range(16):
        with anyio.move_on_after(0.005 * step) as scope:
            await executor.start(launch)
        if not scope.cancelled_caught:
            await executor.cleanup(launch.plugin_id)
        assert bench.leftovers() == [], f"after {5 * step} ms"


async def test_daemon_killed_in_the_middle_of_a_start(bench: Bench, executor: Executor) -> None:
    """What a daemon leaves that is killed while the runtime creates is found and cleared by the next."""
    reached = bench.root / "reached"
    os.mkfifo(reached)
    launch = bench.launch("listen")
    runtime = wrapper(bench, "create", f"echo > {reached}; sleep 0.3")
    code = OTHER_DAEMON.replace("bench.executor()", f"bench.executor(runtime={runtime!r})")
    words = [sys.executable, "-c", code, str(bench.root), launch.plugin_id, "listen"]
    daemon = await to_thread.run_sync(lambda: subprocess.Popen(words, cwd=PROJECT))
    await to_thread.run_sync(reached.read_bytes)
    daemon.kill()
    daemon.wait(10)
    assert await executor.instances() == [launch.plugin_id]
    assert await executor.attach(launch.plugin_id) is None
    assert bench.leftovers() == []


async def test_many_at_once(bench: Bench, executor: Executor) -> None:
    """Starts, stops and clean-ups of many plugins at once do not disturb each other."""

    async def one() -> None:
        launch = bench.launch("listen")
        instance = await running(executor, launch)
        assert await instance.stop() == Exit(0, None, False)
        await executor.cleanup(launch.plugin_id)

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(one)


async def test_two_starts_of_one_plugin_take_turns(bench: Bench, executor: Executor) -> None:
    """Two starts of one plugin at once leave one instance: the later one replaces the other."""
    launch = bench.launch("listen")
    found: list[Instance] = []

    async def one() -> None:
        found.append(await executor.start(launch))

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        group.start_soon(one)
    with anyio.fail_after(5):
        await found[0].wait()
    await found[1].ready(SOCKET, 5)
    await executor.cleanup(launch.plugin_id)


ON_PURE_V2 = """
import sys
from pathlib import Path
import anyio
from pluginsvc.model.plugin import Linux
from tests.system.probe import SOCKET, Bench, cgroups

async def main():
    bench = Bench(Path(sys.argv[1]))
    executor = bench.executor(runtime=sys.argv[2])
    # crun needs CAP_SYS_RESOURCE for any other device rules, which not every machine of ours gives
    launch = bench.launch("family", pid_host=True, linux=Linux(allow_all_devices=True))
    async with anyio.create_task_group() as group:
        await group.start(executor.serve)
        instance = await executor.start(launch)
        await instance.ready(SOCKET, 10)
        group.cancel_scope.cancel()
    (group,) = cgroups(launch.plugin_id)
    assert len((group / "cgroup.procs").read_text().split()) == 3
    assert (await instance.stop()).code == 0
    await executor.cleanup(launch.plugin_id)
    assert bench.leftovers() == []

anyio.run(main)
"""


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_works_where_cgroups_are_pure_v2(bench: Bench, runtime: str) -> None:
    """On a machine with nothing but cgroup v2 both runtimes start, stop and clear a plugin."""
    if shutil.which(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    there = "[ -e /sys/fs/cgroup/cgroup.controllers ]"
    mount = f'mount --make-rprivate / && {{ {there} || mount -t cgroup2 none /sys/fs/cgroup; }} && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", ON_PURE_V2, str(bench.root), runtime]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr

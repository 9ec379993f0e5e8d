"""Limits and confinement against the real runtimes and the real kernel."""

import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from pluginsvc.model.options import Options
from pluginsvc.model.plugin import Linux, Mount, User
from pluginsvc.rootfs.mounts import make_shared, unmount_below
from pluginsvc.runtime import cgroup
from pluginsvc.runtime.executor import Executor, Exit, Instance, Launch
from pluginsvc.runtime.instance import PluginDied
from pluginsvc.runtime.oci import RuntimeFailed
from pluginsvc.runtime.spec import UnusableSettings
from tests.system.probe import SOCKET, Bench, cgroups

pytestmark = [pytest.mark.anyio, pytest.mark.root]

LITTLE = 16 << 20


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


@pytest.fixture(params=["runc", "crun"])
async def executor(bench: Bench, request: pytest.FixtureRequest) -> AsyncIterator[Executor]:
    """Give an executor that serves, with either runtime."""
    runtime = request.param
    if shutil.which(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    if runtime == "crun" and Path("/sys/fs/cgroup/unified").exists():
        # it refuses hybrid machines whose v2 has any controller, so it is shown v1 alone
        runtime = bench.root / "crun"
        runtime.write_text("""#!/bin/sh
exec unshare --mount sh -c 'umount /sys/fs/cgroup/unified && exec crun "$@"' sh "$@"
""")
        runtime.chmod(0o755)
    found = bench.executor(runtime=str(runtime))
    async with anyio.create_task_group() as group:
        await group.start(found.serve)
        yield found
        group.cancel_scope.cancel()


@asynccontextmanager
async def running(executor: Executor, launch: Launch) -> AsyncIterator[Instance]:
    """Start a plugin, wait until it listens, and stop it and clear it away after the block."""
    instance = await executor.start(launch)
    try:
        await instance.ready(SOCKET, 10)
        yield instance
        assert await instance.stop() is not None
    finally:
        with anyio.CancelScope(shield=True):
            await executor.cleanup(launch.plugin_id)


def value(launch: Launch, *files: str) -> str:
    """Return what the first of these files of the plugin's cgroups that exists holds."""
    found = [path / file for file in files for path in cgroups(launch.plugin_id) if (path / file).exists()]
    return found[0].read_text().strip()


def status(instance: Instance) -> dict[str, str]:
    """Return what the kernel says of the plugin's first process."""
    lines = Path(f"/proc/{instance.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def profile(bench: Bench, action: str) -> Options:
    """Return options with a seccomp profile that takes `action` where directories are made."""
    path = bench.root / "profile.json"
    rules = [{"names": ["mkdir", "mkdirat"], "action": action}]
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))
    return Options(seccomp=str(path))


@pytest.mark.parametrize("witness", ["monitor", "kernel"])
async def test_memory_ends_at_its_limit(bench: Bench, executor: Executor, witness: str) -> None:
    """A plugin that eats memory to its limit is killed, and that is told, though the monitor may not have seen it."""
    launch = bench.launch("eat", options=Options(memory=LITTLE))
    instance = await executor.start(launch)
    if witness == "kernel":
        instance._place.oom = bench.root / "no-such-file"
    with pytest.raises(PluginDied, match="killed by signal 9 after the kernel ran out of memory for it") as caught:
        await instance.ready(SOCKET, 10)
    assert caught.value.exit == Exit(137, 9, True)
    assert await instance.stop() == Exit(137, 9, True)
    await executor.cleanup(launch.plugin_id)


async def test_child_that_eats_memory_dies_alone(bench: Bench, executor: Executor) -> None:
    """When the kernel kills a child for want of memory, the plugin goes on, and its end tells of it."""
    launch = bench.launch("feed", options=Options(memory=LITTLE))
    async with running(executor, launch) as instance:
        assert value(launch, "memory.limit_in_bytes", "memory.max") == str(LITTLE)
        assert await instance.running()
        assert await to_thread.run_sync(cgroup.ran_out_of_memory, f"pluginsvc-{instance.container_id}")
        assert await instance.stop() == Exit(0, None, True)
        assert await instance.tail() == ["child ended by signal 9", "begins", "ends"]


async def test_no_swap_beside_the_memory(bench: Bench, executor: Executor) -> None:
    """Memory and swap together end at the limit, where the kernel can do that."""
    launch = bench.launch("listen", options=Options(memory=LITTLE))
    if not await to_thread.run_sync(cgroup.counts_swap):
        pytest.skip("this kernel does not count swap")
    async with running(executor, launch) as instance:
        assert value(launch, "memory.memsw.limit_in_bytes", "memory.swap.max") in {str(LITTLE), "0"}
        assert await instance.stop() == Exit(0, None, False)


async def test_least_memory_is_enough_to_start(bench: Bench, executor: Executor) -> None:
    """What the options allow at the least starts a small plugin."""
    async with running(executor, bench.launch("listen", options=Options(memory=6 << 20, pids=1))) as instance:
        assert await instance.stop() == Exit(0, None, False)


async def test_pids_end_at_their_limit(bench: Bench, executor: Executor) -> None:
    """A plugin that forks has as many processes as it may, itself included, and goes on."""
    launch = bench.launch("fork", "100", options=Options(pids=20))
    async with running(executor, launch) as instance:
        assert value(launch, "pids.current") == "20"
        assert await instance.stop() == Exit(0, None, False)
        assert await instance.tail() == ["children 19", "begins", "ends"]


@pytest.mark.parametrize(("weight", "shares"), [(1, "10"), (50, "512"), (10_000, "102400")])
async def test_cpu_weight_reaches_the_kernel(bench: Bench, executor: Executor, weight: int, shares: str) -> None:
    """The weight is that of the cgroup on v2, and in proportion its shares on v1."""
    launch = bench.launch("listen", options=Options(cpu_weight=weight))
    async with running(executor, launch):
        assert value(launch, "cpu.shares", "cpu.weight") == (
            str(weight) if await to_thread.run_sync(cgroup.pure_v2) else shares
        )


async def test_seccomp_profile_bites(bench: Bench, executor: Executor) -> None:
    """A call that the profile forbids fails, and the rest works."""
    options = profile(bench, "SCMP_ACT_ERRNO")
    async with running(executor, bench.launch("try", "/x", options=options)) as instance:
        assert status(instance)["Seccomp"] == "2"
        await instance.stop()
        assert (await instance.tail())[:2] == [
            "mkdir /x: Operation not permitted",
            "mkdir /run/docker/plugins/mine: Operation not permitted",
        ]


async def test_seccomp_profile_kills(bench: Bench, executor: Executor) -> None:
    """A plugin that the profile kills has ended by SIGSYS, which is not taken for want of memory."""
    launch = bench.launch("try", "/x", options=profile(bench, "SCMP_ACT_KILL_PROCESS"))
    instance = await executor.start(launch)
    with anyio.fail_after(10):
        assert await instance.wait() == Exit(159, 31, False)
    await executor.cleanup(launch.plugin_id)


async def test_seccomp_profile_that_is_none(bench: Bench, executor: Executor) -> None:
    """A missing profile, and one that the runtime refuses, fail the start with the reason, and nothing stays."""
    with pytest.raises(UnusableSettings, match="seccomp profile /no/such: No such file"):
        await executor.start(bench.launch("listen", options=Options(seccomp="/no/such")))
    with pytest.raises(RuntimeFailed, match="SCMP_ACT_NONSENSE"):
        await executor.start(bench.launch("listen", options=profile(bench, "SCMP_ACT_NONSENSE")))
    assert bench.leftovers() == []


async def test_no_new_privileges(bench: Bench, executor: Executor) -> None:
    """The kernel's flag is set where it was asked for, without a change to what the plugin starts with."""
    seen = []
    for options in (Options(), Options(no_new_privileges=True)):
        async with running(executor, bench.launch("listen", options=options)) as instance:
            facts = status(instance)
            seen.append((facts["NoNewPrivs"], facts["CapEff"]))
    assert seen == [("0", "00000000a80425fb"), ("1", "00000000a80425fb")]


async def test_read_only_rootfs(bench: Bench, executor: Executor) -> None:
    """The rootfs cannot be written to; mounts are made where it has no directory for them, socket and volumes too."""
    shared = bench.root / "propagated-mount"
    shared.mkdir()
    await to_thread.run_sync(make_shared, shared)
    sub = Mount(name="t", destination="/deep/down", type="tmpfs")
    try:
        for path, answer in (("/x", "Read-only file system"), ("/deep/down/x", "made"), ("/mnt/state/x", "made")):
            launch = bench.launch(
                "try",
                path,
                mounts=[sub],
                linux=Linux(capabilities=["CAP_SYS_ADMIN"]),
                propagated=("/mnt/state", shared),
                options=Options(read_only=True),
            )
            async with running(executor, launch) as instance:
                await instance.stop()
                assert (await instance.tail())[:2] == [
                    f"mkdir {path}: {answer}",
                    "mkdir /run/docker/plugins/mine: made",
                ]
        assert (shared / "x").is_dir()
    finally:
        await to_thread.run_sync(lambda: unmount_below(shared, lazy=True))


@pytest.mark.parametrize(("capabilities", "held"), [([], 0), (["CAP_SYS_ADMIN"], 1 << 21)])
async def test_user_of_the_config(bench: Bench, executor: Executor, capabilities: list[str], held: int) -> None:
    """A plugin runs as the user of its config, can make its socket, and holds the capabilities its config names."""
    launch = bench.launch(
        "try",
        "/x",
        user=User(uid=1234, gid=55),
        linux=Linux(capabilities=capabilities),
        options=Options(config_user=True),
    )
    async with running(executor, launch) as instance:
        facts = status(instance)
        assert (facts["Uid"], facts["Gid"]) == ("\t".join(["1234"] * 4), "\t".join(["55"] * 4))
        assert facts["Groups"].strip() == ""
        assert {int(facts[key], 16) for key in ("CapEff", "CapPrm", "CapAmb")} == {held}
        sockets = (bench.run / "plugins" / launch.plugin_id).stat()
        assert (sockets.st_uid, sockets.st_gid, sockets.st_mode & 0o777) == (1234, 55, 0o700)
        await instance.stop()
        assert (await instance.tail())[:2] == ["mkdir /x: Permission denied", "mkdir /run/docker/plugins/mine: made"]


async def test_all_at_once(bench: Bench, executor: Executor) -> None:
    """All limits and all confinement together still let a plugin live."""
    options = profile(bench, "SCMP_ACT_ERRNO")
    everything = {"memory": LITTLE, "pids": 20, "cpu-weight": 10}
    everything |= {"no-new-privileges": True, "read-only": True, "config-user": True}
    launch = bench.launch("try", "/x", user=User(uid=1234), options=options.with_own(everything))
    async with running(executor, launch) as instance:
        facts = status(instance)
        assert (facts["NoNewPrivs"], facts["Seccomp"], facts["Uid"][:4]) == ("1", "2", "1234")
        assert await instance.stop() == Exit(0, None, False)

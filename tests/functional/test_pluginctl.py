"""pluginctl against the API."""

import json
import re
import signal
import subprocess
import sys
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from anyio.streams.buffered import BufferedByteReceiveStream
from click.testing import CliRunner, Result

from pluginsvc.api.app import make_app, serve
from pluginsvc.api.listeners import TcpListener, UnixListener
from pluginsvc.client.pluginctl import main
from tests.functional.conftest import FACTS, Ctl
from tests.support.engine import CONFIG, Engine
from tests.support.memory_manager import MemoryManager

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the folder of a plugin."""
    found = tmp_path / "plugin"
    (found / "rootfs").mkdir(parents=True)
    (found / "rootfs" / "sample").write_bytes(b"sample" * 200_000)
    (found / "config.json").write_text(json.dumps(CONFIG | {"description": "a \x1b[31msample"}))
    return found


async def test_the_whole_life(ctl: Ctl, folder: Path) -> None:
    """A plugin goes through its life with docker's words, and each command says what docker's says."""
    assert (await ctl("create", "demo", str(folder))).stdout == "demo\n"
    assert (await ctl("set", "demo", "DEBUG=1")).stdout == ""
    assert (await ctl("enable", "--timeout", "5", "demo")).stdout == "demo\n"
    refused = await ctl("rm", "demo", status=1)
    assert (refused.stdout, refused.stderr) == ("", "pluginctl: plugin demo:latest is enabled\n")
    assert (await ctl("disable", "-f", "demo")).stdout == "demo\n"
    inspected = json.loads((await ctl("inspect", "demo")).stdout)
    assert [plugin["Settings"]["Env"] for plugin in inspected] == [["DEBUG=1"]]
    pushed = (await ctl("push", "demo")).stdout.splitlines()
    assert pushed[0] == "The push refers to repository [docker.io/library/demo]"
    assert pushed[-1].startswith("latest: digest: sha256:")
    assert (await ctl("remove", "--force", "demo")).stdout == "demo\n"
    assert (await ctl("ls", "-q")).stdout == ""


async def test_ls(ctl: Ctl, folder: Path) -> None:
    """The list is a table with short harmless cells for people, whole facts as JSON lines, or IDs."""
    await ctl("create", "demo", str(folder))
    header, row = (await ctl("ls")).stdout.splitlines()
    assert header.split() == ["ID", "NAME", "DESCRIPTION", "ENABLED", "STATE"]
    facts = json.loads((await ctl("ls", "--format", "json")).stdout)
    assert facts == {
        "ID": facts["ID"],
        "Name": "demo:latest",
        "Description": "a \x1b[31msample",
        "Enabled": False,
        "State": "stopped",
        "PluginReference": "demo",
    }
    assert row.split() == [facts["ID"][:12], "demo:latest", "a", "\\u001b[31msample", "false", "stopped"]
    assert (await ctl("list", "-q", "--no-trunc")).stdout == facts["ID"] + "\n"
    assert (await ctl("ls", "-q", "-f", "enabled=true")).stdout == ""
    assert "invalid filter 'x'" in (await ctl("ls", "-f", "x=1", status=1)).stderr


async def test_several_names(ctl: Ctl, engine: Engine) -> None:
    """One name that fails does not keep the others from being served, but shows in the exit status."""
    await engine.install("a")
    await engine.install("b")
    found = await ctl("inspect", "-f", "json", "a", "nope", "b", status=1)
    assert [json.loads(line)["Name"] for line in found.stdout.splitlines()] == ["a:latest", "b:latest"]
    assert found.stderr == 'pluginctl: plugin "nope" not found\n'
    removed = await ctl("rm", "a", "../b", "b", status=1)
    assert removed.stdout == "a\nb\n"
    assert "'../b'" in removed.stderr


async def test_create_refused(ctl: Ctl, folder: Path) -> None:
    """A name that is taken is told at once, and a folder that holds no plugin before anything is sent."""
    await ctl("create", "demo", str(folder))
    again = await ctl("create", "demo", str(folder), status=1)
    assert again.stderr == "pluginctl: plugin demo:latest already exists\n"
    (folder / "config.json").unlink()
    missing = await ctl("create", "other", str(folder), status=2)
    assert "config.json" in missing.stderr


async def test_events(ctl: Ctl, engine: Engine) -> None:
    """Events are replayed from a time, or behind a number, to a time, as lines or as JSON, and filtered."""
    await engine.install("demo")
    await ctl("enable", "demo")
    identity = (await ctl("ls", "-q")).stdout.strip()
    lines = (await ctl("events", "--since", "1h", "--until", "0s")).stdout.splitlines()
    assert [line.split()[1:3] for line in lines] == [["pull", "demo:latest"], ["enable", "demo"]]
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z enable demo \({identity}…\)", lines[1])
    assert (await ctl("events", "--after", "1", "--until", "0s")).stdout.splitlines() == lines[1:]
    found = await ctl("events", "--after", "0", "--until", "0s", "--filter", "event=enable", "--format", "json")
    assert (json.loads(found.stdout)["seq"], json.loads(found.stdout)["action"]) == (2, "enable")
    refused = await ctl("events", "--filter", "label=x", status=1)
    assert "events are filtered by event and plugin" in refused.stderr


async def test_snapshot(ctl: Ctl, engine: Engine) -> None:
    """The plugins are shown first, as lines or as one document."""
    await engine.install("demo")
    identity = (await ctl("ls", "-q")).stdout.strip()
    words = ["events", "--snapshot", "--until", "0s"]
    assert (await ctl(*words)).stdout == f"plugin demo:latest ({identity}…) desired=disabled state=stopped\n"
    document = json.loads((await ctl(*words, "--format", "json")).stdout)
    assert (document["seq"], [plugin["Name"] for plugin in document["plugins"]]) == (1, ["demo:latest"])


async def test_events_over_the_end_of_the_daemon(memory: MemoryManager, tmp_path: Path) -> None:
    """When the daemon stops it waits for it, says so once, and goes on without a loss or a double until interrupted."""
    socket = tmp_path / "other.sock"
    words = ["-m", "pluginsvc.client.pluginctl", "-H", f"unix://{socket}", "events", "--after", "0", "--format", "json"]

    def daemon() -> AbstractAsyncContextManager[list[str]]:
        return serve(
            make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events),
            [UnixListener(socket)],
            grace=5,
        )

    def happen(count: int) -> None:
        for _ in range(count):
            memory.events.publish("enable", "0" * 64, "demo")

    with anyio.fail_after(20):
        async with daemon():
            process = await anyio.open_process([sys.executable, *words], stderr=subprocess.PIPE)
            assert process.stdout is not None
            assert process.stderr is not None
            out = BufferedByteReceiveStream(process.stdout)
            happen(3)
            seen = [json.loads(await out.receive_until(b"\n", 4096))["seq"] for _ in range(3)]
        happen(3)
        for _ in range(2):
            async with daemon():
                seen += [json.loads(await out.receive_until(b"\n", 4096))["seq"] for _ in range(3)]
                happen(2)
                seen += [json.loads(await out.receive_until(b"\n", 4096))["seq"] for _ in range(2)]
            happen(3)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        said = b"".join([piece async for piece in process.stderr])
        await process.aclose()
    assert seen == [*range(1, 14)]
    # once for each end of the daemon
    assert said.count(b"waiting for it to go on") == 3


async def test_events_that_end_too_early(memory: MemoryManager, tmp_path: Path) -> None:
    """A daemon that stops before the time that was asked for leaves with how to go on, and not as if all were told."""
    socket = tmp_path / "other.sock"
    words = ["events", "--until", str(int(time.time()) + 3600)]
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
    memory.events.publish("enable", "0" * 64, "demo")
    found: list[Result] = []

    async def run() -> None:
        invoke = lambda: CliRunner().invoke(main, words, env={"PLUGINSVC_HOST": f"unix://{socket}"})  # noqa: E731 - a thread's body
        found.append(await to_thread.run_sync(invoke))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group, serve(app, [UnixListener(socket)], grace=5):
            group.start_soon(run)
            while not len(app.native):  # noqa: ASYNC110 - whether it is there can only be looked at
                await anyio.sleep(0.01)
    assert found[0].exit_code == 1
    assert "ended the events, it is stopping: go on later with --after 1" in found[0].stderr


async def test_df_and_prune(ctl: Ctl, engine: Engine) -> None:
    """The room that plugins take is told, and blobs that nothing needs are removed or only named."""
    await engine.install("demo")
    assert (await ctl("df")).stdout.splitlines()[1].split() == ["Plugins", "1", "0", "1.0", "kB", "7", "bytes"]
    disk = json.loads((await ctl("df", "--format", "json")).stdout)
    assert disk == {"Type": "Plugins", "Total": 1, "Active": 0, "Size": 1000, "Reclaimable": 7}
    first, last = (await ctl("prune", "--dry-run")).stdout.splitlines()
    assert first.startswith("would delete: sha256:")
    assert last == "Reclaimable space: 7 bytes"
    pruned = json.loads((await ctl("prune", "--format", "json")).stdout)
    assert (len(pruned["Removed"]), pruned["Bytes"]) == (1, 7)


async def test_version(ctl: Ctl) -> None:
    """Both versions are told."""
    found = json.loads((await ctl("version", "--format", "json")).stdout)
    assert found["Server"]["ApiVersion"] == "1.47"
    assert found["Client"]["Version"] in (await ctl("version")).stdout


async def test_failed_push(ctl: Ctl, engine: Engine) -> None:
    """A push that never began is refused with the daemon's own words."""
    assert (await ctl("push", "nope", status=1)).stderr == 'pluginctl: plugin "nope" not found\n'


@pytest.mark.parametrize(
    "words",
    [
        ["ls", "-f", "enabled"],
        ["enable", "--timeout", "-1", "x"],
        ["enable"],
        ["rm"],
        ["set", "x"],
        ["install", "x"],
        ["events", "--since", "yesterday"],
        ["events", "--after", "-1"],
        ["events", "--after", "last"],
        ["events", "--snapshot", "--after", "3"],
        ["events", "--filter", "enable"],
        ["enable", ""],
        ["set", "x", "K=\udcff"],
        ["--host", "tcp://nowhere", "ls"],
    ],
)
async def test_usage(ctl: Ctl, words: list[str]) -> None:
    """A wrong command line ends with 2 and says what is wrong, on standard error only."""
    result = await ctl(*words, status=2)
    assert result.stdout == ""
    assert result.stderr.strip()


async def test_no_daemon(ctl: Ctl, tmp_path: Path) -> None:
    """Without a daemon every command says once where it looked and what to do."""
    result = await ctl("rm", "a", "b", status=1, host=f"unix://{tmp_path}/none.sock")
    assert result.stderr.count("cannot reach the daemon") == 1
    assert "--host" in result.stderr


async def test_over_tcp(ctl: Ctl, memory: MemoryManager) -> None:
    """A loopback port serves as well as a socket."""
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
    async with serve(app, [TcpListener("127.0.0.1", 0)], grace=2) as addresses:
        assert "1.47" in (await ctl("version", host=addresses[0])).stdout


async def test_start_up_is_light() -> None:
    """The program loads nothing that is slow and that it does not need."""
    check = (
        "import sys, pluginsvc.client.pluginctl;"
        "print(*({'aiohttp', 'asyncio', 'anyio', 'rich.console', 'structlog'} & set(sys.modules)))"
    )
    done = await anyio.run_process([sys.executable, "-c", check])
    assert done.stdout.split() == []

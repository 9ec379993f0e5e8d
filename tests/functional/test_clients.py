"""Real clients as the judge: the docker CLIs there are, and docker-py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import docker
import docker.errors
import pytest
from anyio import to_thread

from tests.support.docker_cli import DockerCLI, docker_clis
from tests.support.engine import CONFIG, Engine
from tests.support.memory_manager import MemoryManager

pytestmark = pytest.mark.anyio
PLAIN = {"entrypoint": ["/x"]}


@pytest.fixture(params=[0, 1], ids=["oldest", "newest"])
def cli(request: pytest.FixtureRequest, engine: Engine, tmp_path: Path) -> DockerCLI:
    """Give each docker CLI that this machine has."""
    found = docker_clis()
    if request.param >= len(found):
        pytest.skip("there is one docker CLI only")
    return engine.cli(tmp_path / "docker", found[request.param])


async def _py(engine: Engine, work: Callable[[docker.DockerClient], Any]) -> Any:
    """Run `work` with a docker-py client in a thread."""

    def run() -> Any:
        client = docker.DockerClient(base_url=engine.host)
        try:
            return work(client)
        finally:
            client.close()

    return await to_thread.run_sync(run)


def _folder(path: Path, config: dict[str, Any]) -> Path:
    (path / "rootfs").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


async def test_install(engine: Engine, cli: DockerCLI) -> None:
    """An install asks for consent, pulls, sets and enables."""
    remote = await engine.publish("installed", CONFIG)
    refused = await cli.run_async("plugin", "install", remote, answer="n\n")
    assert "network: [host]" in refused.stdout
    assert refused.returncode
    done = await cli.run_async("plugin", "install", "--alias", "mine", remote, "DEBUG=7", answer="y\n", check=True)
    assert "Download complete" in done.stdout
    assert f"Installed plugin {remote}" in done.stdout
    shown = json.loads((await cli.run_async("plugin", "inspect", "mine", check=True)).stdout)[0]
    assert (shown["Name"], shown["Enabled"], shown["Settings"]["Env"]) == ("mine:latest", True, ["DEBUG=7"])
    listed = await cli.run_async("plugin", "ls", "--filter", "enabled=true", check=True)
    assert "mine:latest" in listed.stdout


async def test_life(engine: Engine, cli: DockerCLI, tmp_path: Path) -> None:
    """create, ls, set, enable, disable, push, upgrade and rm all work, and say what is wrong when it is."""
    folder = _folder(tmp_path / "made", PLAIN | {"description": "made here", "env": CONFIG["env"]})
    remote = await engine.publish("cycle", PLAIN | {"description": "from afar"})
    await cli.run_async("plugin", "create", remote, str(folder), check=True)
    again = await cli.run_async("plugin", "create", remote, str(folder))
    assert "already exists" in again.stderr
    await cli.run_async("plugin", "set", remote, "DEBUG=1", check=True)
    await cli.run_async("plugin", "enable", remote, check=True)
    assert "already enabled" in (await cli.run_async("plugin", "enable", remote)).stderr
    assert "is enabled" in (await cli.run_async("plugin", "rm", remote)).stderr
    assert "before upgrading" in (await cli.run_async("plugin", "upgrade", remote)).stderr
    await cli.run_async("plugin", "disable", remote, check=True)
    await cli.run_async("plugin", "upgrade", "--grant-all-permissions", "--skip-remote-check", remote, check=True)
    assert "from afar" in (await cli.run_async("plugin", "ls", check=True)).stdout
    pushed = await cli.run_async("plugin", "push", remote, check=True)
    assert "Pushed" in pushed.stdout
    assert (await cli.run_async("plugin", "rm", "-f", remote, check=True)).stdout.strip() == remote


async def test_errors_are_plain_text(engine: Engine, cli: DockerCLI) -> None:
    """People see the message and not its JSON."""
    done = await cli.run_async("plugin", "inspect", "nope")
    # 20.10 says "No such plugin: nope", 28 shows our text
    assert "nope" in done.stderr
    assert "message" not in done.stderr
    done = await cli.run_async("plugin", "ls", "--filter", "foo=bar")
    assert done.stderr.strip() == "Error response from daemon: invalid filter 'foo'"


async def test_an_in_band_error_ends_the_install(engine: Engine, memory: MemoryManager, cli: DockerCLI) -> None:
    """An error that comes in the stream makes the CLI fail with its text."""
    remote = await engine.publish("changing", PLAIN)
    memory.held = held = anyio.Event()

    async def take_the_name() -> None:
        await memory.holding.wait()
        memory.held = None
        await engine.install("changing", PLAIN)
        held.set()

    async with anyio.create_task_group() as group:
        group.start_soon(take_the_name)
        done = await cli.run_async("plugin", "install", "--disable", remote)
    assert done.returncode
    assert "changing:latest already exists" in done.stderr


async def test_docker_inspect_finds_plugins(engine: Engine, cli: DockerCLI) -> None:
    """A plain `docker inspect` gets past all other kinds of object."""
    name = await engine.install("inspected")
    for words in (["inspect", name], ["inspect", "--type", "plugin", name]):
        assert json.loads((await cli.run_async(*words, check=True)).stdout)[0]["Name"] == name
    assert "no such object: nothing" in (await cli.run_async("inspect", "nothing")).stderr.lower()


async def test_version_info_df(engine: Engine, cli: DockerCLI) -> None:
    """The CLI prints who it talks to, without a warning."""
    assert "pluginsvc" in (await cli.run_async("version", check=True)).stdout
    done = await cli.run_async("info", check=True)
    assert "Swarm: inactive" in done.stdout
    assert "WARNING" not in done.stderr
    assert "ERROR" not in done.stdout + done.stderr
    await cli.run_async("system", "df", check=True)


async def test_other_objects(engine: Engine, cli: DockerCLI) -> None:
    """What this daemon does not do, it says."""
    done = await cli.run_async("volume", "create", "x")
    assert "is not supported: this daemon is pluginsvc" in done.stderr
    assert "page not found" in (await cli.run_async("ps")).stderr


async def test_events(engine: Engine, cli: DockerCLI) -> None:
    """The CLI shows what has happened, in order, and ends at its bound."""
    name = await engine.install("evented")
    await cli.run_async("plugin", "enable", name, check=True)
    await cli.run_async("plugin", "rm", "-f", name, check=True)
    # both bounds are cut to whole seconds by the CLI; a negative duration lies in the future
    words = ["events", "--since=1m", "--until=-2s", "--filter", f"plugin={name}", "--format", "{{.Action}}"]
    done = await cli.run_async(*words, check=True)
    assert done.stdout.split() == ["pull", "enable", "remove"]


async def test_login(engine: Engine, cli: DockerCLI) -> None:
    """`docker login` is checked by the daemon."""
    done = await cli.run_async("login", "-u", "u", "--password-stdin", "r.test", answer="wrong")
    assert "incorrect username or password" in done.stderr
    done = await cli.run_async("login", "-u", "u", "--password-stdin", "r.test", answer="right", check=True)
    assert "Login Succeeded" in done.stdout


async def test_docker_py(engine: Engine, tmp_path: Path) -> None:
    """docker-py's plugin calls work, and its errors are of the right kind."""
    remote = await engine.publish("py", CONFIG)
    folder = _folder(tmp_path / "made", PLAIN)

    def work(client: docker.DockerClient) -> None:
        assert client.ping()
        assert client.version()["ApiVersion"] == client.api.api_version == "1.47"
        assert client.info()["ID"]
        plugin = client.plugins.install(remote, "mine")
        assert plugin.name == "mine:latest"
        plugin.configure({"DEBUG": "5"})
        plugin.enable()
        plugin.reload()
        assert plugin.enabled
        assert plugin.settings["Env"] == ["DEBUG=5"]
        with pytest.raises(docker.errors.APIError, match="is enabled"):
            plugin.remove()
        plugin.disable()
        assert "errorDetail" not in str(
            list(client.api.upgrade_plugin("mine", remote, client.api.plugin_privileges(remote)))
        )
        plugin.push()
        plugin.remove(force=True)
        with pytest.raises(docker.errors.NotFound):
            client.plugins.get("mine")
        client.plugins.create("created", str(folder))
        assert [found.name for found in client.plugins.list()] == ["created:latest"]

    await _py(engine, work)


async def test_docker_py_without_privileges(engine: Engine) -> None:
    """docker-py installs a plugin that asks for nothing, under its own name (REF §0.4)."""
    remote = await engine.publish("plain", PLAIN)
    name = await _py(engine, lambda client: client.plugins.install(remote).name)
    assert name == f"{remote}:latest"


async def test_docker_py_events(engine: Engine) -> None:
    """docker-py decodes the event stream."""
    await engine.install("evented")

    assert await _py(engine, lambda client: next(client.events(since=1, decode=True))["Action"]) == "pull"
    assert await _py(engine, lambda client: list(client.events(since=0, until=2, decode=True))) == []

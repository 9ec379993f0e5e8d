"""Who provides what, over the lives of real plugins and of the daemon, as the Python client sees it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest

from pluginsvc.client.aio import Client
from pluginsvc.client.watch import Watch
from pluginsvc.errors import Conflict
from tests.support.daemon import Daemon, running_daemon
from tests.support.unruly import Plugin
from tests.support.wire import Api, pack

pytestmark = [pytest.mark.root, pytest.mark.timeout(120), pytest.mark.anyio]

VOLUME = "docker.volumedriver/1.0"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Give a daemon of its own, since it is killed."""
    with running_daemon() as found:
        yield found


@pytest.fixture
def plugins(daemon: Daemon, folder: Callable[..., Path]) -> list[Plugin]:
    """Give two enabled plugins on it."""
    found = []
    for name in ("one", "two"):
        assert Api(daemon.socket).create(name, pack(folder())).status == 204
        found.append(Plugin(daemon, name))
        found[-1].enable()
    return found


@pytest.fixture
async def client(daemon: Daemon) -> AsyncIterator[Client]:
    async with Client(daemon.host) as found:
        yield found


async def told(changes: Watch, count: int) -> list[tuple[str, str]]:
    with anyio.fail_after(60):
        found = [await anext(changes) for _ in range(count)]
    return [(change.kind, change.plugin.name) for change in found]


async def test_watch_over_two_lives(daemon: Daemon, plugins: list[Plugin], client: Client) -> None:
    """A watcher sees starts, ends and restarts; a daemon that is killed and comes back is no news, its plugins live."""
    one, two = plugins
    async with client.watch("VolumeDriver") as changes:
        assert await told(changes, 2) == [("ready", "one:latest"), ("ready", "two:latest")]
        two.signal(signal.SIGKILL)
        assert await told(changes, 2) == [("gone", "two:latest"), ("ready", "two:latest")]
        daemon.kill()
        daemon.start()
        assert one.api.act("disable", "one").status == 200
        # nothing of the two in between: they lived on
        assert await told(changes, 1) == [("gone", "one:latest")]
        one.enable()
        assert await told(changes, 1) == [("ready", "one:latest")]
        assert daemon.stop() == 0
        daemon.start()
        assert two.api.call("DELETE", "/plugins/two", {"force": "1"}).status == 200
        assert await told(changes, 1) == [("gone", "two:latest")]


async def test_plugins_that_ended_with_the_daemon(daemon: Daemon, plugins: list[Plugin], client: Client) -> None:
    """What ended while the daemon was away is told as gone, though nobody saw it go, and as ready if it is again."""
    async with client.watch(VOLUME) as changes:
        assert len(await told(changes, 2)) == 2
        plugins[1].update(restart="no")
        pids = [plugin.state()["Pid"] for plugin in plugins]
        daemon.kill()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        daemon.start()
        found = await told(changes, 3)
        assert sorted(found) == [("gone", "one:latest"), ("gone", "two:latest"), ("ready", "one:latest")]
        assert found.index(("gone", "one:latest")) < found.index(("ready", "one:latest"))


async def test_leases_keep_a_plugin(daemon: Daemon, plugins: list[Plugin], client: Client) -> None:
    """A plugin that is leased cannot be disabled, and can again once it is released; its address answers."""
    api = plugins[0].api
    async with client.leased("one", VOLUME, holder="web", purpose="volume v") as found:
        assert found.plugin.address == f"unix://{daemon.run}/plugins/{plugins[0].id}/sample.sock"
        refused = api.act("disable", "one")
        assert refused.status == 409
        assert refused.error.startswith("plugin one:latest is in use by web (volume v)")
    assert api.act("disable", "one").status == 200
    with pytest.raises(Conflict, match=r"^plugin one:latest found but disabled$"):
        await client.acquire("one", VOLUME, holder="web", purpose="volume v")
    assert await client.release("one", VOLUME, holder="web") == 0
    assert [plugin.name for plugin in await client.providers("volumedriver/1.0", legacy=False)] == ["two:latest"]
    (offer,) = [offer for offer in await client.capabilities() if offer.capability == VOLUME]
    assert "two:latest" in offer.plugins

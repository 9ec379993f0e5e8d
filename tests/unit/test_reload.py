"""Reloads: one after another, whatever happens in them, and none after the end has begun."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest
import structlog

from pluginsvc import log, wiring
from pluginsvc.config import Settings
from pluginsvc.directory.authz import Chain, Rules
from pluginsvc.registry.client import Registry
from pluginsvc.reload import Reloads
from pluginsvc.systemd import Notifier
from tests.functional.conftest import FACTS
from tests.support.memory_manager import MemoryManager

pytestmark = pytest.mark.anyio

Read = Callable[[], Settings]


class Slow(Chain):
    """Takes other rules when it is told to, or fails."""

    def __init__(self) -> None:
        super().__init__(MemoryManager().directory)
        self.began: list[Rules] = []
        self.go = anyio.Event()
        self.fails = False

    async def use(self, rules: Rules, *, wait: bool = False) -> None:
        self.began.append(rules)
        if self.fails:
            raise RuntimeError("a bug")
        await self.go.wait()


class House:
    """A daemon that is ready, as far as reloads are concerned.

    Attributes:
        reads: how often the settings were read again.
    """

    def __init__(self, manager: socket.socket) -> None:
        self._manager = manager
        self.settings = Settings()
        self.reads = 0
        self.stop = anyio.Event()
        self.reloads = Reloads(self.settings, self._read, Notifier())
        self.reloads.ready = True
        self.chain = self.reloads.chain = Slow()

    def _read(self) -> Settings:
        self.reads += 1
        return msgspec.structs.replace(self.settings, insecure_registries=(f"r{self.reads}.test",))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        registry = Registry(wiring.hosts(self.settings), user_agent="x", proxies={})
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(self.reloads.serve, registry, replace(FACTS), self.stop)
                yield
                self.stop.set()

    async def told(self) -> str:
        """Return the next word to the service manager."""
        with anyio.fail_after(5):
            return (await anyio.to_thread.run_sync(self._manager.recv, 1000)).decode().partition("\n")[0]

    def silent(self) -> bool:
        self._manager.setblocking(False)
        try:
            return not self._manager.recv(1000)
        except BlockingIOError:
            return True


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Undo what reloads set up: it writes to where a test's output goes."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(5)
        yield made


@pytest.fixture
async def house(manager: socket.socket) -> House:
    return House(manager)


async def test_one_after_another(house: House) -> None:
    """Reloads that are asked for during one are one more after it; each is told by its begin and its end."""
    async with house.serving():
        house.reloads.ask()
        assert await house.told() == "RELOADING=1"
        while not house.chain.began:  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.01)
        for _ in range(3):
            house.reloads.ask()
        house.chain.go.set()
        assert [await house.told() for _ in range(3)] == ["READY=1", "RELOADING=1", "READY=1"]
    assert house.reads == len(house.chain.began) == 2
    assert house.reloads.settings.insecure_registries == ("r2.test",)
    assert house.silent()


async def test_a_bug_ends_nothing(house: House, capfd: pytest.CaptureFixture[str]) -> None:
    """An error that nobody has thought of is logged as any other refusal; the daemon and its reloads go on."""
    log.configure()
    house.chain.fails = True
    async with house.serving():
        house.reloads.ask()
        assert [await house.told() for _ in range(2)] == ["RELOADING=1", "READY=1"]
        assert house.reloads.settings == house.settings
        house.chain.fails = False
        house.chain.go.set()
        house.reloads.ask()
        assert [await house.told() for _ in range(2)] == ["RELOADING=1", "READY=1"]
    assert house.reloads.settings != house.settings
    shown = "".join(capfd.readouterr())
    assert "daemon.reload_refused" in shown
    assert "RuntimeError: a bug" in shown


async def test_the_end_does_not_wait(house: House) -> None:
    """A reload under way when the daemon is told to stop is given up, changes nothing, and is not called done."""
    async with house.serving():
        house.reloads.ask()
        assert await house.told() == "RELOADING=1"
    assert house.reloads.settings == house.settings
    assert house.silent()

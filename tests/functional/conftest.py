"""Fixtures of the functional tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from pluginsvc import log
from pluginsvc.api.app import make_app, serve
from pluginsvc.api.listeners import UnixListener
from pluginsvc.api.system import SystemFacts
from tests.support.engine import Engine
from tests.support.memory_manager import MemoryManager

FACTS = SystemFacts(
    id="11111111-2222-3333-4444-555555555555",
    name="host",
    root=Path("/var/lib/pluginsvc"),
    version="0.1.0",
    git_commit="0123456",
    build_time="2026-11-22T00:00:00Z",
    insecure=["10.0.0.0/8", "registry.test:5000"],
    mirrors=["https://mirror.test"],
)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Log as the daemon does, to standard error."""
    log.configure(level="debug")
    structlog.configure(cache_logger_on_first_use=False)
    yield
    structlog.reset_defaults()


@pytest.fixture
async def memory() -> MemoryManager:
    """Give the manager behind `engine`, for tests that look behind the socket or hold something up."""
    return MemoryManager()


@pytest.fixture
async def engine(memory: MemoryManager, tmp_path: Path) -> AsyncIterator[Engine]:
    """Give a daemon without plugins; whoever can give another such daemon may run the same tests on it."""
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
    socket = tmp_path / "api.sock"
    async with serve(app, [UnixListener(socket)], grace=2):
        yield Engine(socket, memory.publish)

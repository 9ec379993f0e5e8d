"""Fixtures of the functional tests."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import structlog
from anyio import to_thread
from click.testing import CliRunner, Result

from pluginsvc import log
from pluginsvc.api.app import make_app, serve
from pluginsvc.api.listeners import UnixListener
from pluginsvc.api.system import SystemFacts
from pluginsvc.client.pluginctl import main
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


Ctl = Callable[..., Awaitable[Result]]


@pytest.fixture
def ctl(engine: Engine) -> Ctl:
    """Give a function that runs the command against `engine` and checks its exit status."""

    async def run(*words: str, status: int = 0, host: str = engine.host) -> Result:
        # by the environment, so that tests of --host can override it
        invoke = lambda: CliRunner().invoke(main, words, env={"PLUGINSVC_HOST": host})  # noqa: E731 - a thread's body
        result = await to_thread.run_sync(invoke)
        assert result.exit_code == status, result.output
        return result

    return run

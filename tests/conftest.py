"""What every test gets: the event loop's kind, a watch on blocking calls, and an environment that is nobody's own."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from tests.support import sample
from tests.support.registry import Registry, start_registry

_FOREIGN = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "NOTIFY_SOCKET", "LISTEN_FDS")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs root when we are not."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root: it starts real plugins under runc")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Run async tests and fixtures on asyncio with uvloop, as the daemon does."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Fail a test in which our code blocks the event loop; the test itself may."""
    with blockbuster_ctx("pluginsvc") as found:
        yield found


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the user's home, docker settings and proxies from us and from every process we start."""
    # a shell ignores it for what it runs in the background, and children would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("DOCKER_CONFIG", str(home / ".docker"))
        for name in list(os.environ):
            if name in _FOREIGN or name.lower().endswith("_proxy"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Give one plain registry to the whole session; tests keep apart by repository name."""
    with start_registry(tmp_path_factory.mktemp("session")) as found:
        yield found


@pytest.fixture(scope="session")
def sample_plugin_binary() -> Path:
    """Give the compiled sample plugin, a static program."""
    return sample.sample_plugin_binary()

"""Fixtures for tests with real plugins: a daemon, CLIs, plugin folders; all of it needs root."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, running_daemon
from tests.support.docker_cli import DockerCLI, docker_clis
from tests.support.registry import Registry
from tests.support.sample import build_sample_plugin

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """Give one daemon to a module's tests; each test uses plugin names of its own."""
    with running_daemon() as found:
        yield found


@pytest.fixture(params=docker_clis(), ids=lambda path: "cli-unpacked" if ".cache" in str(path) else "cli-installed")
def docker(request: pytest.FixtureRequest, daemon: Daemon) -> DockerCLI:
    """Give each docker CLI there is, in turn."""
    path: Path = request.param
    return daemon.cli(path)


@pytest.fixture
def name(registry: Registry) -> str:
    """Give a plugin name in the session's registry that nobody else uses."""
    return f"{registry.host}/test/plugin{next(_numbers)}"


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Give a function that makes a plugin folder with some keys of its config replaced."""

    def make(version: str = "1", **config: object) -> Path:
        return build_sample_plugin(tmp_path / f"plugin{next(_numbers)}", version=version, **config)

    return make


@pytest.fixture
def published(daemon: Daemon, name: str, folder: Callable[..., Path]) -> str:
    """Give the name of a plugin that is in the registry and not on the daemon."""
    cli = daemon.cli()
    cli.run("plugin", "create", name, str(folder()), check=True)
    cli.run("plugin", "push", name, check=True)
    cli.run("plugin", "rm", name, check=True)
    return name

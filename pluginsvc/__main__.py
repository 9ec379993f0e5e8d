"""The ``pluginsvc`` command: flags to settings to run."""

from __future__ import annotations

import sys
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import rich_click as click

from pluginsvc import config
from pluginsvc.errors import PluginsvcError

DEFAULT_CONFIG = Path("/etc/pluginsvc/pluginsvc.toml")
CONTEXT = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Manage Docker Engine plugins on this host, with no dockerd behind it."""


@main.command()
@click.option("--config", "config_file", type=click.Path(path_type=Path), help=f"TOML file [{DEFAULT_CONFIG} if there]")
@click.option("--root", help="where plugins, blobs and the database live")
@click.option("--run-root", help="where sockets and running state live")
@click.option(
    "--host", "hosts", multiple=True, help="listen on unix:///PATH, tcp://127.0.0.1:PORT or fd://; repeatable"
)
@click.option("--group", help="group that may use the unix socket")
@click.option("--runtime", help="runc, crun, or a path")
@click.option("--insecure-registry", "insecure_registries", multiple=True, help="host[:port] or CIDR; repeatable")
@click.option("--log-format", type=click.Choice(["console", "json"]))
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
def serve(config_file: Path | None, **flags: Any) -> None:
    """Run the daemon in the foreground until SIGTERM."""
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in flags.items() if value}

    def settings() -> config.Settings:
        return config.load(config_file or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None), given)

    try:
        first = settings()
        # a mistake in the settings is told without loading the whole program first
        from pluginsvc.daemon import run  # noqa: PLC0415 - see above

        run(first, settings)
    except PluginsvcError as exc:
        sys.exit(f"pluginsvc: {exc}")


@main.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
def check_config(file: Path) -> None:
    """Say whether FILE is a usable configuration."""
    try:
        config.load(file, {})
    except PluginsvcError as exc:
        sys.exit(f"pluginsvc: {exc}")
    click.echo(f"{file}: ok")


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"pluginsvc {package_version('pluginsvc')}")


if __name__ == "__main__":
    main()

"""The ``pluginsvc`` command: flags to settings to run.

argparse, and not the prettier parser of ``pluginctl``: a daemon that is started again should answer soon, and that one
loads five times as long.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from pluginsvc import config
from pluginsvc.errors import PluginsvcError

DEFAULT_CONFIG = Path("/etc/pluginsvc/pluginsvc.toml")


def main(words: Sequence[str] | None = None) -> None:
    """Do what the command line says.

    Args:
        words: the arguments; those of the process by default.
    """
    given = vars(_parser().parse_args(words))
    command = given.pop("command")
    try:
        if command == "serve":
            _serve(given.pop("config"), {name: value for name, value in given.items() if value})
        elif command == "check-config":
            config.load(given["file"], {})
            print(f"{given['file']}: ok")  # noqa: T201 - the answer
        else:
            print(f"pluginsvc {package_version('pluginsvc')}")  # noqa: T201 - the answer
    except PluginsvcError as exc:
        sys.exit(f"pluginsvc: {exc}")


def _parser() -> argparse.ArgumentParser:
    what = "Manage Docker Engine plugins on this host, with no dockerd behind it."
    parser = argparse.ArgumentParser("pluginsvc", description=what, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    what = "run the daemon in the foreground until SIGTERM"
    serve = commands.add_parser("serve", help=what, description=what, allow_abbrev=False)
    serve.add_argument("--config", type=Path, metavar="FILE", help=f"TOML file [{DEFAULT_CONFIG} if there]")
    serve.add_argument("--root", metavar="DIR", help="where plugins, blobs and the database live")
    serve.add_argument("--run-root", metavar="DIR", help="where sockets and running state live")
    where = "where other engines find plugins by name; none: nowhere"
    serve.add_argument("--publish-dir", metavar="DIR|none", help=where)
    addresses = "listen on unix:///PATH, tcp://127.0.0.1:PORT or fd://; repeatable"
    serve.add_argument("--host", action="append", dest="hosts", metavar="URI", help=addresses)
    serve.add_argument("--group", help="group that may use the unix socket")
    serve.add_argument("--runtime", help="runc, crun, or a path")
    registries = "host[:port] or CIDR; repeatable"
    serve.add_argument(
        "--insecure-registry", action="append", dest="insecure_registries", metavar="HOST", help=registries
    )
    serve.add_argument("--log-format", choices=["console", "json"])
    serve.add_argument("--log-level", choices=["debug", "info", "warning", "error"])

    what = "say whether FILE is a usable configuration"
    check = commands.add_parser("check-config", help=what, description=what, allow_abbrev=False)
    check.add_argument("file", type=Path, metavar="FILE")

    commands.add_parser("version", help="print the version", allow_abbrev=False)
    return parser


def _serve(file: Path | None, flags: dict[str, Any]) -> None:
    def settings() -> config.Settings:
        return config.load(file or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None), flags)

    # a mistake in the settings is told without loading the whole program first
    first = settings()
    with _lean():
        from pluginsvc.daemon import run  # noqa: PLC0415 - see above
    run(first, settings)


@contextmanager
def _lean() -> Iterator[None]:
    """Load modules without what they would do at once and we never use: a third of the daemon's start.

    structlog loads rich, to draw tracebacks; aiohttp reads every CA of the host into two TLS contexts, where
    ``registry.hosts`` makes those that are used; and what is loaded stays, so there is no garbage to look for.
    """
    gc.disable()
    authorities = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = os.devnull
    without_rich = "rich" not in sys.modules
    if without_rich:
        sys.modules["rich"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        yield
    finally:
        if without_rich:
            del sys.modules["rich"]
        if authorities is None:
            del os.environ["SSL_CERT_FILE"]
        else:
            os.environ["SSL_CERT_FILE"] = authorities
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    main()

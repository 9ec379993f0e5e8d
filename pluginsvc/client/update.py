"""``pluginctl update``: one flag for each of a plugin's options (``model.options``)."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import rich_click as click

from pluginsvc.client.connection import Connection
from pluginsvc.client.output import say
from pluginsvc.client.paths import native_path
from pluginsvc.model.options import Options

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_HELP = {
    "restart": "always, on-failure[:MAX] or no",
    "burst": "failures in a row that make a crash loop",
    "start-timeout": "seconds to wait for the socket; 0: 12.5",
    "probe": "auto, none, or a call such as Plugin.Activate",
    "probe-interval": "seconds between two probes",
    "probe-timeout": "seconds an answer may take",
    "probe-failures": "unanswered probes that make it unhealthy",
    "memory": "most bytes of memory, such as 256m; 0: no limit",
    "pids": "most processes and threads; 0: no limit",
    "cpu-weight": "1 to 10000, beside others' 100",
    "seccomp": "file with a profile in the runtime's own format",
    "no-new-privileges": "setuid programs give nothing",
    "read-only": "the rootfs cannot be written to",
    "config-user": "run as the user that the config names",
}


class _Bytes(click.ParamType[int]):
    """A number of bytes, with k, m or g behind it for powers of 1024."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        found = re.fullmatch(r"(\d{1,18})([kmg]?)b?", str(value).lower())
        if found is None:
            self.fail(f"{value!r} is no number of bytes, such as 268435456 or 256m", param, ctx)
        return int(found[1]) * _UNITS[found[2]]


def _flags(command: Any) -> Any:
    """Give a command a flag for each option."""
    for name, default in reversed(list(msgspec.to_builtins(Options()).items())):
        if isinstance(default, bool):
            # not --no-no-new-privileges
            words, kind = f"--{name}/--{name.removeprefix('no-') if name.startswith('no-') else f'no-{name}'}", None
        else:
            words, kind = f"--{name}", _Bytes() if name == "memory" else type(default)
        command = click.option(words, name.replace("-", "_"), type=kind, default=None, help=_HELP[name])(command)
    return command


@click.command()
@_flags
@click.option("--default", "defaults", multiple=True, metavar="OPTION", help="take the daemon's value; repeatable")
@click.argument("name", metavar="PLUGIN")
@click.make_pass_decorator(Connection)
def update(daemon: Connection, /, name: str, defaults: tuple[str, ...], **given: Any) -> None:
    """Change how a plugin is kept, running or not, and show all that counts.

    How it is restarted counts from its next end on, everything else from its next start on.
    """
    changes = {key.replace("_", "-"): value for key, value in given.items() if value is not None}
    twice = sorted(set(defaults) & set(changes))
    if twice:
        raise click.UsageError(f"--{twice[0]} and --default {twice[0]} say different things")
    body = daemon.call("POST", native_path(name, "update"), json=changes | dict.fromkeys(defaults))
    say(msgspec.json.format(body.strip(), indent=4).decode())

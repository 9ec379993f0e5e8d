"""``pluginctl leases``, ``acquire``, ``release`` and ``mounts``: who uses plugins, and what hangs on it."""

from __future__ import annotations

import datetime as dt

import msgspec
import rich_click as click

from pluginsvc.client.connection import Connection
from pluginsvc.client.output import say, table
from pluginsvc.client.paths import native_path
from pluginsvc.model.lease import PluginLease

_daemon = click.make_pass_decorator(Connection)
_plugin = click.argument("name", metavar="PLUGIN")
_format = click.option("--format", "form", type=click.Choice(["json"]), help="for programs: one document a line")
_holder = click.option("--holder", required=True, help="who uses the plugin")


class _Left(msgspec.Struct, rename="pascal"):
    """``POST …/release``: leases that are left."""

    count: int


class _Mount(msgspec.Struct, rename="pascal"):
    """A line of ``GET /pluginsvc/v1/mounts``."""

    path: str
    plugin: str
    plugin_id: str = msgspec.field(name="PluginID")
    mount_id: int = msgspec.field(name="MountID")
    since: str
    state: str
    trouble: str


@click.command()
@_format
@_plugin
@_daemon
def leases(daemon: Connection, name: str, form: str | None) -> None:
    """Show who uses a plugin, and what for."""
    found = daemon.decoded(daemon.call("GET", native_path(name, "leases")), list[PluginLease])
    if form == "json":
        _print_each(found)
        return
    rows = [
        (lease.holder, lease.purpose, str(lease.count), _when(lease.since_ns), _when(lease.expires_ns) or "never")
        for lease in found
    ]
    table(("HOLDER", "PURPOSE", "COUNT", "SINCE", "EXPIRES"), rows)


@click.command()
@_holder
@click.option("--purpose", required=True, help="what for")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="it ends by itself; by default never")
@click.option("--capability", default="", help="only if the plugin provides it, such as volumedriver")
@_plugin
@_daemon
def acquire(daemon: Connection, name: str, holder: str, purpose: str, seconds: float | None, capability: str) -> None:
    """Say that somebody uses an enabled plugin; until the release it is disabled and removed by force only."""
    body = {"Holder": holder, "Purpose": purpose, "Seconds": seconds, "Capability": capability}
    lease = daemon.decoded(daemon.call("POST", native_path(name, "acquire"), json=body), PluginLease)
    say(str(lease.count))


@click.command()
@_holder
@click.option("--purpose", help="what for; by default whatever it was, the oldest first")
@click.option("--all", "everything", is_flag=True, help="every use, and not only one")
@_plugin
@_daemon
def release(daemon: Connection, name: str, holder: str, purpose: str | None, *, everything: bool) -> None:
    """Say that somebody uses a plugin one time less, and show how many times are left."""
    body = {"Holder": holder, "Purpose": purpose, "All": everything}
    say(str(daemon.decoded(daemon.call("POST", native_path(name, "release"), json=body), _Left).count))


@click.command()
@_format
@_daemon
def mounts(daemon: Connection, form: str | None) -> None:
    """Show what is mounted on this host for plugins, and what should not be any more."""
    found = daemon.decoded(daemon.call("GET", "/pluginsvc/v1/mounts"), list[_Mount])
    if form == "json":
        _print_each(found)
        return
    rows = [(each.plugin or each.plugin_id[:12], each.state, each.since, each.path, each.trouble) for each in found]
    table(("PLUGIN", "STATE", "SINCE", "PATH", "TROUBLE"), rows)


def _print_each(documents: list[PluginLease] | list[_Mount]) -> None:
    for document in documents:
        say(msgspec.json.encode(document).decode())


def _when(time_ns: int | None) -> str:
    """Return a point in time in local time, to the second; nothing for none."""
    if time_ns is None:
        return ""
    return dt.datetime.fromtimestamp(time_ns // 10**9, dt.UTC).astimezone().isoformat()

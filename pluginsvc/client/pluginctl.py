"""The ``pluginctl`` command: ``docker plugin``'s words and flags, and some that Docker has no word for.

Exit status: 0 done, 1 the daemon refused or is not there, 2 the command line is wrong, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click

from pluginsvc.client import archive
from pluginsvc.client.answers import Collected, Disk, Summary, Version, progress_text
from pluginsvc.client.capabilities import capabilities
from pluginsvc.client.connection import DEFAULT_HOST, Connection, InvalidHost
from pluginsvc.client.events import events
from pluginsvc.client.filters import filter_option
from pluginsvc.client.leases import acquire, leases, mounts, release
from pluginsvc.client.logs import logs, top
from pluginsvc.client.output import complain, for_each, say, size, table
from pluginsvc.client.paths import InvalidName, native_path, plugin_path
from pluginsvc.client.update import update
from pluginsvc.client.volumes import volume
from pluginsvc.client.when import InvalidTime
from pluginsvc.errors import PluginsvcError
from pluginsvc.model.plugin import Plugin

_JSON = msgspec.json.Encoder()

_daemon = click.make_pass_decorator(Connection)
_plugins = click.argument("names", metavar="PLUGIN...", nargs=-1, required=True)
_plugin = click.argument("name", metavar="PLUGIN")
_format = click.option("--format", "form", type=click.Choice(["json"]), help="for programs: one document a line")


class _Group(click.RichGroup):
    """Turns errors of our tree into a line and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (InvalidHost, InvalidName, InvalidTime) as exc:
            raise click.UsageError(str(exc)) from exc
        except UnicodeEncodeError as exc:
            raise click.UsageError("every word must be UTF-8") from exc
        except PluginsvcError as exc:
            complain(exc)
            ctx.exit(1)
        except KeyboardInterrupt:
            ctx.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-H", "--host", envvar="PLUGINSVC_HOST", default=DEFAULT_HOST, show_default=True, show_envvar=True)
@click.pass_context
def main(ctx: click.Context, host: str) -> None:
    """Manage Docker Engine plugins on this host."""
    ctx.obj = Connection(host)


@main.command("ls", aliases=["list"])
@filter_option
@click.option("-q", "--quiet", is_flag=True, help="IDs only")
@click.option("--no-trunc", is_flag=True, help="whole IDs and descriptions")
@_format
@_daemon
def list_(daemon: Connection, filters: dict[str, str], form: str | None, *, quiet: bool, no_trunc: bool) -> None:
    """List plugins; filters are enabled=true|false and capability=NAME."""
    rows = []
    states = {found.id: found for found in daemon.decoded(daemon.call("GET", "/pluginsvc/v1/plugins"), list[Summary])}
    for plugin in daemon.decoded(daemon.call("GET", "/plugins", filters), list[Plugin]):
        text = plugin.config.description
        short = plugin.id if no_trunc else plugin.id[:12]
        state = states[plugin.id].state if plugin.id in states else ""
        if quiet:
            say(short)
        elif form == "json":
            facts = {"ID": plugin.id, "Name": plugin.name, "Description": text, "Enabled": plugin.enabled}
            facts |= {"State": state}
            _print_json(facts | {"PluginReference": plugin.plugin_reference or ""})
        else:
            shown = text if no_trunc or len(text) <= 45 else text[:44] + "…"
            rows.append((short, plugin.name, shown, str(plugin.enabled).lower(), state))
    if not quiet and form != "json":
        table(("ID", "NAME", "DESCRIPTION", "ENABLED", "STATE"), rows)


@main.command()
@click.option("-f", "--format", "form", type=click.Choice(["json"]), help="one line for each")
@_plugins
@_daemon
def inspect(daemon: Connection, names: tuple[str, ...], form: str | None) -> None:
    """Show all that is known of plugins, as JSON."""
    found: list[msgspec.Raw] = []

    def inspect_one(name: str) -> None:
        plugin = msgspec.json.decode(daemon.call("GET", plugin_path(name, "json")), type=dict[str, msgspec.Raw])
        plugin["Status"] = msgspec.Raw(daemon.call("GET", native_path(name, "json")).strip())
        found.append(msgspec.Raw(_JSON.encode(plugin)))

    failed = for_each(names, inspect_one)
    if form == "json":
        for each in found:
            _print_json(each)
    else:
        say(msgspec.json.format(_JSON.encode(found), indent=4).decode())
    if failed:
        sys.exit(1)


@main.command()
@click.option("--timeout", type=click.IntRange(min=0), default=30, show_default=True, help="seconds, 0 for none")
@_plugin
@_daemon
def enable(daemon: Connection, timeout: int, name: str) -> None:
    """Start a plugin and keep it running; --timeout is how long to wait for it, and for calls to it."""
    daemon.call("POST", plugin_path(name, "enable"), {"timeout": str(timeout)})
    say(name)


@main.command()
@click.option("-f", "--force", is_flag=True, help="even if it is in use")
@_plugin
@_daemon
def disable(daemon: Connection, name: str, *, force: bool) -> None:
    """Stop a plugin."""
    daemon.call("POST", plugin_path(name, "disable"), {"force": "1"} if force else None)
    say(name)


for elsewhere in (update, events, logs, top, leases, acquire, release, mounts, capabilities, volume):
    main.add_command(elsewhere)


@main.command("set")
@_plugin
@click.argument("settings", metavar="KEY=VALUE...", nargs=-1, required=True)
@_daemon
def set_(daemon: Connection, name: str, settings: tuple[str, ...]) -> None:
    """Change settings of a plugin, all of them or none."""
    daemon.call("POST", plugin_path(name, "set"), json=settings)


@main.command("rm", aliases=["remove"])
@click.option("-f", "--force", is_flag=True, help="even if it is enabled")
@_plugins
@_daemon
def remove(daemon: Connection, names: tuple[str, ...], *, force: bool) -> None:
    """Remove plugins."""

    def remove_one(name: str) -> None:
        daemon.call("DELETE", plugin_path(name), {"force": "1"} if force else None)
        say(name)

    if for_each(names, remove_one):
        sys.exit(1)


@main.command()
@_plugin
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_daemon
def create(daemon: Connection, name: str, folder: Path) -> None:
    """Make a plugin of DIR, which has config.json and rootfs/."""
    if not (folder / "config.json").is_file() or not (folder / "rootfs").is_dir():
        raise click.BadParameter(f"{str(folder)!r} does not have both config.json and rootfs/", param_hint="DIR")
    daemon.upload("/plugins/create", {"name": name}, lambda sink: archive.write_plugin(folder, sink))
    say(name)


@main.command()
@_plugin
@_format
@_daemon
def push(daemon: Connection, name: str, form: str | None) -> None:
    """Send a plugin to the registry that its name says, which must not want a login."""
    for line, raw in daemon.progress(plugin_path(name, "push")):
        if text := raw.decode() if form == "json" else progress_text(line):
            say(text)


@main.command()
@_format
@_daemon
def df(daemon: Connection, form: str | None) -> None:
    """Show how much plugins take on disk, and how much of it `prune` would give back."""
    plugins = daemon.decoded(daemon.call("GET", "/plugins"), list[Plugin])
    active = sum(plugin.enabled for plugin in plugins)
    taken = daemon.decoded(daemon.call("GET", "/system/df"), Disk).layers_size
    free = _collect(daemon, dry_run=True).bytes
    if form == "json":
        _print_json({"Type": "Plugins", "Total": len(plugins), "Active": active, "Size": taken, "Reclaimable": free})
    else:
        row = ("Plugins", str(len(plugins)), str(active), size(taken), size(free))
        table(("TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"), [row])


@main.command()
@click.option("--dry-run", is_flag=True, help="only say what would go")
@_format
@_daemon
def prune(daemon: Connection, form: str | None, *, dry_run: bool) -> None:
    """Remove stored blobs that no plugin needs; plugins stay."""
    report = _collect(daemon, dry_run=dry_run)
    if form == "json":
        _print_json(report)
        return
    for digest in report.removed:
        say(f"{'would delete' if dry_run else 'deleted'}: {digest}")
    say(f"{'Reclaimable' if dry_run else 'Reclaimed'} space: {size(report.bytes)}")


@main.command()
@_format
@_daemon
def version(daemon: Connection, form: str | None) -> None:
    """Show the versions of this program and of the daemon."""
    # takes as long as everything else this program loads, for this command alone
    from importlib.metadata import version as package_version  # noqa: PLC0415 - costs a tenth of a second that other commands need not pay

    body = daemon.call("GET", "/version").strip()
    server = daemon.decoded(body, Version)
    own = package_version("pluginsvc")
    if form == "json":
        _print_json({"Client": {"Version": own}, "Server": msgspec.Raw(body)})
    else:
        table(("", "VERSION", "API"), [("Client", own, ""), ("Server", server.version, server.api_version)])


def _collect(daemon: Connection, *, dry_run: bool) -> Collected:
    body = daemon.call("POST", "/pluginsvc/v1/gc", {"dry-run": "1"} if dry_run else None)
    return daemon.decoded(body, Collected)


def _print_json(document: object) -> None:
    say(_JSON.encode(document).decode())


if __name__ == "__main__":
    main()

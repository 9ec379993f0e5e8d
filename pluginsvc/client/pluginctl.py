"""The ``pluginctl`` command: ``docker plugin``'s words and flags, and some that Docker has no word for.

Exit status: 0 done, 1 the daemon refused or is not there, 2 the command line is wrong, 130 interrupted.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click

from pluginsvc.client import archive
from pluginsvc.client.connection import DEFAULT_HOST, Connection, DaemonUnreachable, InvalidHost, plugin_path
from pluginsvc.client.output import complain, harmless, say, size, table
from pluginsvc.client.when import InvalidTime, timestamp
from pluginsvc.errors import PluginsvcError, Unavailable
from pluginsvc.model.plugin import Plugin
from pluginsvc.model.progress import Line
from pluginsvc.model.reference import Reference

_SHORT_ID = 12
_SHORT_TEXT = 45
_JSON = msgspec.json.Encoder()

_daemon = click.make_pass_decorator(Connection)
_plugins = click.argument("names", metavar="PLUGIN...", nargs=-1, required=True)
_plugin = click.argument("name", metavar="PLUGIN")


class StreamEnded(Unavailable):
    """Events ended although nobody asked for an end."""

    def __init__(self, host: str) -> None:
        self.host = host
        super().__init__(f"the daemon at {host} ended the events, it is stopping: go on later with --since")


class _Disk(msgspec.Struct, rename="pascal"):
    layers_size: int


class _Collected(msgspec.Struct, rename="pascal"):
    removed: list[str]
    bytes: int


class _Version(msgspec.Struct):
    version: str = msgspec.field(name="Version")
    api: str = msgspec.field(name="ApiVersion")
    oldest_api: str = msgspec.field(name="MinAPIVersion", default="")


class _Actor(msgspec.Struct):
    id: str = msgspec.field(name="ID")
    attributes: dict[str, str] = msgspec.field(name="Attributes", default={})


class _Event(msgspec.Struct):
    type: str = msgspec.field(name="Type")
    action: str = msgspec.field(name="Action")
    actor: _Actor = msgspec.field(name="Actor")
    time_ns: int = msgspec.field(name="timeNano")


class _Group(click.RichGroup):
    """Turns errors of our tree into a line and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PluginsvcError as exc:
            complain(str(exc))
            ctx.exit(1)
        except KeyboardInterrupt:
            ctx.exit(130)


def _format(*choices: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    text = "json: for programs, one document a line"
    return click.option("--format", "form", type=click.Choice(choices), help=text)


def _pairs(_ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Turn ``key=value`` words into the ``filters`` parameter; none for none."""
    filters: dict[str, list[str]] = {}
    for word in values:
        key, equals, value = word.partition("=")
        if not equals:
            raise click.BadParameter(f"{word!r} is not KEY=VALUE")
        filters.setdefault(key.strip().lower(), []).append(value.strip())
    return {"filters": _JSON.encode(filters).decode()} if filters else {}


def _time(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else timestamp(value, dt.datetime.now(dt.UTC))
    except InvalidTime as exc:
        raise click.BadParameter(str(exc)) from exc


_filters = click.option(
    "-f", "--filter", "filters", multiple=True, callback=_pairs, metavar="KEY=VALUE", help="show only these; repeatable"
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-H", "--host", envvar="PLUGINSVC_HOST", default=DEFAULT_HOST, show_default=True, show_envvar=True)
@click.pass_context
def main(ctx: click.Context, host: str) -> None:
    """Manage Docker Engine plugins on this host."""
    try:
        ctx.obj = Connection(host)
    except InvalidHost as exc:
        raise click.BadParameter(str(exc), param_hint="--host") from exc


@main.command("ls", aliases=["list"])
@_filters
@click.option("-q", "--quiet", is_flag=True, help="IDs only")
@click.option("--no-trunc", is_flag=True, help="whole IDs and descriptions")
@_format("table", "json")
@_daemon
def list_(daemon: Connection, filters: dict[str, str], form: str | None, *, quiet: bool, no_trunc: bool) -> None:
    """List plugins; filters are enabled=true|false and capability=NAME."""
    plugins = daemon.decoded(daemon.get("/plugins", filters), list[Plugin])
    width = None if no_trunc else _SHORT_ID
    if quiet:
        for plugin in plugins:
            say(plugin.id[:width])
    elif form == "json":
        for plugin in plugins:
            _print_json(
                {
                    "Description": plugin.config.description,
                    "Enabled": plugin.enabled,
                    "ID": plugin.id,
                    "Name": plugin.name,
                    "PluginReference": plugin.plugin_reference or "",
                }
            )
    else:
        rows = (
            (
                plugin.id[:width],
                plugin.name,
                plugin.config.description if no_trunc else _shortened(plugin.config.description),
                str(plugin.enabled).lower(),
            )
            for plugin in plugins
        )
        table(("ID", "NAME", "DESCRIPTION", "ENABLED"), rows)


@main.command()
@_plugins
@_format("json")
@_daemon
def inspect(daemon: Connection, names: tuple[str, ...], form: str | None) -> None:
    """Show all that is known of plugins, as JSON."""
    found: list[msgspec.Raw] = []
    failed = _for_each(names, lambda name: found.append(msgspec.Raw(daemon.get(plugin_path(name, "json")).strip())))
    if form == "json":
        for each in found:
            _print_json(each)
    else:
        say(msgspec.json.format(_JSON.encode(found), indent=4).decode())
    _exit(failed=failed)


@main.command()
@click.option("--timeout", type=click.IntRange(min=0), default=30, show_default=True, help="seconds, 0 for none")
@_plugin
@_daemon
def enable(daemon: Connection, timeout: int, name: str) -> None:
    """Start a plugin and keep it running; --timeout is for calls to it."""
    daemon.call("POST", plugin_path(name, "enable"), {"timeout": str(timeout)})
    say(name)


@main.command()
@click.option("-f", "--force", is_flag=True, help="even if it is in use")
@_plugin
@_daemon
def disable(daemon: Connection, name: str, *, force: bool) -> None:
    """Stop a plugin."""
    daemon.call("POST", plugin_path(name, "disable"), _forced(force=force))
    say(name)


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
        daemon.call("DELETE", plugin_path(name), _forced(force=force))
        say(name)

    _exit(failed=_for_each(names, remove_one))


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
@click.option(
    "--config",
    envvar="DOCKER_CONFIG",
    default=Path("~/.docker"),
    type=click.Path(path_type=Path),
    show_default=True,
    show_envvar=True,
    help="folder where `docker login` keeps logins",
)
@_plugin
@_format("json")
@_daemon
def push(daemon: Connection, name: str, config: Path, form: str | None) -> None:
    """Send a plugin to the registry that its name says."""
    # subprocess, for the helpers, is for this command alone
    from pluginsvc.client.credentials import auth_header  # noqa: PLC0415

    # asked for by its ID it still goes where its name says, and only that registry may see the login
    name = daemon.decoded(daemon.get(plugin_path(name, "json")), Plugin).name
    headers = auth_header(Reference.parse(name).domain, config.expanduser())
    for line, raw in daemon.progress(plugin_path(name, "push"), headers=headers):
        if form == "json":
            say(raw.decode())
        elif text := _progress_text(line):
            say(text)


@main.command()
@click.option("--since", callback=_time, metavar="TIME", help="replay from TIME: seconds, a span back (10m) or a date")
@click.option("--until", callback=_time, metavar="TIME", help="end at TIME; by default go on until interrupted")
@_filters
@_format("json")
@_daemon
def events(daemon: Connection, since: str | None, until: str | None, filters: dict[str, str], form: str | None) -> None:
    """Show what happens, as it happens."""
    bounds = {key: value for key, value in (("since", since), ("until", until)) if value is not None}
    for raw in daemon.lines("GET", "/events", bounds | filters):
        if form == "json":
            say(raw.decode())
        else:
            event = daemon.decoded(raw, _Event)
            seconds, nanoseconds = divmod(event.time_ns, 1_000_000_000)
            at = dt.datetime.fromtimestamp(seconds, dt.UTC).astimezone()
            offset = at.isoformat()[19:]
            facts = ", ".join(f"{key}={value}" for key, value in sorted(event.actor.attributes.items()))
            say(
                f"{at:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}{offset} "
                f"{event.type} {event.action} {event.actor.id} ({facts})"
            )
    if until is None:
        raise StreamEnded(daemon.host)


@main.command()
@_format("table", "json")
@_daemon
def df(daemon: Connection, form: str | None) -> None:
    """Show how much plugins take on disk, and how much of it `prune` would give back."""
    plugins = daemon.decoded(daemon.get("/plugins"), list[Plugin])
    active = sum(plugin.enabled for plugin in plugins)
    taken = daemon.decoded(daemon.get("/system/df"), _Disk).layers_size
    free = _collect(daemon, dry_run=True).bytes
    if form == "json":
        _print_json({"Type": "Plugins", "Total": len(plugins), "Active": active, "Size": taken, "Reclaimable": free})
    else:
        row = ("Plugins", str(len(plugins)), str(active), size(taken), size(free))
        table(("TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"), [row])


@main.command()
@click.option("--dry-run", is_flag=True, help="only say what would go")
@_format("table", "json")
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
@_format("table", "json")
@_daemon
def version(daemon: Connection, form: str | None) -> None:
    """Show the versions of this program and of the daemon."""
    # takes as long as everything else this program loads, for this command alone
    from importlib.metadata import version as package_version  # noqa: PLC0415

    body = daemon.get("/version").strip()
    server = daemon.decoded(body, _Version)
    own = package_version("pluginsvc")
    if form == "json":
        _print_json({"Client": {"Version": own}, "Server": msgspec.Raw(body)})
    else:
        api = f"{server.api} (at least {server.oldest_api})" if server.oldest_api else server.api
        table(("", "VERSION", "API"), [("Client", own, ""), ("Server", server.version, api)])


def _collect(daemon: Connection, *, dry_run: bool) -> _Collected:
    body = daemon.call("POST", "/pluginsvc/v1/gc", {"dry-run": "1"} if dry_run else None)
    return daemon.decoded(body, _Collected)


def _forced(*, force: bool) -> dict[str, str]:
    return {"force": "1"} if force else {}


def _for_each(names: Iterable[str], do: Callable[[str], None]) -> bool:
    """Do something to each, complain about those that fail and tell whether any did."""
    failed = False
    for name in names:
        try:
            do(name)
        except DaemonUnreachable:
            raise
        except PluginsvcError as exc:
            complain(str(exc))
            failed = True
    return failed


def _exit(*, failed: bool) -> None:
    if failed:
        click.get_current_context().exit(1)


def _print_json(document: object) -> None:
    say(_JSON.encode(document).decode())


def _shortened(text: str) -> str:
    return text if len(text) <= _SHORT_TEXT else text[: _SHORT_TEXT - 1] + "…"


def _progress_text(line: Line) -> str:
    """Return a line of progress for people; empty for counts, of which there are many."""
    if line.aux is not None:
        return f"{line.aux.tag}: digest: {line.aux.digest} size: {line.aux.size}"
    if line.progress_detail is not None and (line.progress_detail.current or line.progress_detail.total):
        return ""
    return f"{line.id}: {line.status}" if line.id and line.status else line.status


if __name__ == "__main__":
    main()

"""``pluginctl volume``: volumes of any plugin, for those who have no volume client of their own."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import rich_click as click

from pluginsvc.client.connection import Connection
from pluginsvc.client.output import complain, for_each, say, table
from pluginsvc.client.paths import native_path
from pluginsvc.errors import Unavailable

_daemon = click.make_pass_decorator(Connection)
_driver = click.option("-d", "--driver", metavar="PLUGIN", required=True, help="name or ID of the volumes' plugin")
_name = click.argument("name", metavar="NAME")
_names = click.argument("names", metavar="NAME...", nargs=-1, required=True)
_user = click.option(
    "--id", "user", default="pluginctl", show_default=True, help="who uses it; unmount needs the same as mount"
)


class _Volume(msgspec.Struct, rename="pascal"):
    """A volume of a list."""

    name: str
    plugin: str
    scope: str
    mountpoint: str
    created_at: str
    status: msgspec.Raw


class _Failure(msgspec.Struct, rename="pascal"):
    """A plugin that has listed none."""

    plugin: str
    error: str


class _Everything(msgspec.Struct, rename="pascal"):
    """``GET /pluginsvc/v1/volumes``."""

    volumes: list[_Volume]
    failed: list[_Failure]


class _Mounted(msgspec.Struct, rename="pascal"):
    """``POST …/volumes/mount``."""

    mountpoint: str


@click.group()
def volume() -> None:
    """Use the volumes of a plugin, on this host and without an engine."""


@volume.command("ls", aliases=["list"])
@click.option("-d", "--driver", metavar="PLUGIN", help="only the volumes of this plugin")
@click.option("-q", "--quiet", is_flag=True, help="names only")
@click.option("--format", "form", type=click.Choice(["json"]), help="for programs: one document a line")
@_daemon
def list_(daemon: Connection, driver: str | None, form: str | None, *, quiet: bool) -> None:
    """List the volumes of all enabled plugins; those of a plugin that does not answer are left out, with status 1."""
    failed: list[_Failure] = []
    if driver is None:
        everything = daemon.decoded(_get(daemon, "/pluginsvc/v1/volumes"), _Everything)
        found, failed = everything.volumes, everything.failed
    else:
        found = daemon.decoded(_get(daemon, native_path(driver, "volumes")), list[_Volume])
    if quiet or form == "json":
        for each in found:
            say(each.name if quiet else msgspec.json.encode(each).decode(), one_line=True)
    else:
        rows = [(each.plugin, each.name, each.scope, each.mountpoint) for each in found]
        table(("PLUGIN", "NAME", "SCOPE", "MOUNTPOINT"), rows)
    for failure in failed:
        complain(Unavailable(f"no volumes of plugin {failure.plugin}: {failure.error}"))
    if failed:
        sys.exit(1)


@volume.command()
@_driver
@click.option("-o", "--opt", "options", metavar="KEY=VALUE", multiple=True, help="for the plugin; may be repeated")
@_name
@_daemon
def create(daemon: Connection, driver: str, options: tuple[str, ...], name: str) -> None:
    """Make a volume; its plugin is then in use until the volume is removed."""
    pairs = [option.partition("=") for option in options]
    if not all(key for key, _, _ in pairs):
        raise click.BadParameter("an option is KEY=VALUE", param_hint="--opt")
    _post(daemon, driver, "create", {"Name": name, "Options": {key: value for key, _, value in pairs}})
    say(name)


@volume.command()
@_driver
@_names
@_daemon
def inspect(daemon: Connection, driver: str, names: tuple[str, ...]) -> None:
    """Show all that a plugin says of volumes, as JSON."""
    found: list[msgspec.Raw] = []

    def inspect_one(name: str) -> None:
        found.append(msgspec.Raw(_post(daemon, driver, "inspect", {"Name": name})))

    failed = for_each(names, inspect_one)
    say(msgspec.json.format(msgspec.json.encode(found), indent=4).decode())
    if failed:
        sys.exit(1)


@volume.command()
@_driver
@_user
@_name
@_daemon
def mount(daemon: Connection, driver: str, user: str, name: str) -> None:
    """Mount a volume that there is, and print where on this host it is."""
    body = _post(daemon, driver, "mount", {"Name": name, "ID": user})
    say(daemon.decoded(body, _Mounted).mountpoint, one_line=True)


@volume.command(aliases=["umount"])
@_driver
@_user
@_name
@_daemon
def unmount(daemon: Connection, driver: str, user: str, name: str) -> None:
    """Undo one mount of a volume."""
    _post(daemon, driver, "unmount", {"Name": name, "ID": user})
    say(name, one_line=True)


@volume.command("rm", aliases=["remove"])
@_driver
@click.option("-f", "--force", is_flag=True, help="also those that are mounted, if their plugin lets go of them")
@_names
@_daemon
def remove(daemon: Connection, driver: str, names: tuple[str, ...], *, force: bool) -> None:
    """Remove volumes, with what is in them."""

    def remove_one(name: str) -> None:
        _post(daemon, driver, "remove", {"Name": name, "Force": force})
        say(name, one_line=True)

    if for_each(names, remove_one):
        sys.exit(1)


def _get(daemon: Connection, path: str) -> bytes:
    """Read a list; a plugin may take its minute for it."""
    return b"".join(daemon.chunks("GET", path))


def _post(daemon: Connection, driver: str, what: str, document: dict[str, Any]) -> bytes:
    return daemon.call("POST", native_path(driver, f"volumes/{what}"), json=document).strip()

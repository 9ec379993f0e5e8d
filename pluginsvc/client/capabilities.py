"""``pluginctl capabilities``: who provides what."""

from __future__ import annotations

import msgspec
import rich_click as click

from pluginsvc.client.answers import Offer, Provider
from pluginsvc.client.connection import Connection
from pluginsvc.client.output import say, table
from pluginsvc.client.paths import capability_path


@click.command()
@click.option("--format", "form", type=click.Choice(["json"]), help="for programs: one document a line")
@click.argument("capability", metavar="[CAPABILITY]", required=False)
@click.make_pass_decorator(Connection)
def capabilities(daemon: Connection, capability: str | None, form: str | None) -> None:
    """Show what enabled plugins provide or, of one capability such as volumedriver, who provides it and where."""
    found: list[Offer] | list[Provider]
    rows: list[tuple[str, ...]]
    if capability is None:
        header: tuple[str, ...] = ("CAPABILITY", "PLUGINS")
        offers = found = daemon.decoded(daemon.call("GET", "/pluginsvc/v1/capabilities"), list[Offer])
        rows = [(offer.capability, ", ".join(offer.plugins)) for offer in offers]
    else:
        header = ("NAME", "ID", "KIND", "STATE", "ADDRESS")
        providers = found = daemon.decoded(daemon.call("GET", capability_path(capability)), list[Provider])
        rows = [(each.name, each.id[:12], each.kind, each.state, each.address) for each in providers]
    if form != "json":
        table(header, rows)
        return
    for document in found:
        say(msgspec.json.encode(document).decode())

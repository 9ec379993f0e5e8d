"""The ``--filter`` option of the commands that show many."""

from __future__ import annotations

import msgspec
import rich_click as click


def _pairs(_ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Turn ``key=value`` words into the ``filters`` parameter; none for none."""
    filters: dict[str, list[str]] = {}
    for word in values:
        key, equals, value = word.partition("=")
        if not equals:
            raise click.BadParameter(f"{word!r} is not KEY=VALUE")
        filters.setdefault(key.strip().lower(), []).append(value.strip())
    return {"filters": msgspec.json.encode(filters).decode()} if filters else {}


filter_option = click.option(
    "-f", "--filter", "filters", multiple=True, callback=_pairs, metavar="KEY=VALUE", help="show only these; repeatable"
)

"""What the terminal gets: tables, and texts from elsewhere made harmless."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence

import rich_click as click

from pluginsvc.client.connection import DaemonUnreachable
from pluginsvc.errors import PluginsvcError

_UNLIMITED = 100_000
"""Width in cells of what is no terminal: programs want whole lines."""

_MANY = 1000
"""Rows from which on a table is printed plainly: rich takes 0.4 ms for a row."""

_DANGEROUS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    r"""Write control characters and changes of direction as ``\u001b``.

    Names and descriptions are written by strangers; raw, they could rewrite what the operator sees. JSON stays the same
    JSON, because there such characters stand inside strings only.
    """
    return _DANGEROUS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def say(text: str, *, one_line: bool = False) -> None:
    """Print a text.

    Args:
        text: may be a stranger's.
        one_line: it is one value, whose own ends of lines and tabs are escaped as well.
    """
    text = harmless(text)
    click.echo(text.replace("\n", "\\u000a").replace("\t", "\\u0009") if one_line else text)


def complain(error: Exception) -> None:
    """Print a line to standard error."""
    click.echo(f"pluginctl: {harmless(str(error))}", err=True)


def for_each(names: Iterable[str], do: Callable[[str], None]) -> bool:
    """Do something to each, complain about those that fail and tell whether any did."""
    failed = False
    for name in names:
        try:
            do(name)
        except DaemonUnreachable:
            raise
        except PluginsvcError as exc:
            complain(exc)
            failed = True
    return failed


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under a header."""
    cells = [[harmless(" ".join(cell.split())) for cell in row] for row in rows]
    if len(cells) > _MANY:
        _plain_table([list(header), *cells])
        return
    # most commands print a line at most, and rich would be half of their start-up time
    from rich.console import Console  # noqa: PLC0415 - costs a tenth of a second that other commands need not pay
    from rich.table import Table  # noqa: PLC0415 - costs a tenth of a second that other commands need not pay
    from rich.text import Text  # noqa: PLC0415 - costs a tenth of a second that other commands need not pay

    found = Table(*header, box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for row in cells:
        found.add_row(*(Text(cell, overflow="fold") for cell in row))
    Console(width=None if sys.stdout.isatty() else _UNLIMITED).print(found)


def _plain_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    click.echo("\n".join(lines))


def size(count: int) -> str:
    """Return a number of bytes as people write it."""
    from rich.filesize import decimal  # noqa: PLC0415 - as above

    return decimal(count)

"""What plugins print and run, as readers want it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

Stream = Literal["stdout", "stderr"]

Form = Callable[[int, Stream, bytes], bytes]
"""Turns a piece of output into what is sent for it.

It gets the time in nanoseconds since the epoch, the stream, and the bytes: a line with its end, or a piece of a line
that is longer than 8 KiB or was not ended yet.
"""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of Docker's container logs.

    Attributes:
        stdout, stderr: which streams.
        since_ns, until_ns: first and last moment, both included, in nanoseconds since the epoch; ``None`` for no bound.
        tail: most lines of the past, of those between the bounds; ``None`` for all.
        follow: whether to go on with what will be printed.
    """

    stdout: bool = True
    stderr: bool = True
    since_ns: int | None = None
    until_ns: int | None = None
    tail: int | None = None
    follow: bool = False


class Top(msgspec.Struct, frozen=True, rename="pascal"):
    """The processes of a plugin, as Docker's container top shows them.

    Attributes:
        titles: of the columns.
        processes: a row for each.
    """

    titles: tuple[str, ...]
    processes: list[list[str]]

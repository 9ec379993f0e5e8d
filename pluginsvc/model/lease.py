"""Leases on plugins: who uses one, what for, and how many times (REF 3.13, where they are counts without names)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from pluginsvc.errors import InvalidParameter

LONGEST_TEXT: Final = 256
_SHOWN = 5


class InvalidLease(InvalidParameter):
    """A lease cannot be what was asked for."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"invalid lease: {problem}")


class PluginLease(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One use of a plugin.

    Attributes:
        holder: who uses it.
        purpose: what for.
        count: how often it was acquired and not released.
        since_ns: when it was first acquired, in nanoseconds since the epoch.
        expires_ns: when it ends by itself, likewise; ``None``: never.
    """

    holder: str
    purpose: str
    count: int
    since_ns: int
    expires_ns: int | None


def check_text(field: str, text: str) -> None:
    """Check a holder or a purpose: it is shown in errors and tables.

    Raises:
        InvalidLease: it is empty, too long, or could not be printed on a line.
    """
    if not 0 < len(text) <= LONGEST_TEXT or not text.isprintable() or not text.strip():
        raise InvalidLease(f"{field} has to be 1 to {LONGEST_TEXT} printable characters")


def holders(leases: Sequence[PluginLease]) -> str:
    """Name who holds a plugin, as much of it as fits a message: ``web (volume a), db (volume b) and 3 more``."""
    named = ", ".join(f"{lease.holder} ({lease.purpose})" for lease in leases[:_SHOWN])
    more = len(leases) - _SHOWN
    return f"{named} and {more} more" if more > 0 else named

"""The kinds of error, drawn as a tree.

::

    PluginsvcError
    ├── InvalidParameter     400   the caller's input is wrong
    ├── Unauthorized         401   a registry wants (other) credentials
    ├── Forbidden            403   understood and refused
    ├── NotFound             404   no such plugin, blob, manifest
    ├── Conflict             409   right request, wrong moment or state
    ├── Cancelled            499   the caller went away; only ever logged
    ├── Internal             500   our fault, or the machine's
    ├── NotImplementedHere   501   Docker has it, this daemon does not
    └── Unavailable          503   somebody we need does not answer; try again

A concrete error lives beside the code that raises it and inherits exactly one kind.
Only the HTTP edge turns a kind into a status.
"""

from __future__ import annotations

from typing import ClassVar


class PluginsvcError(Exception):
    """Root of every error that this program raises on purpose."""

    status: ClassVar[int] = 500

    def __init__(self, *args: object) -> None:
        # names of files, which plugins may choose, need not be UTF-8; what is told and written down has to be
        super().__init__(*(a.encode(errors="backslashreplace").decode() if isinstance(a, str) else a for a in args))


class InvalidParameter(PluginsvcError):
    """The caller's input is wrong."""

    status = 400


class Unauthorized(PluginsvcError):
    """A registry wants credentials, or others than it got."""

    status = 401


class Forbidden(PluginsvcError):
    """Understood and refused."""

    status = 403


class NotFound(PluginsvcError):
    """There is no such thing."""

    status = 404


class Conflict(PluginsvcError):
    """The request is right, the state of its subject is not."""

    status = 409


class Cancelled(PluginsvcError):
    """The caller went away before the commit; logged, never sent."""

    status = 499


class Internal(PluginsvcError):
    """Our fault, or the machine's: a full disk, a runtime that fails."""

    status = 500


class NotImplementedHere(PluginsvcError):
    """Docker has it, this daemon does not."""

    status = 501


class Unavailable(PluginsvcError):
    """Somebody we depend on does not answer now; trying again may help."""

    status = 503


KINDS: tuple[type[PluginsvcError], ...] = (
    InvalidParameter,
    Unauthorized,
    Forbidden,
    NotFound,
    Conflict,
    Cancelled,
    Internal,
    NotImplementedHere,
    Unavailable,
)


def first_leaf(error: BaseException) -> BaseException:
    """Reduce an exception group to the leaf worth showing.

    The first leaf of our own tree wins, then the first leaf at all; a plain exception is returned as it is.
    """
    leaves: list[BaseException] = []
    queue: list[BaseException] = [error]
    while queue:
        current = queue.pop(0)
        if isinstance(current, BaseExceptionGroup):
            queue[:0] = current.exceptions
        else:
            leaves.append(current)
    for leaf in leaves:
        if isinstance(leaf, PluginsvcError):
            return leaf
    return leaves[0]

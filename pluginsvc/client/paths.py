"""Where the API has what: paths made of what somebody has typed."""

from __future__ import annotations

from urllib.parse import quote

from pluginsvc.errors import InvalidParameter
from pluginsvc.model.plugin import Capability


class InvalidName(InvalidParameter):
    """No plugin can have this name, and in a path it would mean something else."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"invalid plugin name or ID {name!r}: no part between slashes may be empty, '.' or '..'")


def plugin_path(name: str, what: str = "") -> str:
    """Return the path of an endpoint of a plugin.

    Args:
        name: name, ID or prefix of one, as typed.
        what: last part of the path; empty for the plugin itself.

    Raises:
        InvalidName: the daemon would read another path out of it.
    """
    if not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise InvalidName(name)
    return f"/plugins/{quote(name, safe='/:@')}" + (f"/{what}" if what else "")


def native_path(name: str, what: str) -> str:
    """Return the path of what our own API offers for a plugin; see ``plugin_path``."""
    return f"/pluginsvc/v1{plugin_path(name, what)}"


def capability_path(text: str, what: str = "") -> str:
    """Return the path of what our own API offers for a capability.

    Args:
        text: as typed, see ``Capability.wanted``.
        what: last part of the path; empty for who provides it.

    Raises:
        InvalidCapability: nobody can provide it.
    """
    Capability.wanted(text)
    return f"/pluginsvc/v1/capabilities/{quote(text, safe='/')}" + (f"/{what}" if what else "")

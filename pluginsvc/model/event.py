"""Lifecycle events: frozen facts, numbered in the transaction that made them true (REF 3.12, design D1)."""

from __future__ import annotations

import msgspec


class EngineView(msgspec.Struct, frozen=True, kw_only=True):
    """How the Engine's ``/events`` names the actor, which is not always the plugin's ID and name (REF 3.12).

    Attributes:
        actor: ``Actor.ID``: the plugin ID, or for ``pull`` the familiar remote reference.
        name: ``Actor.Attributes.name``: for enable, disable and remove what the caller typed.
    """

    actor: str
    name: str


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One change of one plugin.

    Attributes:
        action: ``create pull upgrade set update enable disable push remove exit restart health_status``; ``unreadable``
            for one of which the disk has kept nothing but the number.
        plugin_id: 64 hex digits.
        plugin_name: familiar local name with tag.
        attributes: more facts, all text.
        engine: how Docker's stream shows it; ``None`` hides it there.
        seq: number in the journal; 0 until it is written.
        time_ns: nanoseconds since the epoch; 0 until it is written.
    """

    action: str
    plugin_id: str
    plugin_name: str
    attributes: dict[str, str] = {}
    engine: EngineView | None = None
    seq: int = 0
    time_ns: int = 0


class Gap(msgspec.Struct, frozen=True):
    """Events that a consumer cannot have any more.

    Attributes:
        after: the last number it has.
        oldest: the oldest number that is kept, with which it goes on; not above ``after`` when the journal is a new
            one and numbers began anew.
    """

    after: int
    oldest: int

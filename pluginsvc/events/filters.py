"""The Engine's ``/events``: which events it shows, and how (REF 1.7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from pluginsvc.model.event import Event

_TYPE = "plugin"
_SCOPE = "local"
_ENCODER = msgspec.json.Encoder()


def engine_filter(filters: Mapping[str, Sequence[str]]) -> Callable[[Event], bool]:
    """Return a predicate: terms are ANDed, the values of a term ORed, unknown terms and empty ones say nothing.

    Args:
        filters: decoded ``filters`` parameter; ``type``, ``event`` and ``scope`` match exactly, ``plugin`` is the
            actor's ID or name or a prefix of one, ``label`` is ``key`` or ``key=value`` of the actor's attributes.
    """
    terms = {term: frozenset(values) for term, values in filters.items() if values}
    of_this_kind = _TYPE in terms.get("type", {_TYPE}) and _SCOPE in terms.get("scope", {_SCOPE})
    actions = terms.get("event")
    prefixes = tuple(terms.get("plugin", ()))
    labels = terms.get("label")

    def wanted(event: Event) -> bool:
        view = event.engine
        if view is None or not of_this_kind:
            return False
        if actions is not None and event.action not in actions:
            return False
        if prefixes and not view.actor.startswith(prefixes) and not view.name.startswith(prefixes):
            return False
        return labels is None or "name" in labels or f"name={view.name}" in labels

    return wanted


def engine_message(event: Event) -> bytes:
    """Return the JSON of an event that Docker's stream shows; exactly Moby's members, no newline.

    Args:
        event: written to the journal, with an Engine view.
    """
    assert event.engine is not None
    return _ENCODER.encode(
        {
            "Type": _TYPE,
            "Action": event.action,
            "Actor": {"ID": event.engine.actor, "Attributes": {"name": event.engine.name}},
            "scope": _SCOPE,
            "time": event.time_ns // 1_000_000_000,
            "timeNano": event.time_ns,
        }
    )

"""Which events a reader wants: the Engine's ``filters`` (REF 1.7), and the same for our own stream."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from pluginsvc.errors import InvalidParameter
from pluginsvc.events.bus import everything
from pluginsvc.model.event import Event
from pluginsvc.model.filters import parse_filters

_TYPE = "plugin"
_SCOPE = "local"
_NATIVE_TERMS = ("event", "plugin")
_SHARED = 1024
"""Characters up to which a filter is kept for the next who asks for it: what is kept must stay small."""


class UnknownTerm(InvalidParameter):
    """A filter of our own stream has a term it does not know, which would show all where little was asked for."""

    def __init__(self, term: str) -> None:
        self.term = term
        super().__init__(f"invalid filter '{term}': events are filtered by {' and '.join(_NATIVE_TERMS)}")


def engine_filter(text: str) -> Callable[[Event], bool]:
    """Return a predicate: terms are ANDed, the values of a term ORed, unknown terms and empty ones say nothing.

    Args:
        text: the ``filters`` parameter; ``type``, ``event`` and ``scope`` match exactly, ``plugin`` is the actor's ID
            or name or a prefix of one, ``label`` is ``key`` or ``key=value`` of the actor's attributes.

    Raises:
        InvalidFilter: it is malformed.
    """
    return _shared_engine_filter(text) if len(text) <= _SHARED else _engine_filter(text)


def _engine_filter(text: str) -> Callable[[Event], bool]:
    terms = {term: frozenset(values) for term, values in parse_filters(text).items() if values}
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


def native_filter(text: str) -> Callable[[Event], bool]:
    """Return a predicate over all events, in the same grammar.

    Args:
        text: the ``filters`` parameter; ``event`` matches an action exactly, ``plugin`` the plugin's ID or name or a
            prefix of one.

    Raises:
        InvalidFilter: it is malformed.
        UnknownTerm: it has another term.
    """
    return _shared_native_filter(text) if len(text) <= _SHARED else _native_filter(text)


def _native_filter(text: str) -> Callable[[Event], bool]:
    terms = {term: values for term, values in parse_filters(text).items() if values}
    for term in terms:
        if term not in _NATIVE_TERMS:
            raise UnknownTerm(term)
    if not terms:
        return everything
    actions = frozenset(terms.get("event", ()))
    prefixes = tuple(terms.get("plugin", ()))

    def wanted(event: Event) -> bool:
        if actions and event.action not in actions:
            return False
        return not prefixes or event.plugin_id.startswith(prefixes) or event.plugin_name.startswith(prefixes)

    return wanted


# the same text gives the same function: subscribers that share one are filtered for only once
_shared_engine_filter = lru_cache(maxsize=64)(_engine_filter)
_shared_native_filter = lru_cache(maxsize=64)(_native_filter)

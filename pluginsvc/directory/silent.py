"""Legacy plugins that did not answer, and are left out of lists for a while."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import structlog

from pluginsvc.directory.discovery import Found

_MAX_HOLD = 60.0
_log = structlog.get_logger()


class _Failure(NamedTuple):
    found: Found
    reason: str
    hold: float
    until: float


class Silent:
    """Keeps them in mind: the longer, the longer it took that they failed and the more often they did.

    Args:
        clock: tells seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: dict[str, _Failure] = {}

    def __contains__(self, found: Found) -> bool:
        """Tell whether it has failed as it is, and is not yet to be asked again."""
        failure = self._failures.get(found.name)
        return failure is not None and failure.found == found and failure.until > self._clock()

    def before(self, name: str) -> bool:
        """Tell whether one of that name has failed."""
        return name in self._failures

    def add(self, found: Found, reason: str, *, started: float) -> float:
        """Keep in mind that one has failed to what was begun at a time; return when it is to be asked again."""
        known = self._failures.get(found.name)
        again = known if known is not None and known.found == found else None
        if again is None or again.reason != reason:
            _log.warning("legacy.silent", plugin=found.name, file=str(found.file), error=reason)
        now = self._clock()
        hold = min(_MAX_HOLD, max(1.0, 12 * (now - started), 2 * again.hold if again else 0.0))
        self._failures[found.name] = _Failure(found, reason, hold, now + hold)
        return now + hold

    def forget(self, name: str) -> None:
        """It has answered."""
        self._failures.pop(name, None)

    def keep(self, names: Collection[str]) -> None:
        """Forget all others, which are gone."""
        self._failures = {name: failure for name, failure in self._failures.items() if name in names}

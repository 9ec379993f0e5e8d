"""How long the journal keeps events: by age, number and size, whichever comes first."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import structlog

from pluginsvc.errors import PluginsvcError
from pluginsvc.state import journal
from pluginsvc.state.database import Database
from pluginsvc.tasks import every

_log = structlog.get_logger()
PRUNE_EVERY = 60.0
_AT_ONCE = 500
"""Events deleted in one transaction: a few milliseconds for which a change may have to wait."""


@dataclass(frozen=True, slots=True)
class Retention:
    """The bounds.

    Attributes:
        events: how many are kept.
        bytes: of text that are kept.
        seconds: for how long.
    """

    events: int
    bytes: int
    seconds: float

    async def serve(self, database: Database) -> None:
        """Prune once a minute; trouble is logged, and the next minute tries again."""
        async for _ in every(PRUNE_EVERY):
            try:
                await self.prune(database)
            except Exception as exc:  # noqa: BLE001 - isolated: a journal that grows ends nothing
                known = isinstance(exc, PluginsvcError)
                _log.warning("journal.not_pruned", error=str(exc), exc_info=None if known else exc)

    async def prune(self, database: Database) -> int:
        """Delete what is over a bound, in transactions between which others get their turn; return how many went.

        Raises:
            StateError: the database failed.
        """
        before = time.time_ns() - int(self.seconds * 1e9)
        work = partial(journal.prune, events=self.events, bytes_=self.bytes, before_ns=before, limit=_AT_ONCE)
        total = 0
        while gone := await database.write(work):
            total += gone
        return total

"""Trying again what a registry could not do just now (REF 4.1)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio
import structlog

from pluginsvc.registry.errors import RegistryFault

T = TypeVar("T")
ATTEMPTS: Final = 5
PAUSE: Final = 0.5
"""Seconds before the second attempt; doubled before each further one."""
LONGEST: Final = 60.0
"""Seconds of ``Retry-After`` that are worth waiting for; a registry that asks for more is given up on."""
_log = structlog.get_logger()


async def retrying(work: Callable[[], Awaitable[T]], *, pause: float = PAUSE) -> T:
    """Do ``work``, up to five times while its faults are temporary.

    Args:
        work: starts over, or goes on where it ended, when called again.
        pause: seconds before the second attempt, unless the registry says how long to wait.

    Raises:
        RegistryFault: the first that is not temporary, or the fifth.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return await work()
        except RegistryFault as exc:
            wait = pause * 2**attempt if exc.retry_after is None else max(exc.retry_after, 0)
            if not exc.temporary or wait > LONGEST:
                raise
            _log.info("transfer.retry", attempt=attempt + 1, wait=wait, error=str(exc))
        await anyio.sleep(wait)
    return await work()

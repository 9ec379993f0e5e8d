"""What a plugin is doing, as opposed to what is wished of it (design D2): states, how they follow each other, restarts.

Pure: no clock, no chance, no I/O; all of that is handed in.
"""

from __future__ import annotations

from typing import Any, Final, Literal, Self

import msgspec

State = Literal[
    "stopped", "starting", "running", "healthy", "unhealthy", "backing-off", "crash-loop", "stopping", "removing"
]

FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 60.0
HEALTHY_AFTER: Final = 10.0
"""Seconds a plugin has to run for its earlier failures not to count any more."""

UP: Final[frozenset[State]] = frozenset({"running", "healthy", "unhealthy"})
"""It has opened its socket and has not ended."""

WAITING: Final[frozenset[State]] = frozenset({"backing-off", "crash-loop"})
"""It will be started again."""


def _states(*names: State) -> frozenset[State]:
    return frozenset(names)


_ENDS: Final = ("stopped", "backing-off", "crash-loop", "stopping")

NEXT: Final[dict[State, frozenset[State]]] = {
    "stopped": _states("starting", "stopping", "removing"),
    "starting": _states("running", *_ENDS),
    "running": _states("healthy", "unhealthy", *_ENDS),
    "healthy": _states("unhealthy", *_ENDS),
    "unhealthy": _states("healthy", *_ENDS),
    "backing-off": _states("starting", "stopping"),
    "crash-loop": _states("starting", "stopping"),
    # back to starting: what was to stop it has failed, and the wish stands
    "stopping": _states("stopped", "starting", "removing"),
    "removing": _states("starting", "stopped"),
}
"""State → those that may follow it."""


class IllegalTransitionError(AssertionError):
    """Our own code moves a plugin where it cannot go: a bug, never an operator's mistake."""

    def __init__(self, old: State, new: State) -> None:
        self.old, self.new = old, new
        super().__init__(f"no plugin goes from {old} to {new}")


class Ended(msgspec.Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=True):
    """How a plugin's process last ended.

    Attributes:
        code: exit code, or 128 and the signal.
        signal: what killed it, if anything did.
        oom: whether the kernel ran out of memory for it.
        time_ns: when we noted it, in nanoseconds since the epoch.
        container: which start of the plugin that was, so that no end is noted twice.
    """

    code: int
    signal: int | None = None
    oom: bool = False
    time_ns: int
    container: str = ""

    def __str__(self) -> str:
        """Say it as a person would."""
        how = f"killed by signal {self.signal}" if self.signal else f"exited with code {self.code}"
        return f"{how}, the kernel ran out of memory for it" if self.oom else how


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a plugin's actual state; one row of the database beside its record.

    Attributes:
        state: see ``NEXT``.
        since_ns: when it came into that state, in nanoseconds since the epoch.
        reason: why, for people.
        boot: boot ID when that was.
        exit: the last end of its process.
        restarts: how many times it was started again since it was enabled.
        failures: ends and failed starts in a row, without ``HEALTHY_AFTER`` seconds of running in between.
        next_ns: when it will be started again, while it waits for that.
    """

    state: State = "stopped"
    since_ns: int = 0
    reason: str = ""
    boot: str = ""
    exit: Ended | None = None
    restarts: int = 0
    failures: int = 0
    next_ns: int | None = None

    def to(self, state: State, *, now_ns: int, reason: str, **change: Any) -> Self:
        """Return the status after a move.

        Args:
            state: where to.
            now_ns: nanoseconds since the epoch.
            reason: why.
            change: other fields that change with it; ``next_ns`` is gone unless it is among them.

        Raises:
            IllegalTransitionError: there is no such move.
        """
        if state not in NEXT[self.state]:
            raise IllegalTransitionError(self.state, state)
        fields = {"state": state, "since_ns": now_ns, "reason": reason, "next_ns": None} | change
        return msgspec.structs.replace(self, **fields)

    def found(self, state: State, *, reason: str) -> Self:
        """Return the status of a plugin that a new daemon finds so, whatever an old one had seen."""
        return self if state == self.state else msgspec.structs.replace(self, state=state, reason=reason, next_ns=None)


class Retry(msgspec.Struct, frozen=True):
    """What comes after a life that ended, or never began.

    Attributes:
        state: ``backing-off`` or ``crash-loop``; ``stopped`` when the policy has it so.
        delay: seconds until the next try.
        failures: in a row, this one included.
    """

    state: State
    delay: float
    failures: int


def after_life(policy: str, *, lived: float, failed: bool, failures: int, burst: int, spread: float) -> Retry:
    """Decide what follows (REF 3.6; no limit there, 7.35).

    Args:
        policy: ``always``, ``on-failure[:MAX]`` or ``no``.
        lived: seconds for which the plugin was up.
        failed: false only when it ended by itself with exit code 0.
        failures: in a row, before this.
        burst: number in a row from which on it counts as a crash loop.
        spread: factor around 1 that keeps plugins that fell together from rising together.
    """
    failures = 1 if lived >= HEALTHY_AFTER else failures + 1
    kind, _, limit = policy.partition(":")
    again = kind == "always" or (kind == "on-failure" and failed and (not limit or failures <= int(limit)))
    if not again:
        return Retry("stopped", 0.0, failures)
    if failures >= burst:
        return Retry("crash-loop", LONGEST_DELAY * spread, failures)
    return Retry("backing-off", min(FIRST_DELAY * 2 ** min(failures - 1, 60), LONGEST_DELAY) * spread, failures)

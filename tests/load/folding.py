"""The list of plugins after each of the last events, for lists that begin with a snapshot to be compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tests.support.fold import Fold, FoldError, View

_KEPT = 4096
"""Events whose list is remembered: nobody who folds is further behind."""


class History:
    """Folded from the first event on.

    Attributes:
        actions: how many events there were of each.
    """

    def __init__(self) -> None:
        self._fold = Fold()
        self._lists: dict[int, dict[str, View]] = {0: {}}
        # lists as of events that are yet to come here
        self._waiting: dict[int, list[dict[str, View]]] = {}
        self.actions: Counter[str] = Counter()

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take the next event.

        Raises:
            FoldError: it does not fit, or another's list was different.
        """
        self._fold.apply(event)
        self.actions[event["action"]] += 1
        seq = self._fold.seq
        self._lists[seq] = dict(self._fold.plugins)
        self._lists.pop(seq - _KEPT, None)
        for other in self._waiting.pop(seq, ()):
            self._compare(seq, other)

    def compare(self, fold: Fold) -> None:
        """Compare a list, now or once we have its event.

        Raises:
            FoldError: it is different.
        """
        if fold.seq > self._fold.seq:
            self._waiting.setdefault(fold.seq, []).append(dict(fold.plugins))
        else:
            self._compare(fold.seq, fold.plugins)

    def views(self) -> list[dict[str, str]]:
        """Return the list as it is now."""
        return [asdict(view) for view in self._fold.plugins.values()]

    def unchecked(self) -> int:
        """Return how many lists are as of events that never came."""
        return sum(map(len, self._waiting.values()))

    def _compare(self, seq: int, other: Mapping[str, View]) -> None:
        mine = self._lists.get(seq)
        if mine is None:
            raise FoldError(f"a list of event {seq} came {self._fold.seq - seq} events late")
        if mine != other:
            odd = sorted(map(repr, {*mine.values()} ^ {*other.values()}))[:4]
            raise FoldError(f"as of event {seq} a snapshot and the events before it differ: {odd}")

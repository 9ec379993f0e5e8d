"""Many latencies in little room: counted in buckets at most 3 % wide, so that millions cost a few kilobytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

_FINE = 5
"""Bits of a number that count: 32 buckets for each doubling."""


def bucket(microseconds: int) -> int:
    """Return the number of the bucket for a latency; whole below 64."""
    coarse = max(0, microseconds.bit_length() - _FINE - 1)
    return (coarse << _FINE) + (microseconds >> coarse)


def highest(number: int) -> int:
    """Return the longest latency that falls into a bucket, in microseconds."""
    coarse = max(0, (number >> _FINE) - 1)
    return (((number - (coarse << _FINE)) + 1) << coarse) - 1


def count(seconds: Iterable[float]) -> dict[int, int]:
    """Return how many latencies fall into each bucket."""
    found: dict[int, int] = {}
    for value in seconds:
        number = bucket(max(0, int(value * 1e6)))
        found[number] = found.get(number, 0) + 1
    return found


def merged(parts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """Return the sum of counts."""
    found: dict[int, int] = {}
    for part in parts:
        for number, times in part.items():
            found[number] = found.get(number, 0) + times
    return found


def percentile(counts: Mapping[int, int], percent: float) -> float:
    """Return the smallest latency that at least so many percent are not above (the nearest rank), in seconds.

    Not a number when there are none.
    """
    rank = max(1, math.ceil(sum(counts.values()) * percent / 100))
    for number in sorted(counts):
        rank -= counts[number]
        if rank <= 0:
            return highest(number) / 1e6
    return math.nan


def summary(counts: Mapping[int, int], percents: Sequence[float] = (50, 95, 99, 100)) -> dict[str, float]:
    """Return percentiles in seconds: ``p50``, ``p95``, ``p99`` and ``max``."""
    return {("max" if percent == 100 else f"p{percent:g}"): percentile(counts, percent) for percent in percents}

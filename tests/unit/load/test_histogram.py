"""Latencies in buckets."""

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from tests.bench.latency import percentile as exact
from tests.load.histogram import bucket, count, highest, merged, percentile, summary


@given(st.integers(0, 10**10))
def test_a_bucket_holds_what_is_near(microseconds: int) -> None:
    """A latency is at most 3.2 % above the one before its bucket, never above its end, and buckets are in order."""
    end = highest(bucket(microseconds))
    assert microseconds <= end <= microseconds * (1 + 1 / 31)
    assert bucket(end) == bucket(microseconds) == bucket(end + 1) - 1


def test_percentiles_are_the_exact_ones_but_for_the_width_of_a_bucket() -> None:
    """Nearest rank, as the bench counts it; of parts that are put together as well."""
    values = [random.Random(1).expovariate(100) for _ in range(5000)]
    parts = [count(values[:100]), count(values[100:])]
    for percent in (1, 50, 95, 99, 100):
        found = percentile(merged(parts), percent)
        assert exact(values, percent) - 1e-6 <= found <= exact(values, percent) * 1.033


def test_of_nothing_there_is_no_percentile() -> None:
    """It is not a number, so that no bound on it can hold."""
    assert math.isnan(percentile({}, 99))
    assert not percentile({}, 99) <= 1
    assert set(summary({5: 1})) == {"p50", "p95", "p99", "max"}

"""The search for the highest rate that holds."""

import pytest

from tests.load.highest import search

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("limit", [1.5, 3, 9.9, 10, 37, 81, 640, 1000])
async def test_it_ends_within_a_tenth_of_the_highest_rate(limit: float) -> None:
    """Doubling, then halving between, finds what still holds, in a dozen steps at most."""
    tried: list[float] = []

    async def attempt(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    found = await search(attempt, 10, time_is_up=lambda: False)
    assert limit / 1.1 <= found <= limit
    assert len(tried) == len(set(tried)) <= 12


async def test_it_ends_when_nothing_holds_or_the_time_is_up() -> None:
    """Rates below one a second are not tried, and none at all after the time."""
    tried: list[float] = []

    async def attempt(rate: float) -> bool:
        tried.append(rate)
        return False

    assert await search(attempt, 10, time_is_up=lambda: False) == 0
    assert tried == [10, 5, 2.5, 1.25]
    assert await search(attempt, 10, time_is_up=lambda: len(tried) >= 4) == 0
    assert len(tried) == 4

"""Points in time, as typed."""

import datetime as dt

import pytest

from pluginsvc.client.when import InvalidTime, timestamp

NOW = dt.datetime(2026, 11, 22, 12, 0, 0, 500_000, dt.UTC)
SECONDS = 1_795_348_800


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", "0"),
        ("1700000000", "1700000000"),
        ("1700000000.123456789", "1700000000.123456789"),
        ("0s", f"{SECONDS}.500000"),
        ("1h30m", f"{SECONDS - 5400}.500000"),
        ("1.5s", f"{SECONDS - 1}.000000"),
        ("250ms", f"{SECONDS}.250000"),
        ("2026-11-22T12:00:00Z", f"{SECONDS}.000000"),
        ("2026-11-22T13:00:00.25+01:00", f"{SECONDS}.250000"),
    ],
)
def test_forms(text: str, expected: str) -> None:
    """Seconds pass as they are, spans go back from now, dates know their offset."""
    assert timestamp(text, NOW) == expected


def test_local_time() -> None:
    """A date without an offset is local time."""
    local = dt.datetime.fromtimestamp(SECONDS, dt.UTC).astimezone().replace(tzinfo=None)
    assert timestamp(local.isoformat(), NOW) == f"{SECONDS}.000000"


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "1x", "m", "1h ", "1.2.3", "yesterday", "1969-12-31T00:00:00Z", "9" * 13, "999999999h"],
)
def test_no_time(text: str) -> None:
    """What is in none of the forms, or before 1970, is refused with the forms there are."""
    with pytest.raises(InvalidTime, match="RFC 3339"):
        timestamp(text, NOW)

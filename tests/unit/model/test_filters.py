"""The filters parameter in both forms (REF 1.7, 3.8)."""

import pytest

from pluginsvc.model.filters import InvalidFilter, parse_filters


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("{}", {}),
        ('{"enabled":["true"]}', {"enabled": ["true"]}),
        ('{"enabled":{"true":true}}', {"enabled": ["true"]}),
        ('{"enabled":{"true":false}}', {"enabled": []}),
        ('{"a":{"x":true,"y":true},"b":["z"]}', {"a": ["x", "y"], "b": ["z"]}),
        ('{"a":[]}', {"a": []}),
        ('{"a":{}}', {"a": []}),
        ('{"":[""]}', {"": [""]}),
    ],
)
def test_both_forms(text: str, found: dict[str, list[str]]) -> None:
    """Lists and maps to true mean the same; what maps to false is left out; nothing is no filter."""
    assert parse_filters(text) == found


@pytest.mark.parametrize(
    "text",
    ["x", "[]", "5", '"a"', '{"a":5}', '{"a":"b"}', '{"a":[5]}', '{"a":{"b":1}}', '{"a":{"b":"true"}}',
     '{"a":{"b":null}}', '{"a":[null]}', '{"a"', '{"a":["b"]} x', "[" * 200_000, '{"a":' * 100_000, "\ud800"],
    ids=lambda text: repr(text)[:20],
)  # fmt: skip
def test_malformed(text: str) -> None:
    """Anything else is an invalid filter."""
    with pytest.raises(InvalidFilter, match=r"^invalid filter$"):
        parse_filters(text)


def test_detail_is_quoted() -> None:
    """A filter that is refused by name is named as Docker does."""
    assert str(InvalidFilter("enabled=[potato]")) == "invalid filter 'enabled=[potato]'"

"""The content type of the event stream."""

import pytest

from pluginsvc.api.events import content_type


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/jsonl", "application/jsonl"),
        ("text/html, Application/X-NDJSON;q=0.5", "application/x-ndjson"),
        ("application/json-seq", "application/json-seq"),
        ("application/jsonlines", "application/json"),
    ],
)
def test_content_type(accept: str, kind: str) -> None:
    """Only a type that Accept names exactly replaces the old one."""
    assert content_type(accept) == kind

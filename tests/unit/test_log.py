"""Logging: levels that can change, secrets that never show."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from pluginsvc import log

_log = structlog.get_logger()


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_level_can_change_after_first_use(capsys: pytest.CaptureFixture[str]) -> None:
    """A logger that has been used follows a later change of the level."""
    log.configure(level="info", style="json")
    _log.info("one")
    log.configure(level="error", style="json")
    _log.info("two")
    log.configure(level="debug", style="json")
    _log.debug("three")
    assert [line["event"] for line in lines(capsys)] == ["one", "three"]


@pytest.mark.parametrize("key", ["password", "identity_token", "X-Registry-Auth-Token", "Authorization", "secret_key"])
def test_secrets_are_masked(capsys: pytest.CaptureFixture[str], key: str) -> None:
    """Values under keys that sound secret, and logins in URLs, are masked."""
    log.configure(style="json")
    _log.info("x", **{key: "hunter2"}, url="https://user:hunter2@host/v2/")
    (line,) = lines(capsys)
    assert line[key] == "***"
    assert line["url"] == "https://***@host/v2/"


def test_lines_say_which_request_they_are_of(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of a request carry its ID, others carry none."""
    log.configure(style="json")
    token = log.request_id.set("r-1")
    _log.info("inside")
    log.request_id.reset(token)
    _log.info("outside")
    assert [line.get("request_id") for line in lines(capsys)] == ["r-1", None]

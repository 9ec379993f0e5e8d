"""The level of a line of output."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.model.output import Stream
from pluginsvc.runtime.levels import Level, level_of


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('time="2026-11-22T14:50:20Z" level=warning msg="a volume is gone"', "warning"),
        ("level=debug msg=x", "debug"),
        ('ts=1 lvl=eror msg="it failed"', "error"),
        ('caller=a.go severity="INFO"', "info"),
        ("sealevel=error", "info"),
        ("level=often", "info"),
        ('{"level":"warn","msg":"x"}', "warning"),
        ('{"severity":"CRITICAL","message":"x"}', "error"),
        ('{"level":20,"msg":"pino"}', "debug"),
        ('{"name":"bunyan","level":50}', "error"),
        ('{"level":4,"short_message":"gelf"}', "warning"),
        ('{"level":null,"severity":"debug"}', "debug"),
        ('{"level":-1}', "info"),
        ('{"level":1e308}', "error"),
        ('{"level":["error"]}', "info"),
        ('{"level":"error"', "info"),
        ("I1122 14:50:20.126316       1 server.go:10] up", "info"),
        ("W1122 14:50:20.126316       1 server.go:10] slow", "warning"),
        ("F1122 14:50:20.126316       1 server.go:10] gone", "error"),
        ("E2E tests", "info"),
        ("<3>disk is on fire", "error"),
        ("<7>chatter", "debug"),
        ("<165>1 2003-08-24T05:14:15Z a notice of local4", "info"),
        ("<999>no priority", "info"),
        ("<b>bold</b>", "info"),
        ("", "info"),
    ],
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_structured_lines_say_their_level(stream: Stream, line: str, expected: Level) -> None:
    """What logfmt, JSON, klog and syslog say counts, whichever stream it is on."""
    assert level_of(stream, line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ERROR something broke", "error"),
        ("ERROR: something broke", "error"),
        ("[ERROR] something broke", "error"),
        ("Error: something broke", "error"),
        ("error: something broke", "error"),
        ("fatal error: all goroutines are asleep", "error"),
        ("panic: runtime error", "error"),
        ("2026/11/22 14:50:20 FATAL no socket", "error"),
        ("2026-11-22T14:50:20.123Z [warn] slow", "warning"),
        ("[2026-11-22 14:50:20,123] WARNING: slow", "warning"),
        ("DEBUG x", "debug"),
        ("Traceback (most recent call last):", "error"),
        ("error handling is set up", "info"),
        ("errors: 0", "info"),
        ("listening on /run/docker/plugins/p.sock", "info"),
        ("HTTP 500 ERROR", "info"),
        ("2026/11/22 14:50:20 listening", "info"),
    ],
)
def test_plain_words_count_on_stderr(line: str, expected: Level) -> None:
    """Words that begin a complaint count on stderr; data on stdout may begin with them; all else is information."""
    assert level_of("stderr", line) == expected
    assert level_of("stdout", line) == "info"


@given(st.sampled_from(["stdout", "stderr"]), st.text(alphabet=st.characters(codec=None)))
def test_any_line_has_a_level(stream: Stream, line: str) -> None:
    """No text makes it fail."""
    for begin in ("", "{", "[", "<", "E1122 ", "level=", "2026-"):
        assert level_of(stream, begin + line) in {"debug", "info", "warning", "error"}


@pytest.mark.parametrize("piece", ["1", "[", "{", '{"a":', " level=", "2026-11-22 ", "E", " ", "<1", "ERROR", "\\x1b"])
def test_long_lines_cost_little(piece: str) -> None:
    """Lines of 16 KiB that nearly match are dealt with in less than a millisecond each."""
    line = (piece * 16384)[:16384]
    began = time.process_time()
    for _ in range(20):
        level_of("stderr", line)
    assert time.process_time() - began < 0.02

"""Reading query, headers, path and version."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from pluginsvc.api import params
from pluginsvc.errors import InvalidParameter
from pluginsvc.model.auth import ANONYMOUS


@pytest.mark.parametrize("text", ["", "0", "no", "false", "none", " False ", "NONE"])
def test_false(text: str) -> None:
    """These spellings are false, in any case and with spaces around."""
    assert not params.boolean({"force": text}, "force")


@pytest.mark.parametrize("text", ["1", "true", "True", "yes", "x", "00", "-"])
def test_true(text: str) -> None:
    """Anything else is true."""
    assert params.boolean({"force": text}, "force")


def test_a_missing_flag_is_false() -> None:
    """A flag that is not in the query is false."""
    assert not params.boolean({}, "force")


@pytest.mark.parametrize("query", ["", "a", "a=b&&c=%2f%41", "%ff=%00&=", "a==%3b&+"])
def test_queries(query: str) -> None:
    """What Go takes for a query, bytes that are no UTF-8 included, passes."""
    params.check_query(query)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (";", "invalid semicolon separator in query"),
        ("a=1&b=%zz;", "invalid semicolon separator in query"),
        ("a=%zz&b;", 'invalid URL escape "%zz"'),
        ("a=%z&b", 'invalid URL escape "%z"'),
        ("%=1", 'invalid URL escape "%"'),
        ("a=%4", 'invalid URL escape "%4"'),
        ("a=%%41", 'invalid URL escape "%%4"'),
        ("a=%\n12", 'invalid URL escape "%\\n1"'),
    ],
)
def test_queries_that_go_refuses(query: str, text: str) -> None:
    """The first thing that is wrong is told with Go's text."""
    with pytest.raises(InvalidParameter) as caught:
        params.check_query(query)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("30", 30), ("-5", -5), ("+7", 7), ("-9223372036854775808", -(2**63)), ("007", 7)]
)
def test_integer(text: str, number: int) -> None:
    """What Go's Atoi reads, we read."""
    assert params.integer(text) == number


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'strconv.Atoi: parsing "": invalid syntax'),
        ("x", 'strconv.Atoi: parsing "x": invalid syntax'),
        ("1_0", 'strconv.Atoi: parsing "1_0": invalid syntax'),
        (" 1", 'strconv.Atoi: parsing " 1": invalid syntax'),
        ("١", 'strconv.Atoi: parsing "١": invalid syntax'),
        ("1\n", 'strconv.Atoi: parsing "1\\n": invalid syntax'),
        ('"', 'strconv.Atoi: parsing "\\"": invalid syntax'),
        ("9223372036854775808", 'strconv.Atoi: parsing "9223372036854775808": value out of range'),
    ],
)
def test_integer_refused(text: str, message: str) -> None:
    """What is no 64-bit number is refused with Go's text."""
    with pytest.raises(InvalidParameter) as caught:
        params.integer(text)
    assert str(caught.value) == message


def test_thousands_of_digits_are_out_of_range() -> None:
    """A number longer than Python converts is refused like any other that is too large."""
    with pytest.raises(InvalidParameter, match="value out of range"):
        params.integer("9" * 60_000)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("", None),
        ("-1", None),
        ("0", 0),
        ("5", 5_000_000_000),
        ("1795341949.385363917", 1795341949385363917),
        ("5.5", 5_500_000_000),
        ("5.000000001999", 5_000_000_001),
        ("-2", -2_000_000_000),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_event_time(text: str, nanoseconds: int | None) -> None:
    """Seconds and a fraction become nanoseconds that fit 64 bits; -1 means "not given", as in Docker."""
    assert params.event_time({"since": text}, "since") == nanoseconds


@pytest.mark.parametrize("text", ["x", "1.x", "1.", "1.-5", "2026-11-22T00:00:00Z", "10m", "1.²"])
def test_event_time_refused(text: str) -> None:
    """Anything else is refused and the parameter is named."""
    with pytest.raises(InvalidParameter, match=r"^invalid value for 'until': strconv.ParseInt: parsing "):
        params.event_time({"until": text}, "until")


@pytest.mark.parametrize(
    ("smaller", "larger"), [("1.9", "1.24"), ("1.24", "1.24.1"), ("1", "1.1"), ("..", "0.1"), ("1.47", "2")]
)
def test_versions_compare_by_number(smaller: str, larger: str) -> None:
    """Versions compare part by part as numbers."""
    assert params.version_key(smaller) < params.version_key(larger)


def test_versions_may_be_hostile() -> None:
    """Versions with equal parts are equal, and a very long one is only very high."""
    assert params.version_key("1.24.0") == params.version_key("1.24")
    assert params.version_key("9" * 60_000) > params.version_key("1.47")


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        ("/", "/"),
        ("/plugins", "/plugins"),
        ("/plugins/", "/plugins/"),
        ("//plugins", "/plugins"),
        ("/a/../plugins", "/plugins"),
        ("/a/./b", "/a/b"),
        ("/../../etc", "/etc"),
        ("///", "/"),
        ("//", "/"),
        ("*", "/*"),
    ],
)
def test_clean_path(path: str, cleaned: str) -> None:
    """Empty parts and dots go, a slash at the end stays."""
    assert params.clean_path(path) == cleaned


@given(st.text(alphabet="/.ab", max_size=20))
def test_a_cleaned_path_is_clean(path: str) -> None:
    """Cleaning twice changes nothing more, so a redirect cannot loop."""
    cleaned = params.clean_path(path)
    assert params.clean_path(cleaned) == cleaned
    assert "//" not in cleaned
    assert not {".", ".."} & set(cleaned.split("/"))


@pytest.mark.parametrize(
    ("text", "quoted"),
    [("a", '"a"'), ('a"b', '"a\\"b"'), ("\n\\\x00", '"\\n\\\\\\x00"'), ("é", '"é"'), ("\u200b", '"\\u200b"')],
)
def test_go_quote(text: str, quoted: str) -> None:
    """Text is quoted as Go's %q does."""
    assert params.go_quote(text) == quoted


def _headers(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


def test_registry_access() -> None:
    """Credentials, X-Meta headers and the client's name are collected."""
    auth = base64.urlsafe_b64encode(json.dumps({"Username": "u", "PASSWORD": "p"}).encode()).decode()
    found = params.registry_access(
        _headers(("X-Registry-Auth", auth), ("X-Meta-A", "1"), ("x-meta-b", "2"), ("User-Agent", "me"), ("Meta", "3"))
    )
    assert (found.credentials.username, found.credentials.password) == ("u", "p")
    assert found.meta == {"X-Meta-A": "1", "x-meta-b": "2"}
    assert found.client_agent == "me"


@pytest.mark.parametrize("auth", ["", "e30=", "!!!", "eyJ1", "W10=", "e30=e30="])
def test_undecodable_credentials_are_none(auth: str) -> None:
    """What cannot be decoded counts as anonymous."""
    assert params.registry_access(_headers(("X-Registry-Auth", auth))).credentials == ANONYMOUS


def test_remote_gets_a_tag() -> None:
    """A remote with neither tag nor digest means latest; a missing one is refused."""
    assert str(params.remote({"remote": "foo"})) == "docker.io/library/foo:latest"
    with pytest.raises(InvalidParameter, match=r"^invalid reference format$"):
        params.remote({})

"""The texts of Go's JSON decoder."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.api.gojson import GoSyntaxError, end_of_value

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"{invalid json", "invalid character 'i' looking for beginning of object key string"),
        (b"x", "invalid character 'x' looking for beginning of value"),
        (b"[1,]", "invalid character ']' looking for beginning of value"),
        (b'{"a":1,}', "invalid character '}' looking for beginning of object key string"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1 2}', "invalid character '2' after object key:value pair"),
        (b'["a" "b"]', "invalid character '\"' after array element"),
        (b"['a']", "invalid character '\\'' looking for beginning of value"),
        (b'["\n"]', "invalid character '\\n' in string literal"),
        (b'["\\x"]', "invalid character 'x' in string escape code"),
        (b'["\\u12g4"]', "invalid character 'g' in \\u hexadecimal character escape"),
        (b"[-x]", "invalid character 'x' in numeric literal"),
        (b"[01]", "invalid character '1' after array element"),
        (b"[1.x]", "invalid character 'x' after decimal point in numeric literal"),
        (b"[1e+]", "invalid character ']' in exponent of numeric literal"),
        (b"[1.2.3]", "invalid character '.' after array element"),
        (b"[tru]", "invalid character ']' in literal true (expecting 'e')"),
        (b"nul!", "invalid character '!' in literal null (expecting 'l')"),
        (b"truex", "invalid character 'x' after top-level value"),
        (b"\xef\xbb\xbf[]", "invalid character 'ï' looking for beginning of value"),
        (b"\xb2", "invalid character '²' looking for beginning of value"),
        (b"[\x00]", "invalid character '\\x00' looking for beginning of value"),
        (b"[", "unexpected EOF"),
        (b'{"a', "unexpected EOF"),
        (b'{"a":', "unexpected EOF"),
        (b'["\\', "unexpected EOF"),
        (b'["\\u12', "unexpected EOF"),
        (b"-", "unexpected EOF"),
        (b"1.", "unexpected EOF"),
        (b"1e", "unexpected EOF"),
        (b"nul", "unexpected EOF"),
        (b"[" * 20_000, "exceeded max depth"),
    ],
)
def test_errors(raw: bytes, text: str) -> None:
    """Each broken document gets the text that Go gives it."""
    with pytest.raises(GoSyntaxError) as caught:
        end_of_value(raw)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("raw", "end"),
    [(b"[] trailing", 2), (b" {} {}", 3), (b"1 2", 1), (b'"a" b', 3), (b"[[1],{}]]", 8), (b"-0.5e3 ", 6)],
)
def test_end_of_the_first_value(raw: bytes, end: int) -> None:
    """Only the first value counts; where it ends is told."""
    assert end_of_value(raw) == end


@given(_JSON, st.booleans())
def test_valid_documents_pass(document: object, ascii_only: bool) -> None:  # noqa: FBT001 - hypothesis draws it
    """Every document that another encoder makes is passed over whole."""
    raw = json.dumps(document, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    assert end_of_value(raw) == len(raw)


@given(st.binary(min_size=1, max_size=40))
def test_any_bytes_get_an_answer(raw: bytes) -> None:
    """Whatever the bytes, there is an end or an error, and no other exception."""
    try:
        assert 0 < end_of_value(raw) <= len(raw)
    except GoSyntaxError as exc:
        assert str(exc)  # noqa: PT017 - either outcome is right

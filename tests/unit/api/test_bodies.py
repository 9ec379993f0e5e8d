"""Decoding JSON bodies into what the endpoints take."""

from typing import Any

import pytest

from pluginsvc.api import bodies
from pluginsvc.errors import InvalidParameter
from pluginsvc.model.privilege import Privilege


@pytest.mark.parametrize("document", [None, {}, []])
def test_no_privileges(document: Any) -> None:
    """null, {} (docker-py) and [] all mean that nothing is granted."""
    assert bodies.privilege_list(document) == []


def test_privileges_in_any_case() -> None:
    """Keys match in any case, unknown ones and nulls are passed over."""
    document = [{"name": "mount", "VALUE": ["/a"], "Description": None, "More": 1}, None, {"Value": None}]
    assert bodies.privilege_list(document) == [
        Privilege(name="mount", value=["/a"]),
        Privilege(name=""),
        Privilege(name=""),
    ]


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"a": 1}, "object into Go value of type types.PluginPrivileges"),
        ("x", "string into Go value of type types.PluginPrivileges"),
        (False, "bool into Go value of type types.PluginPrivileges"),
        ([1], "number into Go value of type types.PluginPrivilege"),
        ([{"Name": 1.5}], "number into Go struct field PluginPrivilege.Name of type string"),
        ([{"Value": "x"}], "string into Go struct field PluginPrivilege.Value of type []string"),
        ([{"Value": [{}]}], "object into Go struct field PluginPrivilege.Value of type string"),
    ],
)
def test_privileges_of_a_wrong_type(document: Any, text: str) -> None:
    """A wrong type is refused with Go's text."""
    with pytest.raises(InvalidParameter) as caught:
        bodies.privilege_list(document)
    assert str(caught.value) == f"invalid JSON: json: cannot unmarshal {text}"


def test_string_list() -> None:
    """A list of strings is taken as it is; null means none."""
    assert bodies.string_list(["a=b", None]) == ["a=b", ""]
    assert bodies.string_list(None) == []


@pytest.mark.parametrize(
    ("document", "text"),
    [({}, "object into Go value of type []string"), ([[]], "array into Go value of type string")],
)
def test_string_list_of_a_wrong_type(document: Any, text: str) -> None:
    """A wrong type is refused with Go's text."""
    with pytest.raises(InvalidParameter) as caught:
        bodies.string_list(document)
    assert str(caught.value) == f"invalid JSON: json: cannot unmarshal {text}"


def test_credentials_need_an_object() -> None:
    """A login body that is no object is refused, an empty one is anonymous."""
    assert not bodies.credentials(None)
    with pytest.raises(InvalidParameter, match="cannot unmarshal array"):
        bodies.credentials([])


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b" \n\t", "invalid JSON: got EOF while reading request body"),
        (b"[] trailing", "unexpected content after JSON"),
        (b"[] ]", "unexpected content after JSON"),
        (b"{invalid json", "invalid JSON: invalid character 'i' looking for beginning of object key string"),
        (b"[" * 30_000, "invalid JSON: exceeded max depth"),
    ],
)
def test_broken_documents(raw: bytes, text: str) -> None:
    """Broken documents are refused with Go's texts."""
    with pytest.raises(InvalidParameter) as caught:
        bodies.decode_json(raw)
    assert str(caught.value) == text


def test_large_broken_documents_are_not_scanned() -> None:
    """Beyond 64 KiB a broken document is refused without the exact text, quickly."""
    with pytest.raises(InvalidParameter, match=r"^invalid JSON: "):
        bodies.decode_json(b"[" * bodies.MAX_JSON)


def test_bytes_that_are_not_utf8() -> None:
    """As in Go, a byte that is not UTF-8 becomes U+FFFD."""
    assert bodies.decode_json(b'["a\xff"]') == ["a\ufffd"]

"""Decoding X-Registry-Auth (REF 1.6)."""

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.model.auth import ANONYMOUS, Credentials, credentials_from, decode_auth_header


def header(document: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(document)).decode()


@pytest.mark.parametrize(
    ("document", "found"),
    [
        (
            {"username": "u", "password": "p", "serveraddress": "s", "email": "e", "auth": "x"},
            Credentials(username="u", password="p", server_address="s"),
        ),
        ({"ServerAddress": "s", "Username": "u", "Password": "p", "IdentityToken": "i"},
         Credentials(username="u", password="p", server_address="s", identity_token="i")),
        ({"identitytoken": "i"}, Credentials(identity_token="i")),
        ({"registrytoken": "r"}, Credentials(registry_token="r")),
        ({"username": "ü?>~" * 9, "password": "ÿÿ>>??"}, Credentials(username="ü?>~" * 9, password="ÿÿ>>??")),
        ({"username": None, "password": 5, "identitytoken": ["x"]}, ANONYMOUS),
        ({}, ANONYMOUS),
        ([], ANONYMOUS),
        (None, ANONYMOUS),
        ("text", ANONYMOUS),
    ],
)  # fmt: skip
def test_documents(document: object, found: Credentials) -> None:
    """Keys match in any case, other members are ignored, members of a wrong type count as absent."""
    assert decode_auth_header(header(document)) == found


@pytest.mark.parametrize(
    "text",
    ["", "   ", "e30=", "!!!!", "e30", header({"username": "u"}).rstrip("=") + "x", "eyJ1Ijo=",
     base64.urlsafe_b64encode(b'{"username":"a"}{"username":"b"}').decode(),
     base64.urlsafe_b64encode(b"{\xff}").decode(), base64.urlsafe_b64encode(b"[" * 200_000).decode(),
     "ü", "e30=e30=", "\ud800"],
    ids=lambda text: repr(text)[:16],
)  # fmt: skip
def test_undecodable_is_anonymous(text: str) -> None:
    """What is missing, empty, unpadded, no base64url or no single JSON document is silently anonymous."""
    assert decode_auth_header(text) == ANONYMOUS


def test_unpadded_is_anonymous() -> None:
    """Padding is not optional: a header that lacks it is anonymous, as in Docker."""
    padded = header({"username": "ab"})
    assert padded.endswith("=")
    assert decode_auth_header(padded).username == "ab"
    assert decode_auth_header(padded.rstrip("=")) == ANONYMOUS


@given(st.text(max_size=60))
def test_never_fails(text: str) -> None:
    """No header makes it fail."""
    assert isinstance(decode_auth_header(text), Credentials)


def test_truth() -> None:
    """Credentials are true when there is something to send; a password alone is nothing."""
    assert not ANONYMOUS
    assert not Credentials(password="p", server_address="s")
    assert Credentials(username="u")
    assert Credentials(identity_token="t")
    assert Credentials(registry_token="t")


def test_repr_hides_secrets() -> None:
    """The representation, which may end in a log or a traceback, shows no secret."""
    secret = "hunter2"
    found = credentials_from({"username": "u", "password": secret, "identitytoken": secret, "registrytoken": secret})
    assert secret not in repr(found)
    assert secret not in f"{[found]}"

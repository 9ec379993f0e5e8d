"""Registry credentials as a client sends them (REF 1.6)."""

from __future__ import annotations

import base64
import binascii

import msgspec


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """One registry login; at most one of the three forms is used: registry token, identity token, password.

    Attributes are secrets: never log, store or show this object; its ``repr`` hides them.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""
    server_address: str = ""

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r}, …)"

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)


ANONYMOUS = Credentials()


class RegistryAccess(msgspec.Struct, frozen=True, kw_only=True):
    """What one API request brings along for the registry (REF 1.6).

    Attributes:
        credentials: the login for the registry that the reference names, and for no other host.
        meta: the request's ``X-Meta-*`` headers, sent to the registry as they are.
        client_agent: the ``User-Agent`` of the API client, named in ours.
    """

    credentials: Credentials = ANONYMOUS
    meta: dict[str, str] = {}
    client_agent: str = ""


def decode_auth_header(text: str) -> Credentials:
    """Decode ``X-Registry-Auth``: padded base64url of a JSON object, keys in any case.

    What cannot be decoded counts as anonymous, as in Docker.
    """
    try:
        document = msgspec.json.decode(base64.b64decode(text.strip().encode(), altchars=b"-_", validate=True))
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError):
        return ANONYMOUS
    return credentials_from(document)


def credentials_from(document: object) -> Credentials:
    """Build credentials from a decoded ``AuthConfig`` document; anything odd counts as absent."""
    if not isinstance(document, dict):
        return ANONYMOUS
    folded = {str(key).lower(): value for key, value in document.items() if isinstance(value, str)}
    return Credentials(
        username=folded.get("username", ""),
        password=folded.get("password", ""),
        identity_token=folded.get("identitytoken", ""),
        registry_token=folded.get("registrytoken", ""),
        server_address=folded.get("serveraddress", ""),
    )

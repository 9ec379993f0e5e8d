"""How a registry is convinced: challenges, Basic, and tokens with their cache (REF 4.2; distribution token spec).

Credentials go to the registry they are for and to the token realm which that registry names in its own 401.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

import msgspec
from yarl import URL

from pluginsvc.registry.errand import Errand
from pluginsvc.registry.errors import MAX_ERROR_BODY, RegistryProtocolError, redact_url
from pluginsvc.registry.wire import Wire, read, read_start
from pluginsvc.tasks import KeyedLock

CLIENT_ID: Final = "pluginsvc"

_DEFAULT_LIFETIME = 60.0
_LONGEST_LIFETIME = 3600.0
_SAFE_SHARE = 0.9
_MAX_TOKENS = 256
_MAX_TOKEN_ANSWER = 1024 * 1024
_MAX_SCOPES = 32
_TOKEN_TEXT = re.compile(r"[\x21-\x7e]+")
_NO_OAUTH = frozenset({400, 401, 404, 405})
"""Answers to the POST form after which the older GET is tried (REF 4.2)."""

_CHALLENGE = re.compile(
    r"[\s,]*(?:(?P<key>[\w!#$%&'*+.^`|~-]+)\s*=\s*(?:\"(?P<quoted>(?:[^\"\\]|\\.)*)\"|(?P<plain>[^\s,\"]*))"
    r"|(?P<scheme>[\w-]+)(?=[\s,]|$))"
)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a 401 offers; ``scheme`` is in lower case."""

    scheme: str
    realm: str = ""
    service: str = ""
    scopes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token with the moments of its birth and end, in seconds of the monotonic clock."""

    value: str = field(repr=False)
    born: float
    expires: float
    refresh: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """What goes into ``Authorization``, and where it came from."""

    header: str = field(repr=False)
    token: Token | None = None
    scopes: frozenset[str] = frozenset()


class _TokenAnswer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    refresh_token: str | None = None
    expires_in: float | None = None


_ANSWER = msgspec.json.Decoder(_TokenAnswer, strict=False)


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Parse ``WWW-Authenticate`` headers (RFC 9110 11.6.1); what is malformed is left out.

    Args:
        headers: the values, each with one or more challenges.
    """
    found: list[tuple[str, dict[str, str]]] = []
    for header in headers:
        position = 0
        while part := _CHALLENGE.match(header, position):
            position = part.end()
            if part["scheme"]:
                found.append((part["scheme"].lower(), {}))
            elif found:
                value = re.sub(r"\\(.)", r"\1", part["quoted"]) if part["quoted"] is not None else part["plain"]
                found[-1][1].setdefault(part["key"].lower(), value)
    return [
        Challenge(
            scheme, values.get("realm", ""), values.get("service", ""), frozenset(values.get("scope", "").split())
        )
        for scheme, values in found
    ]


def basic(username: str, password: str) -> str:
    """Return the value of a Basic ``Authorization``."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


class Tokens:
    """Fetches tokens and keeps them while they last; one for the daemon.

    The cache is keyed by realm, service, scopes and credentials, so nobody is served with another's token.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._tokens: dict[tuple[object, ...], Token] = {}
        self._locks = KeyedLock()

    async def get(self, challenge: Challenge, scopes: frozenset[str], errand: Errand, *, stale: Token | None) -> Token:
        """Return a token from the cache or a new one.

        Args:
            challenge: names realm and service.
            scopes: what the token is for.
            errand: on whose behalf.
            stale: a token that was just refused and must not be returned.

        Raises:
            RegistryFault: the token server refuses or fails.
        """
        key = (challenge.realm, challenge.service, scopes, errand.credentials, errand.secure)
        async with self._locks(key):
            known = self._tokens.get(key)
            if known is not None and known is not stale and time.monotonic() < known.expires:
                return known
            token = await self.fetch(challenge, scopes, errand)
            now = time.monotonic()
            self._tokens = {k: t for k, t in self._tokens.items() if t.expires > now and k != key}
            if len(self._tokens) >= _MAX_TOKENS:
                del self._tokens[next(iter(self._tokens))]
            self._tokens[key] = token
            return token

    async def fetch(
        self, challenge: Challenge, scopes: frozenset[str], errand: Errand, *, offline: bool = False
    ) -> Token:
        """Ask the realm for a token, past the cache.

        Args:
            challenge: names realm and service.
            scopes: what the token is for.
            errand: on whose behalf.
            offline: ask for a refresh token as well (an identity token, for ``login``).
        """
        realm = _usable_realm(challenge.realm, secure=errand.secure)
        login = errand.credentials
        service = {"service": challenge.service} if challenge.service else {}
        grant: dict[str, str] = {}
        if login.identity_token:
            grant = {"grant_type": "refresh_token", "refresh_token": login.identity_token}
        elif login.username:
            grant = {"grant_type": "password", "username": login.username, "password": login.password}
        if grant:
            form = {**grant, **service, "client_id": CLIENT_ID, "scope": " ".join(sorted(scopes))}
            if offline:
                form["access_type"] = "offline"
            async with self._wire.exchange(
                "POST",
                realm,
                headers=[*errand.headers, ("Content-Type", "application/x-www-form-urlencoded")],
                body=urlencode(form).encode(),
                secure=errand.secure,
                follow=False,
            ) as response:
                if response.status == 200:
                    return _token(await read(response, _MAX_TOKEN_ANSWER), realm)
                # a server that knows no OAuth form wants the older GET, which cannot carry an identity token
                if login.identity_token or response.status not in _NO_OAUTH:
                    raise errand.fault(response, await read_start(response, MAX_ERROR_BODY))
        query = [*service.items(), *(("scope", scope) for scope in sorted(scopes))]
        private: list[tuple[str, str]] = []
        if login.username:
            query.append(("account", login.username))
            private.append(("Authorization", basic(login.username, login.password)))
        if offline:
            query += [("offline_token", "true"), ("client_id", CLIENT_ID)]
        url = realm + ("&" if "?" in realm else "?") + urlencode(query) if query else realm
        async with self._wire.exchange(
            "GET", url, headers=errand.headers, private=private, secure=errand.secure
        ) as response:
            if response.status != 200:
                raise errand.fault(response, await read_start(response, MAX_ERROR_BODY))
            return _token(await read(response, _MAX_TOKEN_ANSWER), realm)


class Authorizer:
    """What one conversation has learnt about the way into its registry.

    Args:
        tokens: the daemon's.
        errand: on whose behalf; its credentials are those of this very registry.
        scopes: what tokens are asked for, besides what the registry names.
    """

    def __init__(self, tokens: Tokens, errand: Errand, scopes: Iterable[str]) -> None:
        self._tokens = tokens
        self._errand = errand
        self._scopes = frozenset(scopes)
        self.challenge: Challenge | None = None

    async def grant(self, extra: frozenset[str], stale: Token | None) -> Grant | None:
        """Return what to send now, None when nothing is known to be wanted.

        Args:
            extra: scopes that only this request needs.
            stale: a token that was just refused.

        Raises:
            RegistryFault: the token server refuses or fails.
        """
        login = self._errand.credentials
        if login.registry_token:
            return Grant(f"Bearer {login.registry_token}")
        if self.challenge is None:
            return None
        if self.challenge.scheme == "basic":
            return Grant(basic(login.username, login.password))
        scopes = self._scopes | extra
        token = await self._tokens.get(self.challenge, scopes, self._errand, stale=stale)
        return Grant(f"Bearer {token.value}", token, scopes)

    def refused(self, headers: Iterable[str], grant: Grant | None, started: float) -> str | None:
        """Learn from a 401.

        Args:
            headers: the ``WWW-Authenticate`` values.
            grant: what was sent.
            started: when the request began, by the monotonic clock.

        Returns:
            None when another try makes sense; else why not (empty when the registry's own text says it).
        """
        if self._errand.credentials.registry_token:
            return ""
        challenges = parse_challenges(headers)
        bearer = next((c for c in challenges if c.scheme == "bearer" and c.realm), None)
        if bearer is not None:
            self.challenge = bearer
            if len(self._scopes | bearer.scopes) <= _MAX_SCOPES:
                self._scopes |= bearer.scopes
            if grant is None or grant.token is None:
                return None
            # a token made for this very request and these scopes will not be better the next time
            return None if grant.token.born < started or not bearer.scopes <= grant.scopes else ""
        if any(c.scheme == "basic" for c in challenges):
            if not self._errand.credentials.username:
                return "no basic auth credentials"
            self.challenge = Challenge("basic")
            return None if grant is None or grant.token is not None else ""
        return ""


def _usable_realm(realm: str, *, secure: bool) -> str:
    """Return the realm if credentials may be sent there: HTTPS, or any HTTP when the registry itself is insecure."""
    try:
        url = URL(realm, encoded=True)
        usable = url.scheme in ({"https"} if secure else {"https", "http"}) and url.host and not url.user
    except ValueError:
        usable = None
    if not usable or not realm.isascii() or not realm.isprintable() or " " in realm:
        shown = redact_url(realm) if usable else realm.partition("?")[0].rpartition("@")[2][:200]
        raise RegistryProtocolError(
            f"the registry names a token realm that cannot be trusted: {shown!r}; it must be an https URL"
        )
    return realm.partition("#")[0]


def _token(raw: bytes, realm: str) -> Token:
    try:
        answer = _ANSWER.decode(raw)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise RegistryProtocolError(f"{redact_url(realm)}: not a token answer", url=redact_url(realm)) from exc
    value = answer.access_token or answer.token or ""
    if _TOKEN_TEXT.fullmatch(value) is None:
        raise RegistryProtocolError(f"{redact_url(realm)}: the answer holds no token", url=redact_url(realm))
    lifetime = _DEFAULT_LIFETIME if answer.expires_in is None else answer.expires_in
    lifetime = min(max(lifetime, 0.0), _LONGEST_LIFETIME) * _SAFE_SHARE
    born = time.monotonic()
    return Token(value, born, born + lifetime, answer.refresh_token or "")

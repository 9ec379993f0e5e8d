"""On whose behalf requests are made: the login, the headers, and how refusals are told (REF 1.6, 3.4)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp

from pluginsvc.errors import InvalidParameter
from pluginsvc.model.auth import ANONYMOUS, Credentials, RegistryAccess
from pluginsvc.registry.errors import (
    AccessDenied,
    BlobUnknown,
    ManifestUnknown,
    RegistryBusy,
    RegistryFault,
    RegistryForbidden,
    RegistryProtocolError,
    describe,
    redact_text,
    redact_url,
)

_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_AGENT = 512
_LONGEST_RETRY_AFTER = 86400.0
_UNSENDABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class InvalidCredentials(InvalidParameter):
    """The login holds what cannot be sent."""

    def __init__(self) -> None:
        super().__init__("the registry token holds characters that no HTTP header may hold: log in again")


@dataclass(frozen=True, slots=True)
class Errand:
    """What all requests of one fetcher, pusher or login to one host have in common.

    Attributes:
        action: ``pull``, ``push`` or ``login``, for texts.
        subject: the full reference or the host, for texts.
        credentials: those of the host that is asked; anonymous for mirrors.
        headers: sent to every host on the way.
        meta: the user's ``X-Meta-*`` headers, for the registry alone.
        secure: nothing but verified HTTPS may be used.
    """

    action: str
    subject: str
    credentials: Credentials = field(repr=False)
    headers: tuple[tuple[str, str], ...]
    meta: tuple[tuple[str, str], ...]
    secure: bool

    @classmethod
    def of(
        cls, action: str, subject: str, access: RegistryAccess, *, agent: str, secure: bool, mirror: bool = False
    ) -> Errand:
        """Build the errand of an API request.

        Args:
            action: ``pull``, ``push`` or ``login``.
            subject: the full reference or the host.
            access: what the API request brought along.
            agent: the daemon's own user agent.
            secure: nothing but verified HTTPS may be used.
            mirror: leave out what belongs to the registry alone.

        Raises:
            InvalidCredentials: the registry token cannot stand in a header.
        """
        if access.client_agent:
            client = re.sub(r"([\\();])", r"\\\1", _UNSENDABLE.sub("", access.client_agent[:_MAX_AGENT]))
            agent = f"{agent} UpstreamClient({client})"
        token = access.credentials.registry_token
        if not token.isascii() or not token.isprintable():
            raise InvalidCredentials
        return cls(
            action=action,
            subject=subject,
            credentials=ANONYMOUS if mirror else access.credentials,
            headers=(("User-Agent", agent),),
            meta=() if mirror else _meta(access.meta),
            secure=secure,
        )

    def fault(
        self,
        response: aiohttp.ClientResponse,
        body: bytes,
        *,
        missing: type[ManifestUnknown | BlobUnknown] | None = None,
        what: str = "",
        sent: str = "",
        reason: str = "",
    ) -> RegistryFault:
        """Turn an answer that is no success into an error.

        Args:
            response: status and headers.
            body: the answer's start.
            missing: what a 404 means here; without it a 404 makes no sense.
            what: names the missing thing.
            sent: the ``Authorization`` that was sent, so that no echo of it is shown.
            reason: our own word on why, instead of the registry's.
        """
        status, url = response.status, redact_url(response.url)
        secrets = [*self._secrets(), sent.rpartition(" ")[2]]
        code, text = describe(body, secrets)
        phrase = f"{status} {redact_text(response.reason or '', secrets)}".strip()
        # as Docker shows it: "unauthorized: authentication required"
        detail = reason or ": ".join(part for part in (code.lower().replace("_", " "), text) if part) or phrase
        message = f"{response.method} {url}: {detail if detail == phrase else f'{phrase}: {detail}'}"
        kind: type[RegistryFault]
        if status in {401, 403}:
            kind = AccessDenied if status == 401 else RegistryForbidden
            if self.action == "login":
                message = f"login attempt to {url} failed with status: {phrase}: {detail}"
            else:
                message = (
                    f"{self.action} access denied, repository does not exist or may require authorization: {detail}"
                )
        elif status == 404 and missing is not None:
            kind = missing
            message = f"{what}: not found"
        elif status >= 500 or status in _TEMPORARY:
            kind = RegistryBusy
        else:
            kind = RegistryProtocolError
        return kind(
            message,
            url=url,
            http_status=status,
            code=code,
            body=text,
            temporary=status in _TEMPORARY,
            retry_after=_retry_after(response.headers.get("Retry-After")),
        )

    def _secrets(self) -> list[str]:
        login = self.credentials
        pair = base64.b64encode(f"{login.username}:{login.password}".encode()).decode() if login.password else ""
        return [login.password, login.identity_token, login.registry_token, pair]


def _meta(meta: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, _UNSENDABLE.sub("", value))
        for name, value in meta.items()
        if re.fullmatch(r"x-meta-[a-z0-9_-]+", name, re.IGNORECASE)
    )


def _retry_after(value: str | None) -> float | None:
    """Read ``Retry-After`` (RFC 9110 10.2.3): seconds or a date; what makes no sense counts as absent."""
    if not value:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return min(float(value.strip()[:10]), _LONGEST_RETRY_AFTER)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return min(max((when - datetime.now(UTC)).total_seconds(), 0.0), _LONGEST_RETRY_AFTER)

"""A conversation with one registry host: scheme found, access granted, failed requests tried again (REF 4.1, 4.2)."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import anyio
from multidict import CIMultiDictProxy
from yarl import URL

from pluginsvc.registry.auth import Authorizer, Token, Tokens
from pluginsvc.registry.errand import Errand
from pluginsvc.registry.errors import (
    CONNECT,
    CUT,
    MAX_ERROR_BODY,
    TLS,
    BlobUnknown,
    ManifestUnknown,
    RegistryFault,
    most_specific,
)
from pluginsvc.registry.hosts import Endpoint
from pluginsvc.registry.wire import IDLE_TIMEOUT, Body, Headers, Wire, read, read_start

ATTEMPTS: Final = 5
"""How often a request is sent at most, answers to 401 not counted."""

LONGEST_PAUSE: Final = 10.0
"""Seconds between two attempts at most, unless the registry asks for more."""

PATIENCE: Final = 60.0
"""A ``Retry-After`` beyond these seconds is an error at once, for the user to decide."""

_PROBE_TIMEOUT = 5.0
_GRANTS = 3
_NOT_RETRIED = frozenset({CONNECT, TLS})
"""Nobody listens, or nobody we trust: a user who mistyped a host should read that at once."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished exchange whose body fits into memory."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes = field(repr=False)
    url: str


class Schemes:
    """Remembers which scheme each insecure host answered to; one for the daemon."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._known: dict[str, str] = {}

    async def base(self, endpoint: Endpoint, errand: Errand) -> str:
        """Return ``scheme://host`` of an endpoint; an insecure one is asked for ``/v2/`` to learn its scheme.

        Raises:
            RegistryFault: it answers to no scheme.
        """
        if len(endpoint.schemes) == 1:
            return f"{endpoint.schemes[0]}://{endpoint.host}"
        if known := self._known.get(endpoint.host):
            return f"{known}://{endpoint.host}"
        faults: list[tuple[RegistryFault, bool]] = []
        for scheme in endpoint.schemes:
            base = f"{scheme}://{endpoint.host}"
            try:
                async with self._wire.exchange(
                    "GET", f"{base}/v2/", headers=errand.headers, secure=False, follow=False, connect=_PROBE_TIMEOUT
                ) as response:
                    # this is what a TLS server says to plain HTTP: then the fault of HTTPS is the one to report
                    if response.status == 400 and faults:
                        continue
            except RegistryFault as exc:
                faults.append((exc, False))
            else:
                self._known[endpoint.host] = scheme
                return base
        raise most_specific(faults)

    def forget(self, endpoint: Endpoint) -> None:
        """Ask anew the next time; the host may have changed."""
        self._known.pop(endpoint.host, None)


class Conversation:
    """The requests of one fetcher, pusher or login to one host.

    Args:
        wire: sends.
        schemes: finds out between HTTPS and HTTP.
        tokens: grants.
        endpoint: the host.
        errand: on whose behalf.
        scopes: what tokens are asked for.
        backoff: seconds before the second attempt, doubled for each further one, of which a random part is waited.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        schemes: Schemes,
        tokens: Tokens,
        endpoint: Endpoint,
        errand: Errand,
        scopes: frozenset[str],
        backoff: float,
    ) -> None:
        self._wire = wire
        self._schemes = schemes
        self.endpoint = endpoint
        self.errand = errand
        self.authorizer = Authorizer(tokens, errand, scopes)
        self._backoff = backoff

    @asynccontextmanager
    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Headers = (),
        body: bytes | Body | None = None,
        scopes: frozenset[str] = frozenset(),
        wait: float = IDLE_TIMEOUT,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request, with access as far as it can be had; the answer is never a 401.

        Args:
            method: of HTTP.
            target: a rooted path, or an absolute URL; one at another host gets nothing private.
            headers: besides those of the errand.
            body: what to send.
            scopes: what only this request needs.
            wait: seconds to the first byte of the answer.

        Raises:
            AccessDenied: the registry does not let us in.
            RegistryFault: no answer, or nonsense.
        """
        base = await self._schemes.base(self.endpoint, self.errand)
        url = base + target if target.startswith("/") else target
        if base.startswith("https:") and url.startswith(f"http{base.removeprefix('https')}/"):
            # a registry behind a proxy that ends TLS may not know that it is spoken to over HTTPS
            url = f"https{url.removeprefix('http')}"
        home = URL(base).origin()
        private = self.errand.meta if _origin(url) == home else ()
        started = time.monotonic()
        stale: Token | None = None
        for left in reversed(range(_GRANTS)):
            grant = await self.authorizer.grant(scopes, stale) if _origin(url) == home else None
            sent = [("Authorization", grant.header)] if grant else []
            try:
                async with self._wire.exchange(
                    method,
                    url,
                    headers=[*self.errand.headers, *headers],
                    private=[*private, *sent],
                    body=body,
                    secure=self.errand.secure,
                    wait=wait,
                ) as response:
                    if response.status != 401:
                        yield response
                        return
                    reason: str | None = ""
                    if response.url.origin() == home:
                        reason = self.authorizer.refused(
                            response.headers.getall("WWW-Authenticate", []), grant, started
                        )
                    if reason is not None or not left:
                        raise self.errand.fault(
                            response,
                            await read_start(response, MAX_ERROR_BODY),
                            sent=grant.header if grant else "",
                            reason=reason or "",
                        )
            except RegistryFault as exc:
                if exc.code in {CONNECT, TLS, CUT}:
                    self._schemes.forget(self.endpoint)
                raise
            stale = grant.token if grant else None

    async def call(
        self,
        method: str,
        target: str,
        *,
        ok: frozenset[int],
        headers: Headers = (),
        body: bytes | None = None,
        limit: int = MAX_ERROR_BODY,
        scopes: frozenset[str] = frozenset(),
        attempts: int = ATTEMPTS,
        missing: type[ManifestUnknown | BlobUnknown] | None = None,
        what: str = "",
    ) -> Answer:
        """Send a request and read its answer, again and again while that may help.

        Args:
            method: of HTTP.
            target: as for ``request``.
            ok: statuses that are no error.
            headers: as for ``request``.
            body: what to send.
            limit: most bytes of an answer.
            scopes: as for ``request``.
            attempts: how often to send it at most.
            missing: what a 404 means.
            what: names what is missing then.

        Raises:
            RegistryFault: the last attempt's.
        """
        attempt = 1
        while True:
            try:
                async with self.request(method, target, headers=headers, body=body, scopes=scopes) as response:
                    if response.status not in ok:
                        raise await self.fault(response, missing=missing, what=what)
                    return Answer(response.status, response.headers, await read(response, limit), str(response.url))
            except RegistryFault as exc:
                if attempt >= attempts or not await self.pause(attempt, exc):
                    raise
            attempt += 1

    async def fault(
        self,
        response: aiohttp.ClientResponse,
        *,
        missing: type[ManifestUnknown | BlobUnknown] | None = None,
        what: str = "",
    ) -> RegistryFault:
        """Read an answer that is no success and return it as an error."""
        if response.status == 400 and response.url.scheme == "http":
            self._schemes.forget(self.endpoint)
        sent = response.request_info.headers.get("Authorization", "")
        return self.errand.fault(
            response, await read_start(response, MAX_ERROR_BODY), missing=missing, what=what, sent=sent
        )

    async def pause(self, attempt: int, fault: RegistryFault) -> bool:
        """Wait before the next attempt.

        Args:
            attempt: the number of the one that failed, from 1.
            fault: why it failed.

        Returns:
            Whether another attempt should follow.
        """
        asked = fault.retry_after or 0.0
        if not fault.temporary or fault.code in _NOT_RETRIED or attempt >= ATTEMPTS or asked > PATIENCE:
            return False
        # the random part keeps clients that failed together from coming back together
        own = min(self._backoff * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        await anyio.sleep(max(asked, own))
        return True


def _origin(url: str) -> URL | None:
    try:
        return URL(url, encoded=True).origin()
    except ValueError:
        return None

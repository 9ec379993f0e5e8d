"""What the plugins that guard the API are told of a request (REF 3.13, as dockerd was seen to do it)."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack
from typing import Any, Final

import anyio
from aiohttp import web

from pluginsvc.api.bodies import BODY, chunks, gather, is_json
from pluginsvc.api.routing import Route
from pluginsvc.directory.authz import Chain, Inquiry
from pluginsvc.errors import Internal, Unavailable

MAX_BODY: Final = 4 * 1024 * 1024
"""Largest body that is shown to plugins, in bytes."""

LARGE: Final = 64 * 1024
"""A body of more bytes than these needs its turn: it is held several times over while plugins are asked."""

TURNS: Final = 8
"""Most large bodies that are held at a time."""

TURN_WITHIN = 60.0
"""Seconds for which a turn is waited for."""

_READS = frozenset({"GET", "HEAD"})
_LOGIN = "/auth"
"""Its body holds a password."""

_WITHHELD = frozenset({"authorization", "x-registry-auth", "x-registry-config"})
_FRAMING = frozenset({"host", "transfer-encoding", "trailer"})
"""What Go's server takes out of the headers before anybody sees them."""


class BodyTooLarge(Internal):
    """A JSON body is larger than plugins are shown, so the request is not served; the text is Docker's."""

    def __init__(self) -> None:
        super().__init__(f"request body too large for authorization plugin: size exceeds {MAX_BODY} bytes")


class TooManyLargeBodies(Unavailable):
    """Plugins are asked about as many requests with large JSON bodies as there may be, and none comes to its end."""

    def __init__(self) -> None:
        super().__init__(
            f"the authorization plugins are being asked about {TURNS} requests with JSON bodies of more than {LARGE}"
            f" bytes, and within {TURN_WITHIN:g} s none of them was done: send it again"
        )


class Guard:
    """Has requests judged.

    Args:
        chain: judges.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._turns = anyio.CapacityLimiter(TURNS)

    async def authorize(self, request: web.BaseRequest, route: Route) -> None:
        """Have a request judged; its body can still be read afterwards.

        Args:
            request: of which nothing was read.
            route: what will serve it.

        Raises:
            Denied, AuthorizationFailed: it must not be served.
            BodyTooLarge: it cannot be shown.
            TooManyLargeBodies: there was no room for its body.
            InvalidBody: its body came too slowly or broken.
            ClientGone: the connection broke off.
        """
        async with AsyncExitStack() as turn:
            body = b""
            # what a handler takes for JSON is shown, by the same rule; archives are neither read nor kept here
            if route.path != _LOGIN and request.body_exists and is_json(request):
                body = await self._body(request, turn)
                # no GET has a use for its body, and a stream would keep it for hours
                if request.method not in _READS:
                    request[BODY] = body
            certificate = _certificate(request)
            await self._chain.ask(
                Inquiry(
                    user=_common_name(certificate),
                    user_auth_n_method="" if certificate is None else "TLS",
                    request_method=request.method,
                    request_uri=_text(request.raw_path),
                    request_body=body,
                    request_headers=_headers(request),
                    request_peer_certificates=() if certificate is None else (_pem(certificate),),
                )
            )

    async def _body(self, request: web.BaseRequest, turn: AsyncExitStack) -> bytes:
        """Read the body, what is large of it only when it is its turn, which lasts as long as the stack."""
        announced = request.content_length or 0
        if announced > MAX_BODY:
            raise BodyTooLarge
        stream, body = chunks(request), b""
        # one in chunks does not say how large it is
        if announced <= LARGE:
            body = await gather(stream, LARGE)
            if len(body) <= LARGE:
                return body
        try:
            with anyio.fail_after(TURN_WITHIN):
                await turn.enter_async_context(self._turns)
        except TimeoutError as exc:
            raise TooManyLargeBodies from exc
        body += await gather(stream, MAX_BODY - len(body))
        if len(body) > MAX_BODY:
            raise BodyTooLarge
        return body


def _headers(request: web.BaseRequest) -> dict[str, str]:
    """Return the headers as Go has them: names in canonical form and in order, of several values the last."""
    found = {
        "-".join(part.capitalize() for part in name.split("-")): _text(value)
        for name, value in request.headers.items()
        if name.lower() not in _WITHHELD | _FRAMING
    }
    return dict(sorted(found.items()))


def _text(text: str) -> str:
    """Return what can be put into JSON; aiohttp keeps bytes that are no UTF-8 as surrogates, Go shows U+FFFD."""
    return text if text.isascii() else text.encode(errors="surrogateescape").decode(errors="replace")


def _certificate(request: web.BaseRequest) -> ssl.SSLObject | None:
    """Return the end of the connection that knows the client's certificate, or None where there is no TLS."""
    if request.transport is None:
        # who it was cannot be told any more, and nobody may be taken for a client without a name
        raise ConnectionResetError("the client went away")
    found: ssl.SSLObject | None = request.transport.get_extra_info("ssl_object")
    return found


def _common_name(end: ssl.SSLObject | None) -> str:
    """Return the common name of the client's certificate; of several the last, as Go does."""
    certificate: dict[str, Any] = (end.getpeercert() if end is not None else None) or {}
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return names[-1] if names else ""


def _pem(end: ssl.SSLObject) -> bytes:
    return ssl.DER_cert_to_PEM_cert(end.getpeercert(binary_form=True) or b"").encode()

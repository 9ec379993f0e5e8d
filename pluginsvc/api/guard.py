"""What the plugins that guard the API are told of a request (REF 3.13, as dockerd was seen to do it)."""

from __future__ import annotations

import ssl
from typing import Any, Final

from aiohttp import web

from pluginsvc.api.bodies import BODY, gather, is_json
from pluginsvc.api.routing import Route
from pluginsvc.directory.authz import Chain, Inquiry
from pluginsvc.errors import Internal

MAX_BODY: Final = 4 * 1024 * 1024
"""Largest body that is shown to plugins, in bytes."""

_LOGIN = "/auth"
"""Its body holds a password."""

_WITHHELD = frozenset({"authorization", "x-registry-auth", "x-registry-config"})
_FRAMING = frozenset({"host", "transfer-encoding", "trailer"})
"""What Go's server takes out of the headers before anybody sees them."""


class BodyTooLarge(Internal):
    """A JSON body is larger than plugins are shown, so the request is not served; the text is Docker's."""

    def __init__(self) -> None:
        super().__init__(f"request body too large for authorization plugin: size exceeds {MAX_BODY} bytes")


async def authorize(chain: Chain, request: web.BaseRequest, route: Route) -> None:
    """Have a request judged; its body can still be read afterwards.

    Args:
        chain: judges.
        request: of which nothing was read.
        route: what will serve it.

    Raises:
        Denied, AuthorizationFailed: it must not be served.
        BodyTooLarge: it cannot be shown.
        InvalidBody: its body came too slowly or broken.
        ClientGone: the connection broke off.
    """
    # what a handler takes for JSON is shown, by the same rule; archives are neither read nor kept here
    if route.path != _LOGIN and request.body_exists and is_json(request):
        body = await gather(request, MAX_BODY)
        if len(body) > MAX_BODY:
            raise BodyTooLarge
        request[BODY] = body
    certificate = _certificate(request)
    await chain.ask(
        Inquiry(
            user=_common_name(certificate),
            user_auth_n_method="" if certificate is None else "TLS",
            request_method=request.method,
            request_uri=_text(request.raw_path),
            request_body=request.get(BODY, b""),
            request_headers=_headers(request),
            request_peer_certificates=() if certificate is None else (_pem(certificate),),
        )
    )


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

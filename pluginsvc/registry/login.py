"""``docker login`` through this daemon: are these credentials good, and is there an identity token (REF 1.7)."""

from __future__ import annotations

from pluginsvc.model.reference import DEFAULT_DOMAIN
from pluginsvc.registry.auth import Tokens
from pluginsvc.registry.hosts import HUB, InvalidHost, check_host
from pluginsvc.registry.transport import Conversation

_HUB_NAMES = frozenset({"", "docker.io", "index.docker.io", HUB})


def server_domain(address: str) -> str:
    """Return the domain that a server address means: a URL or a bare host, Docker Hub when empty.

    Raises:
        InvalidHost: it is neither.
    """
    rest = address.strip()
    for scheme in ("https://", "http://"):
        rest = rest.removeprefix(scheme)
    host = rest.partition("/")[0]
    if host.lower() in _HUB_NAMES:
        return DEFAULT_DOMAIN
    try:
        return check_host(host)
    except InvalidHost as exc:
        raise InvalidHost(address, "the registry's host, host:port or URL") from exc


async def login(conversation: Conversation, tokens: Tokens) -> str:
    """Ask the registry for ``/v2/`` with the credentials of the conversation.

    Args:
        conversation: with the registry to log in to.
        tokens: asked for an identity token when the registry works with tokens.

    Returns:
        The identity token, empty when there is none.

    Raises:
        AccessDenied: the credentials are refused.
        RegistryFault: the registry or its token server fails.
    """
    await conversation.call("GET", "/v2/", ok=frozenset({200}))
    challenge, credentials = conversation.authorizer.challenge, conversation.errand.credentials
    if challenge is None or challenge.scheme != "bearer" or not credentials.username or credentials.identity_token:
        return ""
    token = await tokens.fetch(challenge, challenge.scopes, conversation.errand, offline=True)
    return token.refresh

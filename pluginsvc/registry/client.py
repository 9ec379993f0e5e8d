"""The registry client as the daemon owns it: one session, one token cache, fetchers and pushers on demand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

from pluginsvc.model.auth import Credentials, RegistryAccess
from pluginsvc.model.reference import Reference
from pluginsvc.registry import login
from pluginsvc.registry.auth import Tokens
from pluginsvc.registry.errand import Errand
from pluginsvc.registry.fetcher import Fetcher
from pluginsvc.registry.hosts import Endpoint, Hosts
from pluginsvc.registry.pusher import Pusher
from pluginsvc.registry.transport import Conversation, Schemes
from pluginsvc.registry.wire import Wire


class Registry:
    """Speaks to all registries; an async context manager owned by the daemon.

    Args:
        hosts: which hosts there are and how far they are trusted.
        user_agent: the daemon's own; the API client's is added to it (REF 1.6).
        proxies: as of ``urllib.request.getproxies_environment()``: scheme to URL, and ``no``. Loopback is never
            proxied.
        backoff: seconds before a second attempt, doubled for each further one.
    """

    def __init__(
        self, hosts: Hosts, *, user_agent: str, proxies: Mapping[str, str] | None = None, backoff: float = 0.25
    ) -> None:
        self._hosts = hosts
        self._agent = user_agent
        self._backoff = backoff
        self._wire = Wire(hosts, user_agent=user_agent, proxies=proxies or {})
        self._tokens = Tokens(self._wire)
        self._schemes = Schemes(self._wire)

    async def __aenter__(self) -> Self:
        await self._wire.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._wire.__aexit__(kind, exc, traceback)

    def use(self, hosts: Hosts) -> None:
        """Go by other registry settings from now on; requests under way keep theirs."""
        self._hosts = self._wire.hosts = hosts

    def fetcher(self, reference: Reference, access: RegistryAccess) -> Fetcher:
        """Return a reader of the repository that ``reference`` names.

        Args:
            reference: what is pulled.
            access: credentials of that registry and headers, from the API request.
        """
        return Fetcher(reference, self._converse(reference, access, "pull"))

    def pusher(self, reference: Reference, access: RegistryAccess) -> Pusher:
        """Return a writer to the repository that ``reference`` names.

        Args:
            reference: where to push; its tag, or else its digest, names the manifest.
            access: credentials of that registry and headers, from the API request.
        """
        return Pusher(reference, self._converse(reference, access, "push"))

    async def login(self, credentials: Credentials) -> str:
        """Check credentials with the registry that their server address names (REF 1.7).

        Returns:
            An identity token to keep instead of the password, empty when the registry gives none.

        Raises:
            InvalidHost: the server address is none.
            AccessDenied: the registry refuses the credentials.
            RegistryFault: it cannot be asked.
        """
        domain = login.server_domain(credentials.server_address)
        access = RegistryAccess(credentials=credentials)
        endpoint = (await self._hosts.endpoints(domain, push=True))[0]
        conversation = self._conversation(endpoint, domain, access, "login", frozenset())
        return await login.login(conversation, self._tokens)

    def _converse(
        self, reference: Reference, access: RegistryAccess, action: str
    ) -> Callable[[], Awaitable[list[Conversation]]]:
        rights = "pull,push" if action == "push" else "pull"
        # the plugin scope is an older one that some token servers still know plugins by (REF 4.2)
        scopes = frozenset(f"{kind}:{reference.path}:{rights}" for kind in ("repository", "repository(plugin)"))

        async def converse() -> list[Conversation]:
            return [
                self._conversation(endpoint, str(reference), access, action, scopes)
                for endpoint in await self._hosts.endpoints(reference.domain, push=action == "push")
            ]

        return converse

    def _conversation(
        self, endpoint: Endpoint, subject: str, access: RegistryAccess, action: str, scopes: frozenset[str]
    ) -> Conversation:
        errand = Errand.of(action, subject, access, agent=self._agent, secure=endpoint.secure, mirror=endpoint.mirror)
        return Conversation(
            self._wire,
            schemes=self._schemes,
            tokens=self._tokens,
            endpoint=endpoint,
            errand=errand,
            scopes=scopes,
            backoff=self._backoff,
        )

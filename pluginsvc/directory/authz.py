"""Plugins that guard this daemon's own API: each request is put to them before it is served (REF 3.13)."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

import anyio
import msgspec
import structlog

from pluginsvc.directory.provider import NoCapability, Provider
from pluginsvc.directory.rpc import BadAnswer, PluginRefused, printable
from pluginsvc.errors import Forbidden, Internal, InvalidParameter, PluginsvcError, Unavailable
from pluginsvc.model.plugin import Capability

_CAPABILITY: Final = "authz/1.0"
_WANTED = Capability.wanted(_CAPABILITY)
_METHOD = "AuthZPlugin.AuthZReq"
_FOUND_WITHIN = 30.0
"""Seconds in which a plugin has to be found that is to be asked from now on."""
_WAY_BACK = "if it locks you out: take it out of plugins in [authorization] of the configuration, and reload (SIGHUP)"
_log = structlog.get_logger()


class Denied(Forbidden):
    """A plugin has refused a request; the text is Docker's, and ends with the plugin's."""

    def __init__(self, plugin: str, message: str) -> None:
        self.plugin, self.message = plugin, message
        super().__init__(f"authorization denied by plugin {plugin}: {message}")


class AuthorizationFailed(Internal):
    """A plugin could not be asked about a request, or gave no answer that counts; the text is Docker's."""

    def __init__(self, plugin: str, reason: str) -> None:
        self.plugin, self.reason = plugin, reason
        super().__init__(f"plugin {plugin} failed with error: {reason}")


class BadChain(InvalidParameter):
    """A plugin that is to guard the API is not there, or is no such plugin."""

    def __init__(self, plugin: str, reason: str) -> None:
        self.plugin, self.reason = plugin, reason
        super().__init__(
            f"authorization.plugins: {plugin} cannot guard the API: {reason}: take it out of the configuration, and put"
            " it back when a plugin of that name with docker.authz/1.0 is there"
        )


class NotUp(Unavailable):
    """A plugin is enabled, and does not run at this moment."""

    def __init__(self, state: str) -> None:
        self.state = state
        super().__init__(f"it is enabled and not up: its state is {state}")


class Inquiry(msgspec.Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=True):
    """What a plugin is told of a request, as dockerd tells it: what is empty is left out.

    Attributes:
        user: common name of the client's certificate.
        user_auth_n_method: ``TLS``, or empty where there was none.
        request_method: the HTTP method.
        request_uri: the request's target, as it was received.
        request_body: the body, if it is JSON.
        request_headers: one value each.
        request_peer_certificates: the client's, in PEM.
    """

    user: str = ""
    user_auth_n_method: str = ""
    request_method: str = ""
    request_uri: str = ""
    request_body: bytes = b""
    request_headers: dict[str, str] = {}
    request_peer_certificates: tuple[bytes, ...] = ()


class Rules(NamedTuple):
    """Who is asked.

    Attributes:
        plugins: names, IDs or prefixes of those, in the order in which they are asked.
        lenient: whether a request is passed on when one of them cannot be asked.
        timeout: seconds for each to be found and to answer.
    """

    plugins: tuple[str, ...] = ()
    lenient: bool = False
    timeout: float = 10.0


class Finder(Protocol):
    """What is asked of the directory."""

    async def find(self, name: str, *, wait: bool = False, legacy: bool = False) -> Provider:
        """Return the plugin of a name; see ``Directory.find``."""
        ...


class _Answer(msgspec.Struct, frozen=True):
    allow: bool = False
    msg: str = ""
    err: str = ""


class Chain:
    """The plugins that are asked, each request anew: nothing about them is kept that could become untrue.

    Args:
        directory: finds them.

    Attributes:
        rules: those that count; where they name no plugin, nobody needs to call ``ask``.
    """

    def __init__(self, directory: Finder) -> None:
        self._directory = directory
        self._changing = anyio.Lock()
        self.rules = Rules()
        self._foreign: frozenset[str] = frozenset()

    async def use(self, rules: Rules, *, wait: bool = False) -> None:
        """Take other rules, once each of their plugins has been found; one that is disabled will do.

        Args:
            rules: they count for requests that come from now on.
            wait: whether plugins that others run are waited for.

        Raises:
            BadChain: they name what is no such plugin; those that counted still do.
        """
        async with self._changing:
            found = [await self._check(name, wait=wait) for name in dict.fromkeys(rules.plugins)]
            self.rules = rules
            # whoever may create plugins must not be able to hide one of these behind his own
            self._foreign = frozenset(provider.name for provider in found if not provider.plugin_id)

    async def _check(self, name: str, *, wait: bool) -> Provider:
        try:
            with anyio.fail_after(_FOUND_WITHIN):
                found = await self._directory.find(name, wait=wait)
            _require(found)
        except (PluginsvcError, TimeoutError) as exc:
            raise BadChain(name, str(exc) or f"it was not found within {_FOUND_WITHIN:g} s") from exc
        if not found.enabled:
            _log.warning("authz.disabled", plugin=found.name, meaning="it is not asked until it is enabled")
        return found

    async def ask(self, inquiry: Inquiry) -> None:
        """Put a request to each plugin, until one refuses it.

        Raises:
            Denied: one has.
            AuthorizationFailed: one could not be asked, or did not say.
        """
        rules = self.rules
        asked: set[tuple[str, str]] = set()
        for name in rules.plugins:
            shown = name
            try:
                with anyio.fail_after(rules.timeout):
                    found = await self._directory.find(name, legacy=name in self._foreign)
                    shown = found.name
                    # one plugin may be named several times, in short and in full
                    if not found.enabled or found.key in asked:
                        continue
                    asked.add(found.key)
                    _require(found)
                    if not found.up:
                        raise NotUp(found.state)
                    answer = await found.call(_METHOD, inquiry, timeout=rules.timeout)
            except (PluginRefused, BadAnswer) as exc:
                raise _failure(shown, str(exc)) from exc
            except (PluginsvcError, TimeoutError) as exc:
                reason = str(exc) or f"no answer within {rules.timeout:g} s"
                if not rules.lenient:
                    raise _failure(shown, reason) from exc
                _log.warning("authz.passed_on", plugin=shown, error=reason)
            else:
                _judge(shown, answer)


def _require(found: Provider) -> None:
    if not found.provides(_WANTED):
        raise NoCapability(found.name, _CAPABILITY)


def _judge(plugin: str, document: dict[str, Any]) -> None:
    """Raise unless an answer allows the request; its keys may be in any case, as in Docker, and null is nothing."""
    try:
        answer = msgspec.convert({k.lower(): v for k, v in document.items() if v is not None}, _Answer)
    except msgspec.ValidationError as exc:
        raise _failure(plugin, str(BadAnswer(plugin=plugin, method=_METHOD, reason=str(exc)))) from exc
    if answer.err:
        raise _failure(plugin, printable(answer.err))
    if not answer.allow:
        raise Denied(plugin, printable(answer.msg))


def _failure(plugin: str, reason: str) -> AuthorizationFailed:
    # errors of a call begin so already
    reason = f"{_METHOD}: {reason.removeprefix(f'{_METHOD}: ')}"
    _log.warning("authz.failed", plugin=plugin, error=reason, advice=_WAY_BACK)
    return AuthorizationFailed(plugin, reason)

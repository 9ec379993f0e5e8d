"""Plugins that guard this daemon's own API: each request is put to them before it is served (REF 3.13)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

import anyio
import msgspec
import structlog

from pluginsvc.directory.discovery import BadPluginFile
from pluginsvc.directory.provider import NoCapability, Provider
from pluginsvc.directory.rpc import BadAnswer, PluginFault, PluginRefused, printable
from pluginsvc.errors import Conflict, Forbidden, Internal, InvalidParameter, NotFound, PluginsvcError, Unavailable
from pluginsvc.model.plugin import Capability
from pluginsvc.model.reference import InvalidReference, Reference

_CAPABILITY: Final = "authz/1.0"
_WANTED = Capability.wanted(_CAPABILITY)
_METHOD = "AuthZPlugin.AuthZReq"
_FOUND_WITHIN = 30.0
"""Seconds in which all plugins have to be found that are to be asked from now on."""
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
            f"authorization.plugins: {plugin} cannot guard the API: {reason}: take it out of the configuration, remove"
            " what has its name and is not the plugin that is meant, and put it back when a plugin of that name with"
            " docker.authz/1.0 is there"
        )


class Rivals(Conflict):
    """What the configuration names may be one plugin or another, and only one of them is meant to guard the API."""


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
        timeout: seconds for each to be found and to answer, whenever there is a request.
    """

    plugins: tuple[str, ...] = ()
    lenient: bool = False
    timeout: float = 10.0


class Finder(Protocol):
    """What is asked of the directory."""

    async def find(self, name: str, *, wait: bool = False, legacy: bool = False) -> Provider:
        """Return the plugin of a name; see ``Directory.find``."""
        ...

    async def providers(self, capability: str = "", *, legacy: bool = True) -> list[Provider]:
        """Return the enabled plugins with a capability; see ``Directory.providers``."""
        ...


class _Bound(NamedTuple):
    """Whom a name of the rules means, from when they were taken: whoever may create plugins must not change that.

    Attributes:
        plugin: as it is configured.
        name: what is looked up for it: of a managed one its name, which with its tag is the beginning of no ID, or its
            ID where it was configured by that.
        legacy: whether only among those that others run.
    """

    plugin: str
    name: str
    legacy: bool = False


class _Guards(NamedTuple):
    """All that a request needs to know, replaced whole."""

    rules: Rules = Rules()
    bound: tuple[_Bound, ...] = ()


class _Answer(msgspec.Struct, frozen=True):
    allow: bool = False
    msg: str = ""
    err: str = ""


class Chain:
    """The plugins that are asked, each request anew: nothing about them is kept that could become untrue.

    Args:
        directory: finds them.
    """

    def __init__(self, directory: Finder) -> None:
        self._directory = directory
        self._changing = anyio.Lock()
        self._guards = _Guards()

    @property
    def rules(self) -> Rules:
        """Return those that count; where they name no plugin, nobody needs to call ``ask``."""
        return self._guards.rules

    async def use(self, rules: Rules, *, wait: bool = False) -> None:
        """Take other rules, once each of their plugins has been found; one that is disabled will do.

        From then on a managed plugin is known by its name, or by its ID where it was named by that, and a legacy one
        by its name among those; also for further rules that have the same name in them.

        Args:
            rules: they count for requests that come from now on.
            wait: whether plugins that others run are waited for.

        Raises:
            BadChain: they name what is no such plugin; those that counted still do.
        """
        async with self._changing:
            before = {bound.plugin: bound for bound in self._guards.bound}
            names = tuple(dict.fromkeys(rules.plugins))
            found: dict[str, _Bound | Exception] = {}

            async def look(name: str) -> None:
                try:
                    found[name] = await self._bind(before.get(name, _Bound(name, name)), wait=wait)
                except (PluginsvcError, TimeoutError) as exc:
                    found[name] = exc

            with anyio.move_on_after(_FOUND_WITHIN):
                async with anyio.create_task_group() as group:
                    for name in names:
                        group.start_soon(look, name)
            self._guards = _Guards(rules, tuple(_sure(name, found.get(name, TimeoutError())) for name in names))

    async def _bind(self, known: _Bound, *, wait: bool) -> _Bound:
        """Find what a name means, or still means; see ``use``."""
        found = await self._directory.find(known.name, wait=wait, legacy=known.legacy)
        if found.plugin_id and _is_name(known.name, found):
            await self._see_that_it_is_the_only_one(known.plugin, found)
            bound = _Bound(known.plugin, found.name)
        else:
            bound = _Bound(known.plugin, found.plugin_id or known.name, legacy=not found.plugin_id)
        _require(found)
        if not found.enabled:
            _log.warning("authz.disabled", plugin=found.name, meaning="it is not asked until it is enabled")
        return bound

    async def _see_that_it_is_the_only_one(self, name: str, found: Provider) -> None:
        """Refuse a managed plugin that may only have been given the name of the one that is meant.

        Raises:
            Rivals: it may have.
        """
        with suppress(NotFound):
            # one that does not answer is there all the same
            with suppress(PluginFault, BadPluginFile):
                await self._directory.find(name, legacy=True)
            raise Rivals(
                "there is a managed and a legacy plugin of that name: name the managed one by its ID, or delete one"
            )
        for other in await self._directory.providers(_CAPABILITY, legacy=False):
            if other.plugin_id.startswith(name) and other.plugin_id != found.plugin_id:
                raise Rivals(
                    f"it is the name of {found.name}, and the ID of {other.name} begins so:"
                    f" name that by its whole ID, or the first as {found.name}"
                )

    async def ask(self, inquiry: Inquiry) -> None:
        """Put a request to each plugin, until one refuses it.

        Raises:
            Denied: one has.
            AuthorizationFailed: one could not be asked, or did not say.
        """
        rules, bound = self._guards
        asked: set[tuple[str, str]] = set()
        for plugin, name, legacy in bound:
            shown = plugin
            try:
                with anyio.fail_after(rules.timeout):
                    found = await self._directory.find(name, legacy=legacy)
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


def _sure(name: str, found: _Bound | Exception) -> _Bound:
    """Return who was found, or raise for what happened instead."""
    if isinstance(found, Exception):
        raise BadChain(name, str(found) or f"it was not found within {_FOUND_WITHIN:g} s") from found
    return found


def _is_name(text: str, found: Provider) -> bool:
    """Tell whether a managed plugin was found by its name, and not by its ID or the beginning of that."""
    try:
        return Reference.parse(text).local_name() == found.name
    except InvalidReference:
        return False


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

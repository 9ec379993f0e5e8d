"""References: ``[host/]path[:tag][@digest]``, parsed, normalised and shown in familiar form (REF 3.1).

The grammar is the one of the distribution project; no network and no disk are involved.
"""

from __future__ import annotations

import re
from typing import Self

import msgspec

from pluginsvc.errors import InvalidParameter
from pluginsvc.model.digest import Digest, InvalidDigest

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_MAX_REPOSITORY = 255

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(
    rf"(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    rf"(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?"
)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")


class InvalidReference(InvalidParameter):
    """A text is not a reference; the texts are those of Docker, which clients search for."""

    def __init__(self, text: str, message: str = "invalid reference format") -> None:
        self.text = text
        super().__init__(message)


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A normalised reference; ``Reference.parse`` is the only constructor to use.

    Attributes:
        domain: registry host with optional port; ``docker.io`` when the text names none.
        path: repository without the host, ``library/`` included for official Hub names.
        tag: the tag, if given.
        digest: the digest, if given.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a familiar or a full reference and normalise it.

        Args:
            text: what a user wrote.

        Raises:
            InvalidReference: with the text Docker would give (REF 3.1).
        """
        if _IDENTIFIER.fullmatch(text):
            raise InvalidReference(
                text, f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )
        domain, remainder = _split_domain(text)
        # only the path must be lower case: a tag or digest may follow it
        path = remainder.partition(":")[0]
        if path != path.lower():
            raise InvalidReference(text, f"invalid reference format: repository name ({path}) must be lowercase")
        found = _REFERENCE.fullmatch(f"{domain}/{remainder}")
        if found is None or found["domain"] != domain:
            raise InvalidReference(text)
        if len(found["path"]) > _MAX_REPOSITORY:
            raise InvalidReference(text, f"repository name must not be more than {_MAX_REPOSITORY} characters")
        try:
            digest = Digest.parse(found["digest"]) if found["digest"] else None
        except InvalidDigest as exc:
            raise InvalidReference(text) from exc
        return cls(domain=domain, path=found["path"], tag=found["tag"], digest=digest)

    @property
    def repository(self) -> str:
        """Full repository name, host included: ``docker.io/library/foo``."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The short repository name that people type: ``foo``, ``a/b``, ``host/x``."""
        if self.domain != DEFAULT_DOMAIN:
            return self.repository
        short = self.path.removeprefix(_OFFICIAL)
        return short if "/" not in short else self.path

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def familiar(self) -> str:
        """The familiar name with the tag and digest that are there."""
        return self.familiar_name + self._suffix

    def __str__(self) -> str:
        """Full form: ``docker.io/library/foo:latest``."""
        return self.repository + self._suffix

    def with_default_tag(self) -> Reference:
        """Add ``:latest`` where neither tag nor digest is given."""
        return self if self.tag or self.digest else msgspec.structs.replace(self, tag=DEFAULT_TAG)

    def local_name(self) -> str:
        """The name a plugin gets from this reference: familiar, always with a tag, never a digest (REF 3.1)."""
        return f"{self.familiar_name}:{self.tag or DEFAULT_TAG}"


def _split_domain(text: str) -> tuple[str, str]:
    """Tell the registry host from the path, as Docker guesses it (REF 3.1)."""
    first, slash, rest = text.partition("/")
    is_host = bool(slash) and ("." in first or ":" in first or first == "localhost" or first.lower() != first)
    domain, remainder = (first, rest) if is_host else (DEFAULT_DOMAIN, text)
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in remainder:
        remainder = _OFFICIAL + remainder
    return domain, remainder

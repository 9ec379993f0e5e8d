"""What a registry's answers say about content, and whether it is true (distribution spec, "Pulling manifests")."""

from __future__ import annotations

import hashlib

import msgspec

from pluginsvc.errors import InvalidParameter
from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import MANIFEST_TYPES, OCI_INDEX, OCI_MANIFEST, Descriptor
from pluginsvc.registry.errors import RegistryProtocolError, redact_url
from pluginsvc.registry.transport import Answer


class _Typed(msgspec.Struct, rename="camel"):
    media_type: str | None = None
    manifests: object = msgspec.UNSET
    layers: object = msgspec.UNSET


_TYPED = msgspec.json.Decoder(_Typed)


def announced_digest(answer: Answer) -> Digest | None:
    """Return ``Docker-Content-Digest``, None when it is missing or malformed."""
    try:
        return Digest.parse(answer.headers.get("Docker-Content-Digest", ""))
    except InvalidParameter:
        return None


def announced_size(answer: Answer) -> int:
    """Return ``Content-Length``, 0 when it is missing or absurd."""
    text = answer.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def media_type(answer: Answer) -> str:
    """Return ``Content-Type`` without its parameters, in lower case."""
    return answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def guess_type(raw: bytes) -> str:
    """Tell a manifest by its own words where the registry's header does not; the member is optional in OCI."""
    try:
        found = _TYPED.decode(raw)
    except (msgspec.MsgspecError, ValueError):
        return ""
    if found.media_type in MANIFEST_TYPES:
        return found.media_type
    return (
        OCI_INDEX if found.manifests is not msgspec.UNSET else OCI_MANIFEST if found.layers is not msgspec.UNSET else ""
    )


def verify(answer: Answer, descriptor: Descriptor) -> None:
    """Check that an answer's body is what ``descriptor`` names.

    Raises:
        RegistryProtocolError: another size or another digest.
    """
    if len(answer.body) != descriptor.size:
        raise lie(answer, f"{descriptor.digest}: {len(answer.body)} bytes came instead of {descriptor.size}")
    if hashlib.new(descriptor.digest.algorithm, answer.body).hexdigest() != descriptor.digest.hex:
        raise lie(answer, f"{descriptor.digest}: what came has another digest")


def lie(answer: Answer, text: str) -> RegistryProtocolError:
    """Return the error for an answer that contradicts itself or what was asked for."""
    url = redact_url(answer.url)
    return RegistryProtocolError(f"GET {url}: {text}", url=url, http_status=answer.status)

"""Descriptors, manifests and indexes: Docker schema 2 and OCI (REF 4.3; OCI manifest.md, image-index.md)."""

from __future__ import annotations

import platform
from typing import Annotated, Final

import msgspec

from pluginsvc.errors import InvalidParameter, NotFound
from pluginsvc.model.digest import Digest

DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
PLUGIN_CONFIG: Final = "application/vnd.docker.plugin.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"

MANIFEST_TYPES: Final = (DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX)
INDEX_TYPES: Final = frozenset({DOCKER_LIST, OCI_INDEX})
MAX_MANIFEST: Final = 4 * 1024 * 1024
"""Largest manifest or config accepted, in bytes (REF 4.1)."""

LAYER_COMPRESSION: Final = {
    DOCKER_LAYER: "gzip",
    "application/vnd.docker.image.rootfs.diff.tar": "none",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
    "application/vnd.oci.image.layer.v1.tar": "none",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
}
"""Layer media types that can be unpacked, with the compression they promise; the bytes' magic has the last word."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}


class InvalidManifest(InvalidParameter):
    """A manifest or index cannot be read or does not hold together."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"invalid manifest: {reason}")


class UnknownLayerType(InvalidParameter):
    """A manifest names a layer of a type that cannot be unpacked (REF 7.20)."""

    def __init__(self, media_type: str) -> None:
        self.media_type = media_type
        super().__init__(
            f"unsupported layer type {media_type!r}: this daemon unpacks tar layers, plain or with gzip or zstd"
        )


class NoMatchingPlatform(NotFound):
    """An index holds nothing for this host (REF 7.22)."""

    def __init__(self, wanted: str, offered: list[str]) -> None:
        self.wanted, self.offered = wanted, offered
        super().__init__(f"no plugin for platform {wanted} in the index; it offers {', '.join(offered) or 'nothing'}")


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """What a manifest of an index is for (OCI image-index.md)."""

    architecture: str = ""
    os: str = ""
    variant: str = ""

    @classmethod
    def host(cls) -> Platform:
        """Return the platform this daemon runs on."""
        machine = platform.machine()
        variant = {"armv7l": "v7", "armv6l": "v6"}.get(machine, "")
        return cls(architecture=_ARCHITECTURES.get(machine, machine), os="linux", variant=variant)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Names one blob: type, digest and size in bytes (OCI descriptor.md)."""

    media_type: str
    digest: Digest
    size: Annotated[int, msgspec.Meta(ge=0)]
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    platform: Platform | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A decoded manifest; its raw bytes are what has the digest, so they are kept beside it."""

    schema_version: int
    config: Descriptor
    layers: list[Descriptor]
    media_type: str = ""

    @property
    def blobs(self) -> list[Descriptor]:
        """Config first, then the layers in order."""
        return [self.config, *self.layers]


class Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A decoded index (manifest list)."""

    schema_version: int
    manifests: list[Descriptor]
    media_type: str = ""

    def select(self, host: Platform) -> Descriptor:
        """Return the manifest for ``host``: an exact variant first, then one without a variant, then any.

        Raises:
            NoMatchingPlatform: nothing fits; the error lists what the index offers.
        """
        fits = [
            m
            for m in self.manifests
            if m.platform is not None and m.platform.os == host.os and m.platform.architecture == host.architecture
        ]
        for wanted in (host.variant, ""):
            for manifest in fits:
                if manifest.platform is not None and manifest.platform.variant == wanted:
                    return manifest
        if fits:
            return fits[0]
        raise NoMatchingPlatform(str(host), [str(m.platform) for m in self.manifests if m.platform is not None])


def decode_digest(kind: type, value: object) -> object:
    """``dec_hook`` for msgspec: turn text into a ``Digest``."""
    if kind is Digest and isinstance(value, str):
        try:
            return Digest.parse(value)
        except InvalidParameter as exc:
            raise ValueError(str(exc)) from exc
    raise NotImplementedError(kind)


_MANIFEST = msgspec.json.Decoder(Manifest, dec_hook=decode_digest)
_INDEX = msgspec.json.Decoder(Index, dec_hook=decode_digest)


def parse_manifest(raw: bytes) -> Manifest:
    """Decode a manifest and check it.

    Args:
        raw: the bytes as fetched; never re-encoded.

    Raises:
        InvalidManifest: not JSON, wrong shape, wrong schema version, a negative size or a malformed digest.
    """
    try:
        manifest = _MANIFEST.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise InvalidManifest(str(exc)) from exc
    if manifest.schema_version != 2:
        raise InvalidManifest(f"schema version {manifest.schema_version} is not supported, only 2 is")
    return manifest


def parse_index(raw: bytes) -> Index:
    """Decode an index.

    Raises:
        InvalidManifest: not JSON, wrong shape, a negative size or a malformed digest.
    """
    try:
        return _INDEX.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise InvalidManifest(str(exc)) from exc


def build_manifest(config: Descriptor, layers: list[Descriptor]) -> bytes:
    """Encode the manifest of a created plugin, members in the order Docker writes them (REF 4.3)."""

    def plain(blob: Descriptor) -> dict[str, object]:
        return {"mediaType": blob.media_type, "digest": str(blob.digest), "size": blob.size}

    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "config": plain(config),
            "layers": [plain(layer) for layer in layers],
            "mediaType": DOCKER_MANIFEST,
        }
    )

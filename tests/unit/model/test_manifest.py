"""Manifests and indexes: hostile documents, the choice of a platform, and the bytes we write."""

import platform
from typing import Any

import msgspec
import pytest

from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import (
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_MANIFEST,
    PLUGIN_CONFIG,
    Descriptor,
    Index,
    InvalidManifest,
    NoMatchingPlatform,
    Platform,
    build_manifest,
    parse_index,
    parse_manifest,
)

CONFIG = Descriptor(media_type=PLUGIN_CONFIG, digest=Digest.of(b"c"), size=1)
LAYER = Descriptor(media_type=DOCKER_LAYER, digest=Digest.of(b"l"), size=2**40)


def document(**changes: Any) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(build_manifest(CONFIG, [LAYER])) | changes)


def test_built_manifest_is_golden_and_reads_back() -> None:
    """We write exactly Moby's members in its order."""
    raw = build_manifest(CONFIG, [LAYER, LAYER])
    layer = f'{{"mediaType":"{DOCKER_LAYER}","digest":"{LAYER.digest}","size":1099511627776}}'
    assert raw.decode() == (
        f'{{"schemaVersion":2,"config":{{"mediaType":"{PLUGIN_CONFIG}","digest":"{CONFIG.digest}","size":1}},'
        f'"layers":[{layer},{layer}],"mediaType":"{DOCKER_MANIFEST}"}}'
    )
    found = parse_manifest(raw)
    assert found.blobs == [CONFIG, LAYER, LAYER]
    assert isinstance(found.config.digest, Digest)


def test_unknown_members_pass() -> None:
    """An OCI manifest with members that we do not know is read."""
    layer = {"mediaType": "x/y", "digest": LAYER.digest[:], "size": 0, "urls": ["u"], "annotations": {"a": "b"}, "z": 1}
    found = parse_manifest(
        msgspec.json.encode(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "artifactType": "x",
                "subject": None,
                "config": {"mediaType": PLUGIN_CONFIG, "digest": str(CONFIG.digest), "size": 1},
                "layers": [layer | {"digest": str(LAYER.digest)}],
            }
        )
    )
    assert found.layers[0].annotations == {"a": "b"}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"{}",
        b'{"schemaVersion":2',
        b'{"schemaVersion":2,"x":' + b"[" * 200_000,
        document(schemaVersion=1),
        document(schemaVersion="2"),
        document(layers=None),
        document(layers={}),
        document(config=None),
        document(layers=[{"mediaType": "a", "digest": "sha256:zz", "size": 1}]),
        document(layers=[{"mediaType": "a", "digest": f"sha256:{'a' * 64}/../..", "size": 1}]),
        document(layers=[{"mediaType": "a", "digest": str(LAYER.digest), "size": -1}]),
        document(layers=[{"mediaType": "a", "digest": str(LAYER.digest), "size": 1.5}]),
        document(layers=[{"mediaType": "a", "digest": str(LAYER.digest)}]),
        document(layers=[{"mediaType": None, "digest": str(LAYER.digest), "size": 1}]),
    ],
)
def test_hostile_manifests(raw: bytes) -> None:
    """What is no manifest, or names blobs that cannot be, is one clear error."""
    with pytest.raises(InvalidManifest, match="invalid manifest: "):
        parse_manifest(raw)


@pytest.mark.parametrize(
    "raw",
    [b"", b"null", b'{"schemaVersion":2}', b'{"schemaVersion":2,"manifests":null}', b'{"a":' + b"[" * 200_000,
     b'{"schemaVersion":2,"manifests":[{"mediaType":"a","digest":"sha256:x","size":1}]}',
     b'{"schemaVersion":2,"manifests":[{"mediaType":"a","digest":"sha256:' + b"a" * 64 + b'","size":-1}]}'],
)  # fmt: skip
def test_hostile_indexes(raw: bytes) -> None:
    """What is no index is one clear error."""
    with pytest.raises(InvalidManifest):
        parse_index(raw)


def index(*names: str) -> Index:
    """An index whose manifests are for these platforms; the size tells which it is; an empty name has none."""
    found = []
    for number, name in enumerate(names):
        parts = dict(zip(("os", "architecture", "variant"), name.split("/"), strict=False))
        entry = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"")), "size": number}
        found.append(entry | ({"platform": parts} if name else {}))
    return parse_index(msgspec.json.encode({"schemaVersion": 2, "manifests": found}))


@pytest.mark.parametrize(
    ("names", "host", "chosen"),
    [
        (["linux/arm64", "linux/amd64"], "linux/amd64", 1),
        (["windows/amd64", "linux/amd64"], "linux/amd64", 1),
        (["", "linux/amd64"], "linux/amd64", 1),
        (["linux/amd64", "linux/amd64"], "linux/amd64", 0),
        (["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7", 1),
        (["linux/arm/v6", "linux/arm"], "linux/arm/v7", 1),
        (["linux/arm/v6", "linux/arm/v5"], "linux/arm/v7", 0),
        (["linux/arm64/v8"], "linux/arm64", 0),
    ],
)
def test_choice_of_platform(names: list[str], host: str, chosen: int) -> None:
    """The exact variant wins, then one without a variant, then any; order decides among equals."""
    system, architecture, variant = [*host.split("/"), ""][:3]
    found = index(*names).select(Platform(os=system, architecture=architecture, variant=variant))
    assert found.size == chosen


@pytest.mark.parametrize("names", [[], [""], ["linux/s390x", "windows/amd64"]])
def test_no_platform_fits(names: list[str]) -> None:
    """When nothing fits, the error says what was wanted and what there is."""
    with pytest.raises(NoMatchingPlatform, match="linux/amd64") as caught:
        index(*names).select(Platform(os="linux", architecture="amd64"))
    assert caught.value.offered == [name for name in names if name]
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize(
    ("machine", "name"),
    [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("armv7l", "linux/arm/v7"), ("riscv64", "linux/riscv64")],
)
def test_host_platform(machine: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's machine names become those of OCI."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert str(Platform.host()) == name

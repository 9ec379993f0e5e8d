"""Digests parse from their text and from nothing else."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.model.digest import Digest, InvalidDigest, encode_digest


@pytest.mark.parametrize(
    "text",
    ["", "sha256:", "sha256", "a" * 64, "sha256:" + "A" * 64, "sha256:" + "a" * 63, "sha256:" + "a" * 65,
     "sha256:" + "g" * 64, "md5:" + "a" * 32, "sha512:" + "a" * 64, "SHA256:" + "a" * 64, " sha256:" + "a" * 64,
     "sha256:" + "a" * 64 + "\n", "sha256:../" + "a" * 61, "sha256:" + "١" * 64, "sha256::" + "a" * 63],
)  # fmt: skip
def test_refused(text: str) -> None:
    """Other algorithms, lengths, cases and characters are refused."""
    with pytest.raises(InvalidDigest, match="64 lower-case hex digits"):
        Digest.parse(text)


def test_a_hostile_text_is_shown_shortened() -> None:
    """A huge text does not become a huge message."""
    with pytest.raises(InvalidDigest) as caught:
        Digest.parse("x" * 10**6)
    assert len(str(caught.value)) < 300


@given(st.binary())
def test_of_bytes(data: bytes) -> None:
    """The digest of bytes is their sha256, and its parts are those of its text."""
    found = Digest.of(data)
    assert found == "sha256:" + hashlib.sha256(data).hexdigest() == Digest.parse(found) == Digest.sha256(found.hex)
    assert (found.algorithm, found.hex, found.short) == ("sha256", found[7:], found[7:19])


def test_sha512() -> None:
    """A sha512 digest is a digest."""
    assert Digest.parse("sha512:" + "0" * 128).algorithm == "sha512"


def test_encodes_as_its_text() -> None:
    """With the hook a digest is its text in JSON; the hook refuses all else."""
    digest = Digest.of(b"")
    assert msgspec.json.encode([digest], enc_hook=encode_digest) == f'["{digest}"]'.encode()
    with pytest.raises(NotImplementedError):
        msgspec.json.encode(object(), enc_hook=encode_digest)

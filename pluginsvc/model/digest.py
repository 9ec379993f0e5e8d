"""Digests: ``algorithm:hex``, the names of content (OCI image spec, descriptor.md)."""

from __future__ import annotations

import hashlib
import re
from typing import Self

from pluginsvc.errors import InvalidParameter

_HEX_LENGTH = {"sha256": 64, "sha512": 128}
_GRAMMAR = re.compile(r"(?P<algorithm>[a-z0-9]+):(?P<hex>[0-9a-f]+)")


class InvalidDigest(InvalidParameter):
    """A text is not a digest that this program can verify."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(f"invalid digest {text[:100]!r}: give sha256: and 64 lower-case hex digits")


class Digest(str):
    """A checked digest; parsing is the only way to make one.

    It is a ``str`` and compares as its text; msgspec encodes it with ``encode_digest`` as ``enc_hook``.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Check ``text`` and return it as a digest.

        Raises:
            InvalidDigest: wrong grammar, unknown algorithm or wrong length.
        """
        found = _GRAMMAR.fullmatch(text)
        if found is None or len(found["hex"]) != _HEX_LENGTH.get(found["algorithm"]):
            raise InvalidDigest(text)
        return cls(text)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return the sha256 digest of ``data``."""
        return cls(f"sha256:{hashlib.sha256(data).hexdigest()}")

    @classmethod
    def sha256(cls, hexdigest: str) -> Self:
        """Return the digest of a finished sha256, given its 64 hex digits."""
        return cls.parse(f"sha256:{hexdigest}")

    @property
    def algorithm(self) -> str:
        """``sha256`` or ``sha512``."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """The hex digits alone; safe as a file name."""
        return self.partition(":")[2]

    @property
    def short(self) -> str:
        """The first 12 hex digits, as progress lines show them (REF 1.5)."""
        return self.hex[:12]


def encode_digest(value: object) -> object:
    """``enc_hook`` for msgspec, which takes no subclass of ``str`` by itself: turn a ``Digest`` into its text."""
    if isinstance(value, Digest):
        return str(value)
    raise NotImplementedError(type(value))

"""Lines of the pull, upgrade and push streams (REF 1.5)."""

from __future__ import annotations

import msgspec

from pluginsvc.model.digest import encode_digest


class ProgressDetail(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Bytes done and bytes in all; zero members are left out."""

    current: int = 0
    total: int = 0


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """The only place where the docker CLI looks for an error."""

    message: str


class Aux(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What a push ends with: tag, digest and size of the manifest in bytes (REF 4.5)."""

    tag: str
    digest: str
    size: int


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a stream; members left at their defaults are not sent."""

    status: str = ""
    id: str = ""
    progress_detail: ProgressDetail | None = msgspec.field(default=None, name="progressDetail")
    aux: Aux | None = None
    error: str = ""
    error_detail: ErrorDetail | None = msgspec.field(default=None, name="errorDetail")

    @classmethod
    def failure(cls, message: str) -> Line:
        """Return the last line of a stream that failed."""
        return cls(error=message, error_detail=ErrorDetail(message=message))

    @classmethod
    def step(cls, status: str, item: str, *, current: int = 0, total: int = 0) -> Line:
        """Return a progress line of one item; ``current`` and ``total`` in bytes."""
        return cls(status=status, id=item, progress_detail=ProgressDetail(current=current, total=total))


_ENCODER = msgspec.json.Encoder(enc_hook=encode_digest)


def encode_line(line: Line) -> bytes:
    """Encode a line with its CRLF."""
    return _ENCODER.encode(line) + b"\r\n"

"""The ``filters`` query parameter, in both of its forms (REF 1.7, 3.8)."""

from __future__ import annotations

from typing import Any

import msgspec

from pluginsvc.errors import InvalidParameter


class InvalidFilter(InvalidParameter):
    """A filter is malformed, unknown or has a value it cannot have."""

    def __init__(self, detail: str = "") -> None:
        self.detail = detail
        super().__init__(f"invalid filter '{detail}'" if detail else "invalid filter")


def parse_filters(text: str) -> dict[str, list[str]]:
    """Decode ``{"k":["v"]}`` or ``{"k":{"v":true}}``; values marked false are left out.

    Raises:
        InvalidFilter: neither of the two forms.
    """
    if not text:
        return {}
    try:
        document: Any = msgspec.json.decode(text)
        if isinstance(document, dict):
            document = {
                key: [name for name, wanted in values.items() if _flag(wanted)] if isinstance(values, dict) else values
                for key, values in document.items()
            }
        return msgspec.convert(document, dict[str, list[str]])
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise InvalidFilter from exc


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidFilter
    return value

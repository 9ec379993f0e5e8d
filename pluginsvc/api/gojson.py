"""What Go's JSON decoder says about a broken document (REF 1.1: upstream's tests look for its texts).

Only run after a real decoder has refused the bytes; it finds the same first error that Go would find.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pluginsvc.api.params import go_quote

_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_EXPONENT = re.compile(r"[eE][+-]?")
_LITERALS = {"t": "true", "f": "false", "n": "null"}
_NUMBER_STARTS = frozenset("-0123456789")
_MAX_DEPTH = 10_000
_HEX = frozenset("0123456789abcdefABCDEF")


class GoSyntaxError(Exception):
    """The text of Go's error."""


def end_of_value(raw: bytes) -> int:
    """Return where the first JSON value of ``raw`` ends, in bytes.

    Args:
        raw: not only white space; a few KiB, since this runs at the speed of Python.

    Raises:
        GoSyntaxError: with the text Go gives.
    """
    # one character for each byte, as Go looks at them
    return _Scanner(raw.decode("latin-1")).run()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.open: list[str] = []

    def run(self) -> int:
        self._value()
        while self.open:
            self._after_value()
        return self.at

    def _fail(self, context: str, at: int) -> GoSyntaxError:
        if at >= len(self.text):
            return GoSyntaxError("unexpected EOF")
        char = self.text[at]
        shown = "'\"'" if char == '"' else go_quote(char, mark="'")
        return GoSyntaxError(f"invalid character {shown} {context}")

    def _peek(self) -> str:
        found = _SPACE.match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        return self.text[self.at : self.at + 1]

    def _value(self) -> None:
        """Pass over one value, or over the opening bracket of one."""
        char = self._peek()
        scanners: dict[str, Callable[[], None]] = {'"': self._string, "t": self._literal, "f": self._literal}
        scanners |= {"n": self._literal, "{": self._object, "[": self._array}
        if char in _NUMBER_STARTS:
            self._number()
        elif char in scanners:
            scanners[char]()
        else:
            raise self._fail("looking for beginning of value", self.at)
        if not self.open and self.text[self.at - 1] not in "]}" and self.text[self.at : self.at + 1].strip(" \t\r\n"):
            raise self._fail("after top-level value", self.at)

    def _push(self, bracket: str) -> None:
        self.at += 1
        self.open.append(bracket)
        if len(self.open) > _MAX_DEPTH:
            raise GoSyntaxError("exceeded max depth")

    def _object(self) -> None:
        self._push("{")
        if self._peek() == "}":
            self._close()
        else:
            self._member()

    def _member(self) -> None:
        if self._peek() != '"':
            raise self._fail("looking for beginning of object key string", self.at)
        self._string()
        if self._peek() != ":":
            raise self._fail("after object key", self.at)
        self.at += 1
        self._next_value()

    def _array(self) -> None:
        self._push("[")
        if self._peek() == "]":
            self._close()
        else:
            self._next_value()

    def _next_value(self) -> None:
        """Note that a value is due; the loop in ``run`` takes it, so that depth costs no recursion."""
        self.open.append("due")

    def _close(self) -> None:
        self.open.pop()
        self.at += 1

    def _after_value(self) -> None:
        if self.open[-1] == "due":
            self.open.pop()
            self._value()
            return
        inside = self.open[-1]
        char = self._peek()
        if char == ("}" if inside == "{" else "]"):
            self._close()
        elif char == ",":
            self.at += 1
            if inside == "{":
                self._member()
            else:
                self._next_value()
        else:
            raise self._fail("after object key:value pair" if inside == "{" else "after array element", self.at)

    def _string(self) -> None:
        found = _STRING.match(self.text, self.at)
        assert found is not None
        at = found.end()
        char = self.text[at : at + 1]
        if char == '"':
            self.at = at + 1
            return
        if char != "\\":
            raise self._fail("in string literal", at)
        if self.text[at + 1 : at + 2] != "u":
            raise self._fail("in string escape code", at + 1)
        bad = next((at + n for n in range(2, 6) if self.text[at + n : at + n + 1] not in _HEX), at + 6)
        raise self._fail("in \\u hexadecimal character escape", bad)

    def _number(self) -> None:
        found = _NUMBER.match(self.text, self.at)
        if found is None:
            raise self._fail("in numeric literal", self.at + 1)
        self.at = found.end()
        seen = found[0].lower()
        if self.text[self.at : self.at + 1] == "." and "." not in seen and "e" not in seen:
            raise self._fail("after decimal point in numeric literal", self.at + 1)
        if "e" not in seen and (exponent := _EXPONENT.match(self.text, self.at)):
            raise self._fail("in exponent of numeric literal", exponent.end())

    def _literal(self) -> None:
        word = _LITERALS[self.text[self.at]]
        for number, expected in enumerate(word):
            if self.text[self.at + number : self.at + number + 1] != expected:
                raise self._fail(f"in literal {word} (expecting '{expected}')", self.at + number)
        self.at += len(word)

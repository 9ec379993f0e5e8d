"""The tree of errors, walked after every module was imported."""

import importlib
import os
import pkgutil
from collections.abc import Iterator

import pytest

import pluginsvc
from pluginsvc.errors import KINDS, Conflict, NotFound, PluginsvcError, first_leaf


def all_errors() -> list[type[PluginsvcError]]:
    for module in pkgutil.walk_packages(pluginsvc.__path__, "pluginsvc."):
        importlib.import_module(module.name)

    def below(kind: type[PluginsvcError]) -> Iterator[type[PluginsvcError]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    found = {error for error in below(PluginsvcError) if error.__module__.startswith("pluginsvc.")}
    return sorted(found, key=lambda error: (error.__module__, error.__qualname__))


def test_kinds_are_exactly_the_second_level() -> None:
    """The kinds are the root's direct children, each with a status of its own."""
    assert set(KINDS) == {child for child in PluginsvcError.__subclasses__() if child.__module__ == "pluginsvc.errors"}
    assert sorted(kind.status for kind in KINDS) == [400, 401, 403, 404, 409, 499, 500, 501, 503]


def test_every_error_has_exactly_one_kind_and_keeps_its_status() -> None:
    """Each error of the program inherits one kind, and only the kind says the status."""
    found = all_errors()
    assert len(found) > len(KINDS)
    wrong = [error for error in found if sum(issubclass(error, kind) for kind in KINDS) != 1]
    assert wrong == []
    assert [error for error in found if "status" in vars(error) and error not in KINDS] == []


def test_every_error_says_what_it_is() -> None:
    """Each error has a docstring of its own: docs/errors.md is made of them."""
    assert [error for error in all_errors() if not (error.__dict__.get("__doc__") or "").strip()] == []


OURS = NotFound("ours")


@pytest.mark.parametrize(
    ("error", "leaf"),
    [
        (OURS, OURS),
        (ExceptionGroup("g", [ValueError("x"), OURS, Conflict("later")]), OURS),
        (ExceptionGroup("g", [ExceptionGroup("h", [KeyError(), OURS]), Conflict("later")]), OURS),
        (BaseExceptionGroup("g", [KeyboardInterrupt(), OURS]), OURS),
    ],
)
def test_first_leaf_of_ours_wins(error: BaseException, leaf: BaseException) -> None:
    """Of a group the first error of our tree is shown, however deep."""
    assert first_leaf(error) is leaf


def test_first_leaf_of_strangers() -> None:
    """Without one of ours the first leaf is shown, and a plain exception stays itself."""
    first = ValueError("first")
    assert first_leaf(ExceptionGroup("g", [ExceptionGroup("h", [first]), KeyError()])) is first
    assert first_leaf(first) is first


def test_texts_can_be_written_down() -> None:
    """The text of an error is UTF-8 whatever names of files are in it."""
    error = NotFound(f"{os.fsdecode(b'name' + bytes([255]))}: not there")
    assert str(error).encode() == b"name\\udcff: not there"

"""The house's plan (design §2): imports go downwards, rooms on one row keep apart, and each module stands alone."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pluginsvc"
MODULES = sorted(PACKAGE.rglob("*.py"))

_ONE = {"tasks", "spawn", "fsutil", "log", "metrics", "systemd", "watches"}
_TWO = {"state", "content", "registry", "sources", "rootfs", "runtime"}
_LOW = {"errors", "model"} | _ONE
_UP_TO_SIX = _LOW | _TWO | {"events", "transfer", "directory", "plugins", "api", "client"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "model": {"errors"},
    **{room: {"errors", "model"} for room in _ONE | {"sink_settings"}},
    "config": {"errors", "model", "sink_settings"},
    **dict.fromkeys(_TWO, _LOW),
    "events": _LOW | {"state"},
    "transfer": _LOW | {"content", "registry", "sources"},
    "directory": _LOW | {"events", "state"},
    "plugins": _LOW | _TWO | {"events", "transfer", "directory"},
    "api": _LOW | {"plugins", "directory", "events"},
    "client": _LOW,
    "wiring": _UP_TO_SIX | {"config"},
    "reload": _UP_TO_SIX | {"config", "wiring"},
    "daemon": _UP_TO_SIX | {"config", "wiring", "reload"},
    "__main__": _UP_TO_SIX | {"config", "daemon"},
}
"""Rooms each room may import, besides itself. Only the top row has ``config``."""

CHILD_LIBRARIES = {"isal", "backports", "zstd"}
"""What the confined child may hold besides the standard library and ``errors``."""


def name_of(path: Path) -> str:
    parts = ["pluginsvc", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return [*module.split("."), ""][1]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


@cache
def imports_of(path: Path) -> tuple[str, ...]:
    """Every module that ``path`` imports, wherever in the file, as full names; of ``from a import b`` also ``a.b``."""
    found: list[str] = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            ours = [f"{base}.{alias.name}" for alias in node.names]
            # a name of one of our packages is a module of it; any other is an attribute
            found += [name if (PACKAGE.parent / Path(*name.split("."))).with_suffix(".py").exists()
                      or (PACKAGE.parent / Path(*name.split("."))).is_dir() else base for name in ours]  # fmt: skip
    return tuple(dict.fromkeys(found))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards(path: Path) -> None:
    """A module imports its own room and the rooms that the table allows, and no other."""
    room = room_of(name_of(path))
    if not room:
        assert imports_of(path) == ()
        return
    assert room in MAY_IMPORT, f"{room} has no row in the table of design §2"
    used = {room_of(name) for name in imports_of(path) if name.startswith("pluginsvc.")}
    assert used - {room} <= MAY_IMPORT[room]


def test_the_api_knows_the_manager_only() -> None:
    """Of the plugins' room the API imports the manager and nothing behind it."""
    used = {name for path in MODULES if room_of(name_of(path)) == "api" for name in imports_of(path)}
    assert {name for name in used if room_of(name) == "plugins"} <= {"pluginsvc.plugins.manager"}


def test_only_the_api_serves_http() -> None:
    """``aiohttp.web`` is known to the API alone."""
    users = {
        room_of(name_of(path))
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if (isinstance(node, ast.ImportFrom) and node.module == "aiohttp" and "web" in {a.name for a in node.names})
        or any(
            name.startswith("aiohttp.web") for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        )
    }
    assert users <= {"api"}


def test_the_lowest_row_needs_msgspec_only() -> None:
    """``errors`` needs the standard library, ``model`` also msgspec, so that anybody may import them."""
    for path in MODULES:
        room = room_of(name_of(path))
        if room in {"errors", "model"}:
            foreign = {name.split(".")[0] for name in imports_of(path)} - sys.stdlib_module_names - {"pluginsvc"}
            assert foreign <= ({"msgspec"} if room == "model" else set()), path


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=name_of)
def test_packages_hold_a_docstring_only(path: Path) -> None:
    """``__init__`` files hold a docstring and nothing else, so that importing a module loads that module alone."""
    tree = tree_of(path)
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    """Each module starts with a docstring."""
    assert ast.get_docstring(tree_of(path))


def test_the_confined_child_holds_little() -> None:
    """What the child loads, all of it, is the standard library, isal, zstd and errors: nothing worth stealing."""
    todo = ["pluginsvc.rootfs.worker", "pluginsvc.rootfs.tar", "pluginsvc.rootfs.tee"]
    seen = set(todo)
    while todo:
        for name in imports_of((PACKAGE.parent / Path(*todo.pop().split("."))).with_suffix(".py")):
            if name.startswith("pluginsvc."):
                assert room_of(name) in {"rootfs", "errors"}, name
                if name not in seen and name != "pluginsvc.rootfs":
                    seen.add(name)
                    todo.append(name)
            else:
                assert name.split(".")[0] in sys.stdlib_module_names | CHILD_LIBRARIES, name


def test_the_confined_child_loads_little() -> None:
    """In a fresh interpreter the child's module loads no framework."""
    code = "import sys, pluginsvc.rootfs.worker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded & {"msgspec", "anyio", "aiohttp", "structlog", "asyncio", "sqlite3", "ssl"} == set()


ALONE = """
import os, sys
import aiohttp.web, anyio, asyncinotify, msgspec, rich_click, sqlite3, structlog
status = 0
for name in sys.argv[1:]:
    pid = os.fork()
    if pid == 0:
        assert not any(loaded.startswith("pluginsvc") for loaded in sys.modules)
        try:
            __import__(name)
        except BaseException as exc:
            print(name, repr(exc), flush=True)
            os._exit(1)
        os._exit(0)
    status |= os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.exit(status)
"""


def test_each_module_can_be_imported_first() -> None:
    """Whichever module is imported first, it loads: there are no cycles that another order hides."""
    # one interpreter with the foreign libraries loaded, forked for each of our modules: fresh, and fast
    names = [name_of(path) for path in MODULES]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *names], capture_output=True, text=True, check=False, cwd=PACKAGE.parent
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr

"""The confined child: parses hostile bytes, holds nothing worth stealing, is used once (design D4).

It is started ahead and waits for its one job on the control socket: packets of JSON, descriptors beside them
(SCM_RIGHTS). It answers with packets of ``{"progress": n}`` and one ``{"result": …}`` or ``{"error": …}`` per request.
Everything it needs is imported before it locks itself in; afterwards there is no file to import.

Standard library, isal, zstd and errors only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NoReturn

from pluginsvc.rootfs import confine, syscalls
from pluginsvc.rootfs.source import InvalidArchive, Source, printable
from pluginsvc.rootfs.tar import DIRECTORY, FILE, LINK, Entry, Reader
from pluginsvc.rootfs.tree import OPAQUE, WHITEOUT, Tree
from pluginsvc.rootfs.writer import Writer

PACKET: Final = 1 << 16
"""Largest packet on the control socket, in bytes."""

_PROGRESS_STEP: Final = 1 << 19
_NICE: Final = 10
_CONFIG: Final = b"config.json"
_ROOTFS: Final = b"rootfs"


def main(control: int, parent: int) -> NoReturn:
    """Do one job and exit.

    Args:
        control: descriptor of the control socket.
        parent: process ID of the daemon, to notice that it ended before we asked to die with it.
    """
    code = 1
    try:
        syscalls.die_with_parent(signal.SIGKILL)
        # whoever asks the daemon, and the plugins, come before an install
        os.nice(_NICE)
        if os.getppid() == parent:
            code = _serve(socket.socket(fileno=control))
    except BaseException:  # noqa: BLE001 - the last word of a process that ends in the next line
        # not the traceback module: it reads source files, and they are out of reach
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    # neither handlers nor destructors: there is nothing to tidy up in here
    os._exit(code)


def _serve(control: socket.socket) -> int:
    try:
        job, descriptors = _receive(control)
        if job is None:
            return 0
        try:
            confine.fork_into_namespaces()
            root = confine.lock_in(descriptors[0])
        except OSError as exc:
            _send(control, {"error": "confinement", "reason": str(exc)})
            return 1
        tree = Tree(root)
        if job["job"] == "ingest":
            _send(control, {"result": _ingest(tree, *descriptors[1:], limit=job["limit"])})
        else:
            _unpack(tree, control)
    except InvalidArchive as exc:
        entry = None if exc.entry is None else exc.entry[:4096].hex()
        _send(control, {"error": "archive", "reason": exc.reason[:1000], "entry": entry, "offset": exc.offset})
    except MemoryError:
        _send(control, {"error": "archive", "reason": "it takes too much memory to unpack"})
    except OSError as exc:
        kind = "disk" if exc.errno in {errno.ENOSPC, errno.EDQUOT} else "machine"
        _send(control, {"error": kind, "reason": str(exc)[:1000]})
    else:
        return 0
    return 1


def _receive(control: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Wait for the next request; None when the daemon closed its end."""
    data, descriptors, _, _ = socket.recv_fds(control, PACKET, 8)
    return (json.loads(data) if data else None), descriptors


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    control.send(json.dumps(message).encode())


def _ingest(tree: Tree, body: int, layer: int, config: int, *, limit: int) -> dict[str, Any]:
    """Split the archive of a new plugin: config.json, and the rootfs into ``tree`` and as a layer (REF 3.2).

    Args:
        tree: gets what is below ``rootfs/``.
        body: descriptor to read the archive from.
        layer: descriptor to write the layer to, a plain tar.
        config: descriptor of a memory file that gets config.json; of several the last one.
        limit: largest config.json, in bytes.

    Returns:
        Whether there was a rootfs, even an empty one, and the length of config.json or None.
    """
    source = Source(body)
    reader = Reader(source, marked=True)
    writer = Writer(layer)
    found: dict[str, Any] = {"rootfs": False, "config": None}

    def copied(pieces: Iterable[memoryview]) -> Iterator[memoryview]:
        for view in pieces:
            writer.data(view)
            yield view

    def both(size: int) -> Iterable[memoryview]:
        pieces = reader.read(size)
        if not isinstance(pieces, tuple):
            return copied(pieces)
        writer.data(pieces[0])
        return pieces

    for entry in reader:
        top, _, rest = entry.name.partition(b"/")
        if top == _ROOTFS:
            found["rootfs"] = True
            if not rest and entry.kind != DIRECTORY:
                raise InvalidArchive("rootfs is not a directory", entry=entry.name, offset=entry.offset)
            entry = _stripped(entry, rest)  # noqa: PLW2901 - from here on only the one in the layer counts
            writer.entry(entry)
            tree.place(entry, both)
            if entry.kind == FILE:
                writer.pad(entry.size)
        elif entry.name == _CONFIG:
            found["config"] = _config(entry, reader, config, limit)
    source.drain()
    tree.finish()
    writer.end()
    os.close(layer)
    return found


def _stripped(entry: Entry, rest: bytes) -> Entry:
    """Return the entry with ``rootfs/`` taken off its name and a hard link's target."""
    if b"/" + WHITEOUT in b"/" + rest:
        reason = f"names that start with {WHITEOUT.decode()} stand for deletions in a layer; rename it"
        raise InvalidArchive(reason, entry=entry.name, offset=entry.offset)
    link = entry.link.removeprefix(_ROOTFS + b"/") if entry.kind == LINK else entry.link
    _, kind, mode, uid, gid, mtime_ns, size, _, device, xattrs, extents, real_size, offset = entry
    # _replace takes three times as long
    return Entry(rest, kind, mode, uid, gid, mtime_ns, size, link, device, xattrs, extents, real_size, offset)


def _config(entry: Entry, reader: Reader, config: int, limit: int) -> int:
    if entry.kind != FILE or entry.extents is not None:
        raise InvalidArchive("config.json is not a plain file", offset=entry.offset)
    if entry.size > limit:
        raise InvalidArchive(f"config.json has {entry.size} bytes, at most {limit} are taken", offset=entry.offset)
    at = 0
    for view in reader.read(entry.size):
        at += os.pwrite(config, view, at)
    return at


def _unpack(tree: Tree, control: socket.socket) -> None:
    """Apply one layer per request, each on top of those before it (OCI layer.md), until asked to finish."""
    while True:
        request, descriptors = _receive(control)
        if request is None:
            raise BrokenPipeError(errno.EPIPE, "the daemon closed the control socket")
        if request["job"] == "finish":
            tree.finish()
            _send(control, {"result": {}})
            return
        blob, counter = descriptors
        hasher = hashlib.new(request["verify"]) if request["verify"] else None
        _apply(tree, control, blob, hasher, _arrival(counter, request["size"]))
        os.close(blob)
        os.close(counter)
        _send(control, {"result": {"digest": None if hasher is None else hasher.hexdigest()}})


def _arrival(counter: int, size: int) -> Callable[[int], int]:
    """Return what waits for bytes beyond those consumed, of a blob of ``size`` bytes that may still be on its way.

    Args:
        counter: an eventfd to which the daemon adds what has arrived. When nothing more comes, the daemon kills us.
        size: of the whole blob, in bytes.
    """
    there = 0

    def beyond(consumed: int) -> int:
        nonlocal there
        while there == consumed < size:
            there += os.eventfd_read(counter)
        return min(there, size) - consumed

    return beyond


def _apply(tree: Tree, control: socket.socket, blob: int, hasher: Any, beyond: Callable[[int], int]) -> None:
    told = 0

    def on_read(consumed: int) -> None:
        nonlocal told
        if consumed - told >= _PROGRESS_STEP:
            told = consumed
            _send(control, {"progress": consumed})

    tree.begin_layer()
    source = Source(blob, on_read, hasher, beyond)
    # the digest decides whether the blob is whole, even without an end marker, which some builders leave out
    reader = Reader(source, marked=False)
    for entry in reader:
        if b"/" + WHITEOUT in b"/" + entry.name:
            try:
                _whiteout(tree, entry)
            except InvalidArchive as exc:
                raise InvalidArchive(exc.reason, entry=entry.name, offset=entry.offset) from exc
        else:
            tree.place(entry, reader.read)
    source.drain()
    _send(control, {"progress": source.consumed})


def _whiteout(tree: Tree, entry: Entry) -> None:
    parent, slash, name = entry.name.rpartition(b"/")
    if name == OPAQUE and b"/" + WHITEOUT not in b"/" + parent:
        tree.opaque(parent)
    elif any(part.startswith(WHITEOUT * 2) for part in entry.name.split(b"/")):
        # what AUFS kept for itself, as Docker does
        return
    elif b"/" + WHITEOUT in b"/" + parent or name.removeprefix(WHITEOUT) in {b"", b".", b".."}:
        raise InvalidArchive(f"{printable(name)} is no name for a deletion")
    else:
        tree.whiteout(parent + slash + name.removeprefix(WHITEOUT))

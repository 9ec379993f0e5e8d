"""What one pull knows of a layer, and what pulls of the same blob share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

from pluginsvc.model.manifest import Descriptor
from pluginsvc.registry.errors import RegistryFault
from pluginsvc.transfer.progress import Row


@dataclass(slots=True)
class Layer:
    """A distinct layer within one pull.

    A blob that this pull downloads from its first byte on can be read while it arrives.

    Attributes:
        descriptor: what it must be.
        row: shows it.
        fetched: it was not in the store when the pull began, so its bytes have been verified once it is ready.
        ready: it is in the store.
        blob: file descriptor of the arriving blob, None before and after.
    """

    descriptor: Descriptor
    row: Row
    fetched: bool = False
    ready: bool = False
    blob: int | None = None
    _there: int = 0
    _counter: int | None = None
    _changed: anyio.Event = field(default_factory=anyio.Event)

    async def readable(self) -> None:
        """Wait until reading can begin."""
        while not self.ready and self.blob is None:
            await self._changed.wait()

    async def whole(self) -> None:
        """Wait until all of it is there and verified; the pull fails otherwise, and with it this wait."""
        while not self.ready:
            await self._changed.wait()

    @contextmanager
    def arriving(self, blob: int) -> Iterator[None]:
        """Let it be read by the descriptor ``blob`` within the block."""
        self.blob = blob
        self._change()
        try:
            yield
        finally:
            self.blob = None

    def arrived(self, there: int) -> None:
        """Note how many bytes can be read, if it can be read by now."""
        if self.blob is not None:
            self._count(there)

    def finish(self) -> None:
        """Note that it is in the store."""
        self._count(self.descriptor.size)
        self.ready = True
        self._change()

    @contextmanager
    def counted(self) -> Iterator[int]:
        """Give the block an eventfd that counts up the bytes that can be read."""
        self._counter = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            os.eventfd_write(self._counter, self._there)
            yield self._counter
        finally:
            os.close(self._counter)
            self._counter = None

    def _count(self, there: int) -> None:
        if self._counter is not None:
            os.eventfd_write(self._counter, there - self._there)
        self._there = there

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


@dataclass(slots=True)
class Download:
    """A download that any number of pulls wait for; whoever holds the lock does it, for all.

    When the one who does it is cancelled, the next takes over where he ended; with the last it stops.
    """

    size: int
    received: int = 0
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    watchers: list[Row] = field(default_factory=list)
    failure: tuple[str, RegistryFault] | None = None

    def join(self, row: Row) -> None:
        """Add a watcher and show it what came before."""
        self.watchers.append(row)
        if self.received:
            row.set("Downloading", self.received, self.size)

    def show(self, received: int) -> None:
        """Tell all watchers how many bytes are there."""
        self.received = received
        for row in self.watchers:
            row.set("Downloading", received, self.size)

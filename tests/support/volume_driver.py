"""A volume plugin in memory, for what needs no real one, and a file system that hangs."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio

from tests.unit.directory.peers import plugin


class Driver:
    """A volume plugin that keeps names; ``errors`` has what it refuses, by call, ``creates`` that of the next Creates.

    Attributes:
        calls: those it got, with the volume's name.
        options: of the last Create.
        held: while set, a call waits for it after ``holding`` is set.
        garbled: calls that are done, and answered with what is no JSON.
    """

    def __init__(self) -> None:
        self.volumes: list[str] = []
        self.errors: dict[str, str] = {}
        self.answers: dict[str, object] = {}
        self.creates: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self.options: object = None
        self.held: anyio.Event | None = None
        self.holding = anyio.Event()
        self.garbled: set[str] = set()

    async def serve(self, call: str, argument: dict[str, Any], rootfs: Path) -> object:
        name = argument.get("Name", "")
        self.calls.append((call, name))
        self.options = argument.get("Opts", self.options)
        if self.held is not None:
            self.holding.set()
            await self.held.wait()
        if call == "Create" and self.creates:
            return {"Err": self.creates.pop(0)}
        if call in self.errors:
            return {"Err": self.errors[call]}
        if call in self.answers:
            return self.answers[call]
        if call == "Create" and name not in self.volumes:
            self.volumes.append(name)
        if call == "Remove":
            self.volumes.remove(name)
        if call == "Mount" and rootfs.is_dir():
            (rootfs / name).mkdir(exist_ok=True)
        return {"Mountpoint": f"/{name}", "Volume": {"Name": name}, "Volumes": [{"Name": n} for n in self.volumes]}

    @asynccontextmanager
    async def at(self, place: Path) -> AsyncIterator[None]:
        """Listen; what is mounted without an answer of its own is a directory in ``rootfs`` beside."""

        async def script(writer: asyncio.StreamWriter) -> None:
            head, body = peer.seen[-1]
            call = head.split()[1].rpartition(".")[2]
            answer = json.dumps(await self.serve(call, json.loads(body), place.parent / "rootfs")).encode()
            answer = b'{"Err":' if call in self.garbled else answer
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
            await writer.drain()

        async with plugin(script, place) as peer:
            yield


@contextmanager
def hanging(point: Path) -> Iterator[None]:
    """Mount a file system that answers nothing; needs root."""
    device = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        assert ctypes.CDLL(None).mount(b"hanging", str(point).encode(), b"fuse", 0, options) == 0
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", point], check=True)
    finally:
        # whoever waits for it gets an error now
        os.close(device)

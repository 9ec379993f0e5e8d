"""A volume plugin in memory, for what needs no real one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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

    async def serve(self, call: str, argument: dict[str, Any]) -> object:
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
        return {"Mountpoint": f"/{name}", "Volume": {"Name": name}, "Volumes": [{"Name": n} for n in self.volumes]}

    @asynccontextmanager
    async def at(self, place: Path) -> AsyncIterator[None]:
        """Listen."""

        async def script(writer: asyncio.StreamWriter) -> None:
            head, body = peer.seen[-1]
            answer = json.dumps(await self.serve(head.split()[1].rpartition(".")[2], json.loads(body))).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
            await writer.drain()

        async with plugin(script, place) as peer:
            yield

"""A process of the load generator that says one JSON object a line, and ends with its input."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support import parts

_LONGEST = 2**24
"""Bytes of a line: the last one holds lists of plugins."""


class HelperError(AssertionError):
    """A process of the load generator ended by itself."""


class Helper:
    """One such process; use `helping`.

    Attributes:
        ticks: what it said second by second.
        problems: all that it found.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.ticks: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self._name, self._process = name, process
        self._answers: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def read(self) -> None:
        """Take what it says until it ends."""
        assert self._process.stdout
        while line := await self._process.stdout.readline():
            found = json.loads(line)
            self.problems += found.get("problems", ())
            if "at" in found:
                self.ticks.append(found)
            else:
                await self._answers.put(found)
        await self._answers.put(None)

    async def answer(self) -> dict[str, Any]:
        """Return what it says next that is no tick.

        Raises:
            HelperError: it ended instead.
        """
        found = await self._answers.get()
        if found is None:
            raise HelperError(f"{self._name} ended by itself, with {await self._process.wait()}")
        return found

    async def ask(self, *words: object) -> dict[str, Any]:
        """Send a command and return the answer."""
        assert self._process.stdin
        self._process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        return await self.answer()


@asynccontextmanager
async def helping(name: str, *words: str) -> AsyncIterator[Helper]:
    """Run the module `name` for the length of a block; it is asked to end, and killed if it does not within 10 s."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", name, *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=parts.PROJECT,
        limit=_LONGEST,
        # Ctrl-C is for us to heed
        start_new_session=True,
    )
    helper = Helper(name, process)
    reading = asyncio.ensure_future(helper.read())
    try:
        yield helper
        assert process.stdin
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 10)
        await reading
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

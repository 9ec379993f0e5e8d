"""Clients that change plugins together at one pace, each plugins of its own, so that every answer is known."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from tests.load.histogram import bucket

CYCLE = (
    *("create", "set", "set", "enable", "disable", "remove"),
    *("create", "set", "set", "set", "remove"),
    *("create", "set", "set", "remove"),
    *("pull", "upgrade", "set", "remove"),
)
"""What each client does again and again: of 19 changes 3 creates, 8 sets, 1 enable, 1 disable, 4 removes, 1 pull and
1 upgrade, which make 21 events."""

EVENTS = {
    "create": ["create"],
    "set": ["set"],
    "enable": ["enable"],
    "disable": ["disable"],
    "remove": ["remove"],
    "pull": ["pull", "create"],
    "upgrade": ["pull", "upgrade"],
}
"""The events that each change makes."""


@dataclass(frozen=True)
class Material:
    """What plugins are made of.

    Attributes:
        archive: body of `create`.
        first, second: references to pull, and to upgrade to.
        granted: the privileges that both ask for.
    """

    archive: bytes
    first: str
    second: str
    granted: Any


class Pace:
    """One clock for all: when the next change is due."""

    def __init__(self) -> None:
        self._every = 1.0
        self._next = 0.0
        self._turn, self._changed = asyncio.Lock(), asyncio.Event()
        self._over = False

    def set(self, rate: float) -> None:
        """Have so many changes fall due a second, from now on; what is overdue is forgotten."""
        self._every, self._next = 1 / rate, time.monotonic()
        self._changed.set()

    def end(self) -> None:
        """Have no more changes fall due."""
        self._over = True
        self._changed.set()

    @property
    def overdue(self) -> float:
        """Return for how many seconds the next change has been due and nobody was free to make it."""
        return max(0.0, time.monotonic() - self._next)

    async def wait(self) -> bool:
        """Return when the next change is due; tell whether it is still to be made."""
        # one waits for the clock, the others for their turn: a new rate holds for all of them at once
        async with self._turn:
            while not self._over and (left := self._next - time.monotonic()) > 0:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), left)
            self._next += self._every
        return not self._over


@dataclass
class Tally:
    """What has been done.

    Attributes:
        done: changes by verb, those that went well.
        took: microseconds they took, as counts of buckets (`histogram`) by verb.
        problems: answers that were not expected.
    """

    done: Counter[str] = field(default_factory=Counter)
    took: dict[str, Counter[int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def actions(self) -> Counter[str]:
        """Return how many events of each action there must be."""
        return Counter(action for verb, times in self.done.items() for action in EVENTS[verb] * times)


class Mutator:
    """One client.

    Args:
        number: makes its names its own.
        session: its connections.
        material: what plugins are made of.
        tally: of all clients.
    """

    def __init__(self, number: int, session: aiohttp.ClientSession, material: Material, tally: Tally) -> None:
        self._number, self._session, self._material, self._tally = number, session, material, tally
        self._names = itertools.count()
        self._name = ""
        self._sets = itertools.count(1)

    async def run(self, pace: Pace) -> None:
        """Make changes in time until it is over, or one of them does not go as it has to."""
        # not all at the same place of the cycle, so that the mix is even at each moment
        starts = [at for at, verb in enumerate(CYCLE) if verb in {"create", "pull"}]
        start = starts[self._number % len(starts)]
        await self.follow(itertools.cycle(CYCLE[start:] + CYCLE[:start]), pace)

    async def follow(self, verbs: Iterable[str], pace: Pace) -> None:
        """Make these changes in time; see `run`."""
        for verb in verbs:
            if not await pace.wait():
                return
            began = time.perf_counter()
            try:
                wrong = await self._change(verb)
            except (aiohttp.ClientError, OSError, TimeoutError) as exc:
                wrong = repr(exc)
            if wrong:
                self._tally.problems.append(f"{verb} {self._name}: {wrong}"[:1000])
                return
            self._tally.done[verb] += 1
            took = int((time.perf_counter() - began) * 1e6)
            self._tally.took.setdefault(verb, Counter())[bucket(took)] += 1

    async def _change(self, verb: str) -> str:
        """Make one change; return what is wrong with the answer."""
        material, body, query = self._material, None, {}
        if verb in {"create", "pull"}:
            self._name = f"load/m{self._number}-{next(self._names)}:latest"
            query = {"name": self._name}
        method, path, expected = "POST", f"/plugins/{quote(self._name)}/{verb}", 200
        match verb:
            case "create":
                path, body, expected = "/plugins/create", material.archive, 204
            case "pull":
                path, body = "/plugins/pull", json.dumps(material.granted).encode()
                query["remote"] = material.first
            case "upgrade":
                body, query = json.dumps(material.granted).encode(), {"remote": material.second}
            case "set":
                # another value each time: one that is set already makes no event
                body, expected = json.dumps([f"DEBUG={next(self._sets)}"]).encode(), 204
            case "enable":
                query = {"timeout": "30"}
            case "remove":
                method, path = "DELETE", f"/plugins/{quote(self._name)}"
            case _:
                pass
        kind = "application/x-tar" if verb == "create" else "application/json"
        url = f"http://localhost{path}"
        async with self._session.request(
            method, url, params=query, data=body, headers={"Content-Type": kind}
        ) as answer:
            said = await answer.read()
        if answer.status != expected or b'"error"' in said:
            return f"answered {answer.status} instead of {expected}: {said[-300:]!r}"
        return ""


@asynccontextmanager
async def mutating(socket: Path, many: int, material: Material, pace: Pace, tally: Tally) -> AsyncIterator[None]:
    """Have so many clients make changes for the length of a block; at its end each finishes what it is at."""
    async with _session(socket, many) as session:
        mutators = [Mutator(number, session, material, tally) for number in range(many)]
        tasks = [asyncio.ensure_future(mutator.run(pace)) for mutator in mutators]
        try:
            yield
            pace.end()
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def burst(socket: Path, many: int, changes: int, material: Material, tally: Tally) -> None:
    """Have so many more clients make changes of settings as fast as they can, so many each."""
    pace = Pace()
    pace.set(1e6)
    async with _session(socket, many) as session:
        # other numbers than those of the clients that have a pace
        mutators = [Mutator(1000 + number, session, material, tally) for number in range(many)]
        verbs = ["create", *["set"] * changes, "remove"]
        await asyncio.gather(*(mutator.follow(verbs, pace) for mutator in mutators))


def _session(socket: Path, many: int) -> aiohttp.ClientSession:
    connector = aiohttp.UnixConnector(str(socket), limit=many)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120))

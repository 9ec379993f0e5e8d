"""A real database, a bus, and the publisher between them."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from pluginsvc.events.bus import Bus
from pluginsvc.events.journal import Publisher
from pluginsvc.state.database import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    found = await Database.open(tmp_path / "state.db")
    yield found
    await found.close()


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
async def publishing(database: Database, bus: Bus) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        await group.start(lambda *, task_status: Publisher(database, bus).run(task_status=task_status))
        yield
        group.cancel_scope.cancel()

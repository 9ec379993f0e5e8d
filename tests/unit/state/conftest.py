"""A real database in a temporary directory."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pluginsvc.state.database import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    found = await Database.open(tmp_path / "state.db")
    yield found
    await found.close()

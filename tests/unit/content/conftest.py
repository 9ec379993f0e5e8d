"""A content store on a folder of the test's own."""

from pathlib import Path

import pytest

from pluginsvc.content.store import ContentStore


@pytest.fixture
async def store(tmp_path: Path) -> ContentStore:
    """Give an open, empty store below `tmp_path/content`."""
    found = ContentStore(tmp_path / "content")
    await found.open()
    return found

"""One confinement for the tests of this room; each job in it has a child of its own anyway."""

from collections.abc import AsyncIterator

import pytest

from pluginsvc.rootfs.confinement import Confinement


@pytest.fixture(scope="session")
async def confinement(anyio_backend: str) -> AsyncIterator[Confinement]:
    """Give an open confinement."""
    async with Confinement() as opened:
        yield opened

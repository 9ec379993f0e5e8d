"""Retries: temporary faults only, five attempts, as long as the registry says."""

import anyio
import pytest

from pluginsvc.registry.errors import BlobUnknown, RegistryBusy
from pluginsvc.transfer.retry import ATTEMPTS, LONGEST, retrying

pytestmark = pytest.mark.anyio


class Work:
    """Fails as scripted, then succeeds."""

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.faults:
            raise self.faults.pop(0)
        return "done"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the pauses instead of waiting."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(anyio, "sleep", sleep)
    return found


def busy(retry_after: float | None = None) -> RegistryBusy:
    return RegistryBusy("busy", temporary=True, retry_after=retry_after)


async def test_backs_off(waits: list[float]) -> None:
    """Each pause is twice the one before."""
    assert await retrying(Work(busy(), busy(), busy()), pause=1) == "done"
    assert waits == [1, 2, 4]


async def test_gives_up(waits: list[float]) -> None:
    """The fifth temporary fault is final."""
    work = Work(*(busy() for _ in range(ATTEMPTS + 1)))
    with pytest.raises(RegistryBusy):
        await retrying(work)
    assert work.calls == ATTEMPTS


@pytest.mark.parametrize("fault", [BlobUnknown("no"), RegistryBusy("bad certificate"), ValueError("bug")])
async def test_final_faults(waits: list[float], fault: Exception) -> None:
    """What is not temporary is not tried again."""
    work = Work(fault)
    with pytest.raises(type(fault)):
        await retrying(work)
    assert (work.calls, waits) == (1, [])


@pytest.mark.parametrize(("asked", "waited"), [(7.0, 7.0), (0.0, 0.0), (-5.0, 0.0)])
async def test_retry_after(waits: list[float], asked: float, waited: float) -> None:
    """The registry's word on how long to wait counts more than ours."""
    await retrying(Work(busy(asked)))
    assert waits == [waited]


async def test_retry_after_too_long(waits: list[float]) -> None:
    """A registry that asks for longer than anybody would wait is given up on at once."""
    work = Work(busy(LONGEST + 1))
    with pytest.raises(RegistryBusy):
        await retrying(work)
    assert (work.calls, waits) == (1, [])


async def test_cancelled_in_a_pause() -> None:
    """A pause ends when its work is cancelled."""
    with anyio.move_on_after(0.01) as scope:
        await retrying(Work(busy(30)))
    assert scope.cancelled_caught

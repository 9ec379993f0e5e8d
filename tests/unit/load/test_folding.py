"""Lists of plugins made of events, and their comparison with those that began with a snapshot."""

from typing import Any

import pytest

from tests.load.folding import History
from tests.support.fold import Fold, FoldError, listed

DIGESTS = ["sha256:" + letter * 64 for letter in "ab"]


def event(seq: int, action: str, plugin: str = "a", **attributes: str) -> dict[str, Any]:
    return {
        "seq": seq,
        "action": action,
        "plugin": {"id": plugin, "name": f"{plugin}:latest"},
        "attributes": attributes,
    }


LIFE = [
    event(1, "pull", remote="r/a:latest"),
    event(2, "create", reference="r/a:latest", digest=DIGESTS[0]),
    event(3, "set", settings="DEBUG"),
    event(4, "enable"),
    event(5, "exit"),
    event(6, "disable"),
    event(7, "upgrade", reference="r/a:2", digest=DIGESTS[1]),
    event(8, "remove"),
]
BEFORE = {"Id": "a", "Name": "a:latest", "Desired": "disabled", "Reference": "r/a:latest", "Digest": DIGESTS[0]}
AFTER = BEFORE | {"Reference": "r/a:2", "Digest": DIGESTS[1]}
LISTS = [[], [], [BEFORE], [BEFORE], *[[BEFORE | {"Desired": "enabled"}]] * 2, [BEFORE], [AFTER], []]


def snapshot(seq: int, plugins: list[dict[str, str]]) -> Fold:
    fold = Fold()
    fold.snapshot(plugins, seq)
    return fold


@pytest.mark.parametrize("start", range(9))
def test_a_fold_is_the_list_after_each_event(start: int) -> None:
    """Whatever snapshot it begins with, also when events that are in it come again."""
    fold = snapshot(start, LISTS[start])
    for number, one in enumerate(LIFE, 1):
        fold.apply(one)
        assert fold.plugins == listed(LISTS[max(start, number)])


@pytest.mark.parametrize("bad", [LIFE[2:4], LIFE[6:7], LIFE[7:], [LIFE[1], LIFE[1] | {"seq": 3}]])
def test_events_that_do_not_follow_are_refused(bad: list[dict[str, Any]]) -> None:
    """A plugin that is changed before it is made, removed, or made twice: an event was lost or came too early."""
    fold = Fold()
    for one in bad[:-1]:
        fold.apply(one)
    with pytest.raises(FoldError):
        fold.apply(bad[-1])


def test_a_snapshot_is_compared_with_the_list_of_its_event() -> None:
    """Whether it comes before that event or long after it."""
    history = History()
    history.compare(snapshot(4, LISTS[4]))
    assert history.unchecked() == 1
    for one in LIFE:
        history.apply(one)
    for seq, plugins in enumerate(LISTS):
        history.compare(snapshot(seq, plugins))
    assert history.unchecked() == 0
    assert history.views() == []
    assert history.actions["pull"] == 1


def test_a_wrong_snapshot_is_noticed() -> None:
    """One that lacks its last event, early and late."""
    history = History()
    history.compare(snapshot(4, LISTS[3]))
    for one in LIFE[:3]:
        history.apply(one)
    with pytest.raises(FoldError, match="as of event 4"):
        history.apply(LIFE[3])
    with pytest.raises(FoldError, match="as of event 2"):
        history.compare(snapshot(2, LISTS[1]))

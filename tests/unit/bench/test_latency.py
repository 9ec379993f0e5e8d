"""The asker of the bench, whose own delays must not be counted."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.latency import percentile
from tests.support import parts


@pytest.mark.parametrize(
    ("values", "percent", "found"),
    [([5], 50, 5), ([3, 1, 2], 50, 2), ([4, 3, 2, 1], 50, 2), (range(1, 101), 99, 99), (range(1, 101), 100, 100)],
)
def test_a_percentile_is_one_of_the_values(values: list[float], percent: float, found: float) -> None:
    """The nearest rank: of a hundred values one is above the 99th."""
    assert percentile(values, percent) == found


def test_what_falls_due_during_a_stall_counts_from_when_it_was_due(tmp_path: Path) -> None:
    """One answer held back for 60 ms makes a dozen late ones, not one: another client would have waited as well."""
    path = tmp_path / "s"
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        words = [sys.executable, "-m", "tests.bench.asker", str(path)]
        with subprocess.Popen(words, cwd=parts.PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            connection, _ = listener.accept()
            with connection:
                for number in range(40):
                    assert connection.recv(4096).startswith(b"GET /_ping ")
                    if number == 10:
                        time.sleep(0.06)  # the stall itself
                    connection.sendall(answer)
                assert process.stdin
                process.stdin.close()
                while connection.recv(4096):
                    connection.sendall(answer)
            assert process.stdout
            started, said = process.stdout.read().splitlines()
    assert started == b"asking"
    answers = json.loads(said)["answers"]
    assert max(answers) >= 0.06
    assert sum(value > 0.02 for value in answers) >= 7

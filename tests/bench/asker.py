"""Asks a daemon for `/_ping` every 5 ms on one connection, until its standard input ends; then says how long it took.

Usage: python -m tests.bench.asker SOCKET      prints a line once it asks, and a JSON object at the end

A process of its own at real-time priority, so that it runs the moment an answer is there even when both CPUs are full:
what it measures is the daemon's delay, and how late it was itself stands beside that. It keeps its pace: what falls due
while an answer is awaited counts from when it was due, as it would for another client.
"""

import contextlib
import gc
import json
import os
import select
import sys
import time
from pathlib import Path

from tests.bench import wire

EVERY = 0.005
_REQUEST = b"GET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n"


def _priority() -> str:
    with contextlib.suppress(PermissionError):  # some containers allow none of it
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        return "real-time priority"
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        return "nice -20"
    return "normal priority"


def main() -> None:
    """Ask until nobody wants more."""
    priority = _priority()
    answers: list[float] = []
    late: list[float] = []
    with wire.connected(Path(sys.argv[1]), timeout=60) as connection:

        def ask() -> None:
            connection.sendall(_REQUEST)
            answer = connection.recv(4096)
            while not answer.endswith(b"OK"):
                piece = connection.recv(4096)
                if not piece:
                    sys.exit(f"the daemon ended the connection after {answer!r}")
                answer += piece

        ask()  # makes the connection known to the daemon
        gc.collect()
        gc.disable()
        print("asking", flush=True)
        answered = time.perf_counter()
        due = answered + EVERY
        while True:
            now = time.perf_counter()
            if now < due:
                if select.select([sys.stdin], [], [], due - now)[0]:
                    break
                now = time.perf_counter()
                late.append(now - due)
            began = now if answered < due else due
            ask()
            answered = time.perf_counter()
            answers.append(answered - began)
            due += EVERY
    print(json.dumps({"answers": answers, "late": late, "priority": priority}))


if __name__ == "__main__":
    main()

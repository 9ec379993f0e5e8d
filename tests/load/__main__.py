"""`make load`: many readers follow the events of one daemon while many clients change plugins; none may miss one.

Bounded in count, and by the 20 s that the readers get to finish; exit 0 only if every reader saw every event, in one
and the same order.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.bench.load import fan_out
from tests.bench.sides import NotDoneError
from tests.support.daemon import running_daemon
from tests.support.wire import Api, tar

ARCHIVE = tar({"config.json": b"{}", "rootfs": None})


def main() -> None:
    """Press a daemon of its own and print what it did."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--readers", type=int, default=200, help="event streams held open [200]")
    parser.add_argument("--mutators", type=int, default=8, help="clients that change plugins at once [8]")
    parser.add_argument("--changes", type=int, default=400, help="plugins each made and removed, over all [400]")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("load: run it as root: plugins are unpacked as root (sudo make load)")
    with running_daemon("--log-level", "warning") as daemon:
        api = Api(daemon.socket)

        def change(number: int) -> None:
            assert api.create(f"load/p{number}", ARCHIVE).status == 204
            assert api.call("DELETE", f"/plugins/load/p{number}").status == 200

        def burst() -> None:
            with ThreadPoolExecutor(options.mutators) as clients:
                list(clients.map(change, range(options.changes)))

        proc = daemon.proc
        assert proc
        events = 2 * options.changes
        try:
            cost = fan_out(daemon.socket, burst, expected=events, readers=options.readers, roots=lambda: [proc.pid])
        except NotDoneError as exc:
            sys.exit(f"load: {exc}")
    deliveries = events * options.readers
    print(f"{options.changes} plugins made and removed by {options.mutators} clients in {cost.value:.1f} s")
    print(f"{deliveries} events delivered to {options.readers} readers, none missed, all in one order")
    print(f"{deliveries / (cost.cpu or 1):.0f} deliveries per CPU second of the daemon, the changes included")


if __name__ == "__main__":
    main()

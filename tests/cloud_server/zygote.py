"""Starts submits by forking a process that has imported everything: a test kills hundreds of them.

Reads a line of JSON {run_id, image, spec} from stdin, answers with the pid of a child that waits, lets it go at the
next line, and answers with its exit status: 0 launched, 1 refused or failed, 75 interrupted, -9 killed. Waiting costs
it no time.
"""

import json
import os
import sys
import time

from job.cloud import clients, foundation, launch, submit
from job.errors import JobError
from job.storage.store import open_store


class Clock:
    """Time that sleeping moves."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead

    def sleep(self, seconds: float) -> None:
        self.ahead += seconds


def work(asked: dict[str, str]) -> int:
    base, clock = foundation.read(), Clock()
    stores = open_store(base.launches_uri), open_store(base.store_uri)
    desk = launch.Desk(clients.connect(base), *stores, clock, clock.sleep, lambda _: None)
    made = submit.order(asked["spec"], [], base, run_id=asked["run_id"], image=asked["image"])
    try:
        submit.submit(desk, made)
    except JobError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 75
    return 0


def main() -> None:
    import oci.core
    import oci.identity
    import oci.limits

    assert oci.core
    launch.RENEW = 1e6  # seconds: renewals go by the real clock, and would come between the requests that a test counts
    while line := sys.stdin.readline():
        ready, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(ready, 1)
            os._exit(work(json.loads(line)))
        os.close(ready)
        print(pid, flush=True)
        sys.stdin.readline()
        os.write(go, b"g")
        os.close(go)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

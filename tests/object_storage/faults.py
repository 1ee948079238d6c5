"""What goes wrong, and when: a table of faults that the server asks before it answers.

A fault is chosen by kind of request and by name, some number of times or with a probability, from a seed.
"""

import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# kind → HTTP status, code and message of an answer that refuses
REFUSALS = {
    "401": (401, "NotAuthenticated", "The required information to complete authentication was not provided."),
    "skew": (401, "NotAuthenticated", "The Date header differs from the server's clock by more than five minutes."),
    "403": (403, "NotAllowed", "The operation is not allowed."),
    "404": (404, "NotAuthorizedOrNotFound", "Authorization failed or requested resource not found."),
    "bucket": (404, "BucketNotFound", "The bucket does not exist, or you are not authorized to access it."),
    "409": (409, "ConcurrentObjectUpdate", "The object is being written by somebody else."),
    "412": (412, "IfMatchFailed", "The etag does not match."),
    "429": (429, "TooManyRequests", "Too many requests."),
    "500": (500, "InternalServerError", "Internal server error."),
    "503": (503, "ServiceUnavailable", "The service is unavailable."),
    "quota": (400, "QuotaExceeded", "The storage quota of the compartment is used up."),
}
FINAL = ("401", "skew", "403", "404", "bucket", "412", "quota")  # of these: the same request would be refused again
# The others: the connection, the clock, or a lie about what was stored or is sent
OTHERS = (
    "reset_before",  # the connection is reset before anything is read
    "reset_request",  # … in the middle of the request's body
    "reset_response",  # … in the middle of the answer's body
    "reset_after",  # … after the work is done, instead of the answer
    "cut",  # the answer's body ends early, in good order
    "hang",  # no answer at all, for `seconds`
    "wrong_checksum",  # the answer names another checksum than that of the bytes
    "lost",  # success, and nothing is stored
    "truncated",  # success, and half of the bytes are stored
    "flipped",  # success, and one bit is stored wrongly; on get: sent wrongly
    "endless",  # each page of a list says that there is another one
)


@dataclass
class Fault:
    """`on`: operations such as put, get, upload_part; all where empty. `name`: part of the object's name."""

    kind: str
    on: tuple[str, ...] = ()
    name: str = ""
    times: int | None = 1
    after: int = 0
    probability: float = 1.0
    seconds: float = 3600.0
    seen: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        assert self.kind in REFUSALS or self.kind in OTHERS, f"{self.kind}: no such fault"
        self.on = tuple(self.on)


class Faults:
    """The table. `latency` in seconds is added to each request; `rate` in bytes a second bounds each connection."""

    def __init__(self, seed: int = 0) -> None:
        self.latency = 0.0
        self.rate: float | None = None
        self.released = threading.Event()  # ends what hangs
        self._faults: list[Fault] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def add(self, kind: str, *on: str, **fields: Any) -> None:
        with self._lock:
            self._faults.append(Fault(kind, on, **fields))

    def reseed(self, seed: int) -> None:
        """The same chances again."""
        with self._lock:
            self._random.seed(seed)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()
            self.latency, self.rate = 0.0, None
        self.released.set()
        self.released = threading.Event()

    def take(self, operation: str, name: str) -> Fault | None:
        """The first fault that wants this request; it is then used up by one."""
        with self._lock:
            for fault in self._faults:
                if not self._wants(fault, operation, name):
                    continue
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None

    def set(self, latency: float = 0.0, rate: float | None = None, faults: Iterable[dict[str, Any]] = ()) -> None:
        """All at once, as the control address does."""
        self.clear()
        self.latency, self.rate = latency, rate
        with self._lock:
            self._faults.extend(Fault(**fault) for fault in faults)

    def _wants(self, fault: Fault, operation: str, name: str) -> bool:
        if fault.times == 0 or (fault.on and operation not in fault.on) or fault.name not in name:
            return False
        fault.seen += 1
        return fault.seen > fault.after and self._random.random() < fault.probability

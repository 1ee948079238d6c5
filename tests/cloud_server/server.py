"""Compute, Identity, Limits and Data Science on the loopback, beside Object Storage, all signed for.

A small tenancy: availability domains, what each shape's cell answers to a launch, and the instances there are. Launches
are idempotent by opc-retry-token, as the real service is. A test may kill a client at its nth request, before
the request takes effect or between that and the answer.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import signal
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tests.object_storage.objects import Conflict
from tests.object_storage.server import Handler, ObjectStorage

DOMAINS = ("Uocm:PHX-AD-1", "Uocm:PHX-AD-2")
FAULT_DOMAINS = ("FAULT-DOMAIN-1", "FAULT-DOMAIN-2")
COMPARTMENT = "ocid1.compartment.oc1..test"
# kind → how the real service refuses a launch
REFUSALS = {
    "capacity": (500, "InternalError", "Out of host capacity."),
    "limit": (400, "LimitExceeded", "The following service limits were exceeded: gpu-a10-count. Request an increase."),
    "quota": (400, "QuotaExceeded", "You have exceeded the compartment quota: gpu-a10-count."),
    "authorisation": (404, "NotAuthorizedOrNotFound", "Authorization failed or requested resource not found."),
    "shape": (404, "NotAuthorizedOrNotFound", "Shape VM.GPU.A10.1 not found"),
    "throttled": (429, "TooManyRequests", "Too many requests for the user."),
    "other": (500, "InternalError", "Internal server error."),
}


@dataclass
class Kill:
    """Ends `victim`, and with `children` what it started, at its nth request from now."""

    victim: int
    at: int
    effect: Literal["before", "after"]
    children: bool
    number: int = signal.SIGKILL
    seen: int = 0
    done: bool = False
    operation: str = ""  # the request it died of

    def strike(self) -> None:
        for pid in [*(_children(self.victim) if self.children else []), self.victim]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, self.number)


@dataclass
class Tenancy:
    """What there is. `refusals`: (shape, domain, fault domain), each may be '*', → kind of refusal.

    `room`: availability domain → instances that it holds at most; more are refused for want of capacity.
    """

    instances: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    refusals: dict[tuple[str, str, str], str] = field(default_factory=dict)
    report: dict[tuple[str, str, str], str] = field(default_factory=dict)
    room: dict[str, int] = field(default_factory=dict)
    available: int = 8
    launches: int = 0  # that made an instance
    most: int = 0  # instances of one run alive at once, at any time
    science: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    hidden: int = 0  # lists of instances that do not show the newest yet
    lock: threading.RLock = field(default_factory=threading.RLock)

    def refusal(self, shape: str, domain: str, fault_domain: str) -> str | None:
        for (a, b, c), kind in self.refusals.items():
            if a in ("*", shape) and b in ("*", domain) and c in ("*", fault_domain):
                return kind
        return None if self.left(domain) > 0 else "capacity"

    def left(self, domain: str) -> int:
        return self.room.get(domain, 99) - len([one for one in self.alive() if one["availabilityDomain"] == domain])

    def alive(self, run_id: str | None = None) -> list[dict[str, Any]]:
        found = [one for one in self.instances.values() if one["lifecycleState"] not in ("TERMINATING", "TERMINATED")]
        return [one for one in found if run_id in (None, one["definedTags"]["gpu_job"]["run_id"])]

    def add(self, details: dict[str, Any]) -> dict[str, Any]:
        """An instance, running."""
        identifier = f"ocid1.instance.oc1.phx.{secrets.token_hex(6)}"
        made = {**details, "id": identifier, "lifecycleState": "RUNNING", "region": "phx"}
        made["timeCreated"] = made.get("timeCreated") or _iso(time.time())
        with self.lock:
            self.instances[identifier] = made
            self.launches += 1
            run_id = made["definedTags"]["gpu_job"]["run_id"]
            self.most = max(self.most, len(self.alive(run_id)))
        return made


class CloudServer(ObjectStorage):
    """`with CloudServer(folder) as server: …`"""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self.RequestHandlerClass = CloudHandler
        self.tenancy = Tenancy()
        self.kill: Kill | None = None
        self.kill_lock = threading.Lock()

    def __enter__(self) -> "CloudServer":
        super().__enter__()
        return self

    def count_down(self, operation: str) -> Kill | None:
        """Counts a request; the kill where the client is to die of this one."""
        with self.kill_lock:
            kill = self.kill
            if kill is None or kill.done:
                return None
            kill.seen += 1
            if kill.seen < kill.at:
                return None
            kill.done, kill.operation = True, operation
            return kill


class CloudHandler(Handler):
    """One connection."""

    server: CloudServer
    kill: Kill | None = None  # due before the answer to this request

    def _serve(self) -> None:
        self.kill = None
        serve = self._route() if self.ask.operation == "unknown" else super()._serve
        self.kill = self.server.count_down(self.told.operation)
        if self.kill is not None and self.kill.effect == "before":
            self.kill.strike()
            self.reset()
        serve()

    def send_response(self, code: int, message: str | None = None) -> None:
        """Whatever was asked has been done by now."""
        if self.kill is not None and self.kill.effect == "after":
            self.kill.strike()
        super().send_response(code, message)

    def _route(self) -> Callable[[], None]:
        """What answers this request of no bucket; it is told by its name from here on."""
        path, _, query = self.path.partition("?")
        self.words = dict(urllib.parse.parse_qsl(query))
        for method, pattern, serve in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                self.told.operation = serve.__name__
                return lambda: self._answer(serve, *map(urllib.parse.unquote, found.groups()))
        raise Conflict(404, "NotFound", f"{self.command} {self.path} is not known here.")

    def _answer(self, serve: "Callable[..., Answer]", *words: str) -> None:
        self._break_early()
        lowered = {name.lower(): value for name, value in self.headers.items()}
        self.told.key_id = self.server.identity.verify(self.command, self.path, lowered)
        with self.server.tenancy.lock:
            status, value, headers = serve(self, *words)
        self.answer_json(status, value, headers)

    def launch(self) -> "Answer":
        tenancy, details = self.server.tenancy, json.loads(self.signed_body())
        token = self.headers.get("opc-retry-token")
        if token and token in tenancy.tokens:
            return 200, tenancy.instances[tenancy.tokens[token]], {}
        kind = tenancy.refusal(details["shape"], details["availabilityDomain"], details.get("faultDomain") or "*")
        if kind is not None:
            raise Conflict(*REFUSALS[kind])
        made = tenancy.add(details)
        if token:
            tenancy.tokens[token] = made["id"]
        return 200, made, {}

    def instances(self) -> "Answer":
        listed = [
            one for one in self.server.tenancy.instances.values() if one["compartmentId"] == self.words["compartmentId"]
        ]
        if self.server.tenancy.hidden:
            self.server.tenancy.hidden -= 1
            listed = listed[:-1]
        start, size = int(self.words.get("page", 0)), 2
        more = {"opc-next-page": str(start + size)} if len(listed) > start + size else {}
        return 200, listed[start : start + size], more

    def terminate(self, identifier: str) -> "Answer":
        one = self._instance(identifier)
        if self.words.get("preserveBootVolume") != "false":
            raise Conflict(400, "InvalidParameter", "this would leave a disk that is paid for")
        one["lifecycleState"] = "TERMINATED"
        return 204, None, {}

    def capacity(self) -> "Answer":
        asked = json.loads(self.signed_body())
        if not asked["compartmentId"].startswith("ocid1.tenancy."):
            raise Conflict(400, "InvalidParameter", "the report's compartment is the root")
        domain = asked["availabilityDomain"]
        found = [
            {**one, **self._reported(one["instanceShape"], domain, one.get("faultDomain") or "*")}
            for one in asked["shapeAvailabilities"]
        ]
        answer = {
            "compartmentId": asked["compartmentId"],
            "availabilityDomain": domain,
            "timeCreated": _iso(time.time()),
        }
        return 200, {**answer, "shapeAvailabilities": found}, {}

    def shapes(self) -> "Answer":
        names = [("VM.GPU.A10.1", 1), ("VM.GPU.A10.2", 2), ("VM.Standard.E5.Flex", 0)]
        if self.words["availabilityDomain"] != DOMAINS[0]:
            del names[1:]
        return 200, [{"shape": name, "gpus": gpus, "gpuDescription": "NVIDIA A10"} for name, gpus in names], {}

    def availability_domains(self) -> "Answer":
        return 200, [{"name": name, "id": name, "compartmentId": self.words["compartmentId"]} for name in DOMAINS], {}

    def fault_domains(self) -> "Answer":
        return (
            200,
            [{"name": name, "availabilityDomain": self.words["availabilityDomain"]} for name in FAULT_DOMAINS],
            {},
        )

    def availability(self, _limit: str) -> "Answer":
        return 200, {"used": 0, "available": self.server.tenancy.available}, {}

    def science(self, kind: str) -> "Answer":
        body = json.loads(self.signed_body())
        token = self.headers.get("opc-retry-token", "")
        digest = hashlib.sha256((token or body["displayName"]).encode()).hexdigest()[:12]
        identifier = f"ocid1.datascience{kind.lower()}.oc1.phx.{digest}"
        if all(known != identifier for known, _ in self.server.tenancy.science):
            self.server.tenancy.science.append((identifier, body))
        return 200, {**body, "id": identifier, "lifecycleState": "ACTIVE" if kind == "jobs" else "ACCEPTED"}, {}

    def _instance(self, identifier: str) -> dict[str, Any]:
        if identifier not in self.server.tenancy.instances:
            raise Conflict(*REFUSALS["authorisation"])
        return self.server.tenancy.instances[identifier]

    def _reported(self, shape: str, domain: str, fault_domain: str) -> dict[str, Any]:
        for (a, b, c), status in self.server.tenancy.report.items():
            if a in ("*", shape) and b in ("*", domain) and c in ("*", fault_domain):
                return {"availabilityStatus": status}
        return {"availabilityStatus": "AVAILABLE", "availableCount": self.server.tenancy.left(domain)}


Answer = tuple[int, Any, dict[str, str]]
ROUTES = (
    ("POST", "/20160918/instances/?", CloudHandler.launch),
    ("GET", "/20160918/instances/?", CloudHandler.instances),
    ("DELETE", "/20160918/instances/([^/]+)", CloudHandler.terminate),
    ("POST", "/20160918/computeCapacityReports/?", CloudHandler.capacity),
    ("GET", "/20160918/shapes/?", CloudHandler.shapes),
    ("GET", "/20160918/availabilityDomains/?", CloudHandler.availability_domains),
    ("GET", "/20160918/faultDomains/?", CloudHandler.fault_domains),
    ("GET", "/20190729/services/compute/limits/([^/]+)/resourceAvailability", CloudHandler.availability),
    ("POST", "/20190101/(jobs|jobRuns)/?", CloudHandler.science),
)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

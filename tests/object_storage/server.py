"""OCI Object Storage's HTTP API on the loopback, with an instance's metadata service and the exchange of tokens.

Requests are refused unless their RSA signature holds. Everything that Object Storage does for the job is here: put,
get, head, list and delete, multipart uploads, conditions, ranges, pages and checksums, and faults on demand.
"""

import json
import secrets
import sys
import threading
import time
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.object_storage.asks import parse
from tests.object_storage.faults import REFUSALS, Faults
from tests.object_storage.identity import Identity, Refused
from tests.object_storage.objects import Bucket, Conflict, Stored, Upload
from tests.object_storage.service import Service
from tests.object_storage.transport import Broken

MIN_PART = 10 * 2**20  # bytes; the last part may be smaller


@dataclass
class Told:
    """A request that came in, for tests that count; `status` is 0 until it is answered, and where it never was."""

    operation: str
    name: str
    status: int = 0
    key_id: str = ""


class ObjectStorage(ThreadingHTTPServer):
    """`with ObjectStorage(folder) as server: …`; buckets are made as `namespace/name`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, folder: Path, buckets: tuple[str, ...] = ("space/bucket",), port: int = 0, **options: Any
    ) -> None:
        self.folder = folder
        self.page_size: int = options.get("page_size", 1000)
        self.identity, self.faults = options.get("identity") or Identity(), Faults(options.get("seed", 0))
        minimum = options.get("min_part", MIN_PART)
        self.buckets = {name: Bucket(folder / "buckets" / name, minimum) for name in buckets}
        self.namespace = buckets[0].partition("/")[0]
        self.told: list[Told] = []
        super().__init__(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def objects(self) -> dict[str, Stored]:
        """Of the first bucket."""
        return next(iter(self.buckets.values())).objects

    @property
    def uploads(self) -> dict[str, Upload]:
        return next(iter(self.buckets.values())).uploads

    def content(self, name: str) -> bytes:
        return Path(self.objects[name].data).read_bytes()

    def count(self, *operations: str) -> int:
        return sum(told.operation in operations for told in self.told)

    def __enter__(self) -> "ObjectStorage":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.clear()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news; a mistake of ours is."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(Service):
    """One connection. What is asked is verified, broken on demand, and handed to the service."""

    server: ObjectStorage

    def do_GET(self) -> None:
        self.faults, self.page_size, self.body_read = self.server.faults, self.server.page_size, False
        self.expecting = self.headers.get("expect", "").lower() == "100-continue"
        self.ask = parse(self.command, self.path)
        self.told = Told(self.ask.operation, self.ask.name)
        if self.ask.operation == "control":
            self._control()
            return
        self.server.told.append(self.told)
        try:
            time.sleep(self.faults.latency)
            self.fault = self.faults.take(self.ask.operation, self.ask.name)
            self._serve()
        except Conflict as conflict:
            self._refuse(conflict.status, conflict.code, conflict.message)
        except Refused as refused:
            self._refuse(401, "NotAuthenticated", str(refused))
        except (Broken, ConnectionError):
            self.close_connection = True

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def send_response(self, code: int, message: str | None = None) -> None:
        self.told.status = code
        super().send_response(code, message)
        self.send_header("opc-request-id", f"test-{secrets.token_hex(8)}")
        if client := self.headers.get("opc-client-request-id"):
            self.send_header("opc-client-request-id", client)

    def _serve(self) -> None:
        self._break_early()
        if self.ask.operation == "metadata":
            self._metadata()
            return
        lowered = {name.lower(): value for name, value in self.headers.items()}
        key_id = self.told.key_id = self.server.identity.verify(self.command, self.path, lowered)
        if self.ask.operation in ("exchange", "refresh"):
            body, identity = self.signed_body(), self.server.identity
            exchange = self.ask.operation == "exchange"
            self.answer_json(200, {"token": identity.exchange(body) if exchange else identity.renew(key_id, body)})
            return
        if "fed-x509" in key_id:
            raise Refused("a certificate opens the token service alone")
        if self.ask.operation == "namespace":
            self.answer_json(200, self.server.namespace)
            return
        bucket = self.server.buckets.get(f"{self.ask.namespace}/{self.ask.bucket}")
        if bucket is None:
            raise Conflict(*REFUSALS["bucket"])
        self.bucket = bucket
        serve = getattr(self, f"serve_{self.ask.operation}", None)
        if serve is None:
            raise Conflict(404, "NotAuthorizedOrNotFound", f"{self.command} {self.path} is not known here.")
        serve()

    def _break_early(self) -> None:
        if self.fails("hang"):
            self.faults.released.wait(self.fault.seconds if self.fault else 0)
        if self.fails("hang", "reset_before"):
            self.reset()
        if self.fault is not None and self.fault.kind in REFUSALS:
            raise Conflict(*REFUSALS[self.fault.kind])

    def _metadata(self) -> None:
        """As an instance sees it; only with the header that forged requests lack."""
        if self.headers.get("authorization") != "Bearer Oracle":
            self.answer(403, {}, b"Forbidden")
            return
        text = self.server.identity.metadata(self.ask.name)
        self.answer(404 if text is None else 200, {"content-type": "text/plain"}, (text or "").encode())

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.answer_json(status, {"code": code, "message": message})

    def _control(self) -> None:
        """For tests in another process: PUT {latency, rate, faults: [{kind, on, …}]}; GET what was told."""
        if self.command == "PUT":
            self.server.faults.set(**json.loads(self.small_body()))
            self.server.told.clear()
        self.answer_json(200, [vars(told) for told in self.server.told])

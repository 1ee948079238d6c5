"""One HTTP connection: bodies in and out at a bounded rate, Expect: 100-continue, and the ways it can break."""

import base64
import hashlib
import json
import select
import socket
import struct
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.object_storage.faults import Fault, Faults

PIECE = 64 * 2**10
ARRIVING = 0.05  # seconds in which a client that does not wait for '100 Continue' has sent something


class Broken(Exception):
    """The connection is gone; nothing more can be answered."""


@dataclass
class Received:
    size: int
    md5: str
    sha256: str
    sha384: str


class Transport(BaseHTTPRequestHandler):
    """What the protocol needs of a connection. Subclasses serve requests."""

    protocol_version = "HTTP/1.1"
    wbufsize = 0
    disable_nagle_algorithm = True
    faults: Faults
    body_read = False
    expecting = False

    def handle_expect_100(self) -> bool:
        self.expecting = True  # sent only once the request is found good, as the service does
        return True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        pass

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length") or 0)

    def receive(self, path: Path, fault: Fault | None) -> Received:
        """Reads the body into `path`."""
        if self.expecting:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.expecting = False
        self.body_read = True
        digests = [hashlib.new(kind, usedforsecurity=False) for kind in ("md5", "sha256", "sha384")]
        left, started = self.length, time.monotonic()
        breaks_at = left - left // 2 if fault is not None and fault.kind == "reset_request" else -1
        with path.open("wb") as file:
            while left:
                piece = self.rfile.read(min(PIECE, left))
                if not piece:
                    raise Broken  # the client went away
                left -= len(piece)
                if left <= breaks_at:
                    self.reset()
                file.write(piece)
                for digest in digests:
                    digest.update(piece)
                self._pace(self.length - left, started)
        md5, sha256, sha384 = (base64.b64encode(digest.digest()).decode() for digest in digests)
        return Received(self.length, md5, sha256, sha384)

    def small_body(self) -> bytes:
        assert self.length < 2**22
        if self.expecting:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.expecting = False
        self.body_read = True
        return self.rfile.read(self.length)

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """An answer held in memory."""
        self._drain()
        self._begin(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.answer(status, {"content-type": "application/json", **(headers or {})}, body)

    def answer_file(
        self, status: int, headers: dict[str, str], path: Path, span: tuple[int, int], fault: Fault | None
    ) -> None:
        """Bytes span[0] to span[1], without the last."""
        start, end = span
        self._begin(status, headers, end - start)
        kind = fault.kind if fault is not None else ""
        stop = start + (end - start) // 2 if kind in ("reset_response", "cut") else end
        started = time.monotonic()
        with path.open("rb") as file:
            file.seek(start)
            for at in range(start, stop, PIECE):
                piece = file.read(min(PIECE, stop - at))
                if kind == "flipped" and at == start:
                    piece = bytes([piece[0] ^ 1]) + piece[1:]
                self.wfile.write(piece)
                self._pace(at + len(piece) - start, started)
        if kind == "reset_response":
            self.reset()
        if kind == "cut":
            self.close_connection = True

    def reset(self) -> None:
        """RST instead of FIN, as when a machine in between forgets the connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        raise Broken

    def _begin(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value.encode("utf-8").decode("latin-1"))
        if "content-length" not in headers:
            self.send_header("content-length", str(length))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()

    def _drain(self) -> None:
        """Before a refusal: takes the body of a client that sends it without waiting, or else closes."""
        if self.body_read or not self.length:
            return
        if self.expecting and not select.select([self.connection], [], [], ARRIVING)[0]:
            self.close_connection = True
            return
        left = self.length
        while left and (piece := self.rfile.read(min(PIECE, left))):
            left -= len(piece)

    def _pace(self, done: int, started: float) -> None:
        if self.faults.rate is not None:
            time.sleep(max(0.0, done / self.faults.rate - (time.monotonic() - started)))

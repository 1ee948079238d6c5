"""Objects into files: ranges at once, each written in its place and noted, so that a killed download goes on.

Every range is asked for with the object's etag: one that was replaced half-way begins again. The file appears when its
checksum is right.
"""

import base64
import contextlib
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import oci.exceptions
import urllib3

from job.runfolder import sha256
from job.storage.attempts import Damaged, anew, attempt, traced
from job.storage.connection import Connection, describe
from job.storage.pace import Pace
from job.storage.store import refusals, unfinished

CHUNK = 16 * 2**20  # bytes of a range
PARALLEL = 8  # ranges at once; each holds a piece
PIECE = 2**18


def get(connection: Connection, key: str, where: str, path: Path) -> None:
    """The whole object under `path`, or an error and `path` as it was."""

    def call() -> None:
        there = describe(connection, key, where)
        with refusals(path):
            unfinished = _Unfinished(path, f"{where} {there['etag']} {there['content-length']} {CHUNK}")
            with unfinished:
                _fill(connection, key, where, there, unfinished)
            if not _is_right(there, unfinished.data):
                unfinished.forget()
                raise Damaged(where, "what was read has another checksum", traced(there))
            unfinished.keep(path)

    anew(call)


class _Unfinished:
    """A file that grows in pieces beside its place, and a journal of the chunks that are in it."""

    def __init__(self, path: Path, header: str) -> None:
        self.data, self._journal = unfinished(path)
        self._header = header.replace("\n", " ")
        self._lock = threading.Lock()
        self.done: set[int] = set()

    def __enter__(self) -> None:
        lines = self._journal.read_text(encoding="utf-8").split("\n") if self._journal.exists() else []
        if lines and lines[0] == self._header and self.data.exists():
            self.done = {int(line) for line in lines[1:-1]}  # the last may be torn
        else:
            self._journal.write_text(self._header + "\n", encoding="utf-8")
            self.data.unlink(missing_ok=True)
        self._file = os.open(self.data, os.O_RDWR | os.O_CREAT, 0o666)
        self._notes = self._journal.open("a", encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        self._notes.close()
        os.fsync(self._file)
        os.close(self._file)

    def write(self, piece: bytes, at: int) -> None:
        view = memoryview(piece)
        while view:
            written = os.pwrite(self._file, view, at)
            view, at = view[written:], at + written

    def note(self, chunk: int) -> None:
        with self._lock:
            self._notes.write(f"{chunk}\n")
            self._notes.flush()

    def keep(self, path: Path) -> None:
        self.data.replace(path)
        self._journal.unlink()

    def forget(self) -> None:
        self.data.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)


def _fill(connection: Connection, key: str, where: str, there: Any, unfinished: _Unfinished) -> None:
    size, stop = int(there["content-length"]), threading.Event()
    chunks = [chunk for chunk in range(-(-size // CHUNK)) if chunk not in unfinished.done]

    def fetch(chunk: int) -> None:
        if stop.is_set():
            return
        start, end = chunk * CHUNK, min(size, (chunk + 1) * CHUNK)
        try:
            attempt(where, lambda ask: _range(connection, key, where, there["etag"], start, end, unfinished, ask))
        except BaseException:
            stop.set()  # the others' work would be for nothing, or can be done later
            raise
        unfinished.note(chunk)

    with ThreadPoolExecutor(min(PARALLEL, max(1, len(chunks))), "download") as pool:
        futures = [pool.submit(fetch, chunk) for chunk in chunks]
        try:
            for each in futures:
                each.result()
        except BaseException:  # a signal, too: the pool waits for what is under way, and for no more
            stop.set()
            raise


def _range(
    connection: Connection, key: str, where: str, etag: str, start: int, end: int, unfinished: _Unfinished, ask: str
) -> None:
    place = (connection.namespace, connection.bucket, key)
    asked = {"range": f"bytes={start}-{end - 1}", "if_match": etag, "opc_client_request_id": ask}
    try:
        answer = connection.client.get_object(*place, **asked)
    except oci.exceptions.ServiceError as error:
        if error.status in (412, 416):
            raise Damaged(where, "it was replaced while it was read", traced(error.headers)) from error
        raise
    with contextlib.closing(answer.data):
        at, pace = start, Pace(connection.timeout)
        while piece := answer.data.raw.read1(PIECE, decode_content=False):
            if at + len(piece) > end:
                break
            unfinished.write(piece, at)
            at += len(piece)
            pace.moved(len(piece))
    if at != end:
        raise urllib3.exceptions.IncompleteRead(at - start, end - at)


def _is_right(there: Any, path: Path) -> bool:
    """By our own SHA-256, or the service's MD5; of parts that others uploaded, only the size is known."""
    if path.stat().st_size != int(there["content-length"]):
        return False
    if "opc-meta-sha256" in there:
        return bool(sha256(path) == there["opc-meta-sha256"])
    if "content-md5" in there:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
        return bool(base64.b64encode(found).decode() == there["content-md5"])
    return True

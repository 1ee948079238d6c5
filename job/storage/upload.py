"""Files into Object Storage: small ones in one request, large ones in parts at once, each with its checksums.

What the service says of the object afterwards must be what we know of the file. An upload that fails is aborted, and so
are those that a killed process left behind under the same name; one name has one writer at a time.
"""

import base64
import contextlib
import functools
import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import oci.exceptions

from job.errors import JobError
from job.storage.attempts import Damaged, anew, attempt, traced
from job.storage.connection import AbsentError, Connection, describe, look
from job.storage.pace import PacedBody
from job.storage.store import Entry, StoreError

import oci.object_storage  # isort: skip

PART = 16 * 2**20  # bytes of a part at most, until MOST_PARTS of them would not hold the file
SMALLEST_PART = 10 * 2**20  # what the service wants of each but the last; a larger file goes up in parts
MOST_PARTS = 9_000  # the service takes 10,000
PARALLEL = 8  # parts at once; each holds a buffer of 64 KiB
PIECE = 2**20
LOST = "it was not stored, though the service said so"

_active: set[str] = set()  # ids of this process's uploads
_active_lock = threading.Lock()


@dataclass(frozen=True)
class Sums:
    """What is known of a file before it is sent."""

    size: int
    part: int
    md5: str
    """Base64; of a file in parts: the sum of the parts' sums and their number, as the service has it."""
    sha256: str
    """In hex."""

    @property
    def in_parts(self) -> bool:
        return self.size > self.part


def widen(client: Any) -> None:
    """Room for the parts' connections; before threads share the client."""
    oci.object_storage.UploadManager(client, parallel_process_count=PARALLEL)


def put(connection: Connection, path: Path, key: str, where: str, name: str) -> Entry:
    """Stores, verifies, and does both again where the service stored something else."""

    def call() -> Entry:
        sums = measure(path, where)
        meta = {"sha256": sums.sha256}
        if sums.in_parts:
            _put_in_parts(connection, path, key, where, sums, meta)
        else:
            attempt(where, lambda ask: _put_at_once(connection, path, key, sums, meta, ask))
        try:
            there = describe(connection, key, where)
        except AbsentError as absent:
            raise Damaged(where, LOST, absent.request) from None
        verify(there, sums, where)
        return Entry(name, sums.size, there["etag"])

    return anew(call)


def put_if(
    connection: Connection, path: Path, key: str, where: str, name: str, etag: str | None, writer: str
) -> Entry | None:
    """In one request with the condition. An answer that got lost does not hide that it was we who wrote."""
    sums = measure(path, where, parts=False)
    meta = {"sha256": sums.sha256, "writer": writer}
    expected = [etag]

    def call(ask: str) -> Entry | None:
        condition = {"if_none_match": "*"} if expected[0] is None else {"if_match": expected[0]}
        told = None
        try:
            told = _put_at_once(connection, path, key, sums, meta, ask, **condition)
        except oci.exceptions.ServiceError as error:
            if error.status != 412:  # noqa: PLR2004 - precondition failed
                raise
        there = look(connection, key, where)
        if there is not None and there.get("opc-meta-writer") == writer:
            expected[0] = there["etag"]  # ours, and if it is damaged, ours to replace
            verify(there, sums, where)
            return Entry(name, sums.size, there["etag"])
        if told is not None and (None if there is None else there["etag"]) == expected[0]:
            raise Damaged(where, LOST, traced(told))
        return None if told is None else Entry(name, sums.size, told["etag"])  # somebody else has replaced it since

    return anew(lambda: attempt(where, call))


def measure(path: Path, where: str, parts: bool = True) -> Sums:
    """Reads the file once. Without `parts` it goes up in one request, however large."""
    try:
        size = path.stat().st_size
        part = part_size(size) if parts else max(size, 1)
        whole = hashlib.sha256()
        with path.open("rb") as file:
            md5s = [_part_md5(file, min(part, size - at), whole) for at in range(0, max(size, 1), part)]
    except OSError as error:
        cure = "see what removed it, or the disk"
        raise StoreError(where, f"{path} cannot be read ({error.strerror})", cure, final=True) from error
    if len(md5s) == 1:
        return Sums(size, part, base64.b64encode(md5s[0]).decode(), whole.hexdigest())
    joined = hashlib.md5(b"".join(md5s), usedforsecurity=False).digest()
    return Sums(size, part, f"{base64.b64encode(joined).decode()}-{len(md5s)}", whole.hexdigest())


def part_size(size: int) -> int:
    """So that all connections are busy until the end: as many parts as connections, or a multiple of that."""
    rounds = max(1, -(-size // (PART * PARALLEL)))
    return max(SMALLEST_PART, -(-size // (rounds * PARALLEL)), -(-size // MOST_PARTS))


def _part_md5(file: IO[bytes], length: int, whole: "hashlib._Hash") -> bytes:
    md5 = hashlib.md5(usedforsecurity=False)
    while length and (piece := file.read(min(PIECE, length))):  # a file that shrinks is found out by the service
        whole.update(piece)
        md5.update(piece)
        length -= len(piece)
    return md5.digest()


def verify(there: Any, sums: Sums, where: str) -> None:
    """What the service says of the object against what is known of the file."""
    if int(there["content-length"]) != sums.size:
        raise Damaged(where, f"{there['content-length']} of {sums.size} bytes were stored", traced(there))
    if there.get("opc-multipart-md5" if sums.in_parts else "content-md5") != sums.md5:
        raise Damaged(where, "what was stored has another MD5", traced(there))
    if there.get("opc-meta-sha256") != sums.sha256:
        raise Damaged(where, "what was stored has another SHA-256", traced(there))


def _put_at_once(
    connection: Connection, path: Path, key: str, sums: Sums, meta: dict[str, str], ask: str, **condition: str
) -> Any:
    with path.open("rb") as file:
        return connection.client.put_object(
            connection.namespace,
            connection.bucket,
            key,
            PacedBody(file, connection.timeout),
            content_md5=sums.md5,
            opc_checksum_algorithm="SHA256",
            opc_content_sha256=base64.b64encode(bytes.fromhex(sums.sha256)).decode(),
            opc_meta=meta,
            opc_client_request_id=ask,
            **condition,
        ).headers


def _put_in_parts(connection: Connection, path: Path, key: str, where: str, sums: Sums, meta: dict[str, str]) -> None:
    parts = _Parts(connection, where)
    manager = oci.object_storage.UploadManager(parts, parallel_process_count=PARALLEL)
    try:
        manager.upload_file(
            connection.namespace,
            connection.bucket,
            key,
            str(path),
            part_size=sums.part,
            metadata=meta,
            opc_checksum_algorithm="SHA256",
        )
    finally:
        with _active_lock:
            _active.discard(parts.upload_id)
        with contextlib.suppress(JobError):
            _abort_leftovers(connection, key, where)


class _Parts:
    """Stands for the client in an UploadManager: tries parts again by our rules, and knows the upload's id.

    Once a part has failed for good the others are not sent, and the commit raises; the manager's threads must see no
    error, or it would leave them behind.
    """

    def __init__(self, connection: Connection, where: str) -> None:
        self._client, self._timeout, self._where = connection.client, connection.timeout, where
        self._failure: JobError | None = None
        self.upload_id = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def create_multipart_upload(self, *args: Any, **options: Any) -> Any:
        answer = attempt(
            self._where,
            lambda ask: self._client.create_multipart_upload(*args, **options, opc_client_request_id=ask),
        )
        self.upload_id = answer.data.upload_id
        with _active_lock:
            _active.add(self.upload_id)
        return answer

    def upload_part(self, *args: Any, **options: Any) -> Any:
        part = args[-1]

        def call(ask: str) -> Any:
            part.seek(0)
            part.bytes_read = 0  # its seek forgets that, and would send nothing
            body = PacedBody(part, self._timeout)
            return self._client.upload_part(*args[:-1], body, **options, opc_client_request_id=ask)

        try:
            if self._failure is None:
                return attempt(self._where, call)
        except JobError as error:
            self._failure = error
        except OSError as error:
            self._failure = StoreError(self._where, f"reading failed ({error.strerror})", "see the disk", final=False)
        return SimpleNamespace(status=0)

    def commit_multipart_upload(self, *args: Any, **options: Any) -> Any:
        if self._failure is not None:
            raise self._failure

        def call(ask: str) -> Any:
            try:
                return self._client.commit_multipart_upload(*args, **options, opc_client_request_id=ask)
            except oci.exceptions.ServiceError as error:
                if error.code == "NoSuchUpload":  # committed, and the answer got lost; what is stored is looked at next
                    return None
                if error.code == "InvalidUploadPart":
                    what = "a part was not stored, though the service said so"
                    raise Damaged(self._where, what, traced(error.headers)) from error
                raise

        return attempt(self._where, call)


def _abort_leftovers(connection: Connection, key: str, where: str) -> None:
    """Unfinished uploads cost storage until they are aborted."""
    client, place = connection.client, (connection.namespace, connection.bucket)

    def abort(upload_id: str, ask: str) -> None:
        try:
            client.abort_multipart_upload(*place, key, upload_id, opc_client_request_id=ask)
        except oci.exceptions.ServiceError as error:
            if error.code != "NoSuchUpload":
                raise

    for upload_id in _unfinished(connection, key, where):
        with _active_lock:
            if upload_id in _active:
                continue
        attempt(where, functools.partial(abort, upload_id))


def _unfinished(connection: Connection, key: str, where: str) -> list[str]:
    """Ids of the uploads under this key. A list that begins again is at its end."""
    found: list[str] = []
    pages: list[str | None] = [None]
    while True:
        asked = {} if pages[-1] is None else {"page": pages[-1]}
        answer = attempt(where, functools.partial(_uploads, connection, asked))
        found += [upload.upload_id for upload in answer.data if upload.object == key]
        if answer.next_page is None or answer.next_page in pages:
            return found
        pages.append(answer.next_page)


def _uploads(connection: Connection, asked: dict[str, Any], ask: str) -> Any:
    list_uploads = connection.client.list_multipart_uploads
    return list_uploads(connection.namespace, connection.bucket, opc_client_request_id=ask, **asked)

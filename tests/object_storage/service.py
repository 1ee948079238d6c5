"""What Object Storage does with a request whose signature holds; `serve_` and the operation's name make a method."""

import base64
import hashlib
import json
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.object_storage.asks import Ask
from tests.object_storage.faults import Fault
from tests.object_storage.identity import Refused
from tests.object_storage.objects import Bucket, Conflict, Stored
from tests.object_storage.transport import Received, Transport

CHECKSUMS = {"SHA256": "opc-content-sha256", "SHA384": "opc-content-sha384"}


class Service(Transport):
    """One request at a time: what is asked, of which bucket, and what shall go wrong."""

    ask: Ask
    bucket: Bucket
    fault: Fault | None
    page_size: int

    def fails(self, *kinds: str) -> bool:
        return self.fault is not None and self.fault.kind in kinds

    def serve_put(self) -> None:
        conditions = self._conditions()
        with self.bucket.lock:
            self.bucket.check(self.ask.name, **conditions)
        stored = self._store()
        if not self.fails("lost"):
            self.bucket.put(stored, **conditions)
        self._stored(stored)

    def serve_upload_part(self) -> None:
        self.bucket.upload(self.ask.query["uploadId"], self.ask.name)
        stored = self._store()
        if not self.fails("lost"):
            self.bucket.add_part(
                self.ask.query["uploadId"], self.ask.name, int(self.ask.query["uploadPartNum"]), stored
            )
        self._stored(stored)

    def _store(self) -> Stored:
        """Takes the body in and holds it against the checksums that came with it."""
        path = self.bucket.scratch()
        received = self.receive(path, self.fault)
        try:
            self._compare(received)
        except Conflict:
            path.unlink()
            raise
        checksums = {}
        if header := CHECKSUMS.get(self.headers.get("opc-checksum-algorithm", "").upper()):
            checksums[header] = received.sha256 if header.endswith("256") else received.sha384
        stored = Stored(
            self.ask.name, received.size, secrets.token_hex(16), received.md5, str(path), checksums=checksums
        )
        stored.meta = {k.lower(): v for k, v in self.headers.items() if k.lower().startswith("opc-meta-")}
        stored.content_type = self.headers.get("content-type", stored.content_type)
        if self.fails("truncated", "flipped"):
            _spoil(stored, flip=self.fails("flipped"))
        return stored

    def _compare(self, received: Received) -> None:
        asked = {
            "content-md5": ("UnmatchedContentMD5", received.md5),
            "opc-content-sha256": ("UnmatchedContentSHA256", received.sha256),
            "opc-content-sha384": ("UnmatchedContentSHA384", received.sha384),
            "x-content-sha256": ("UnmatchedContentSHA256", received.sha256),
        }
        for header, (code, found) in asked.items():
            if self.headers.get(header, found) != found:
                raise Conflict(400, code, f"The computed checksum of the request body ({found}) is not {header}'s.")

    def _stored(self, stored: Stored) -> None:
        if self.fails("reset_after"):
            self.reset()
        md5 = base64.b64encode(b"0" * 16).decode() if self.fails("wrong_checksum") else stored.md5
        headers = {"opc-content-md5": md5, "etag": stored.etag, "last-modified": stored.modified, **stored.checksums}
        self.answer(200, headers)

    def serve_get(self) -> None:
        with self.bucket.lock:
            stored = self.bucket.objects.get(self.ask.name)
            if stored is None:
                raise Conflict(404, "ObjectNotFound", "The object was not found.")
            self.bucket.check(self.ask.name, self.headers.get("if-match"), None)
            opened = Path(stored.data).open("rb")  # noqa: SIM115 - an overwrite does not take it from under a reader
        with opened as file:
            start, end = self._range(stored.size)
            headers = self._describe(stored)
            status = 200
            if self.headers.get("range") is not None:
                status, headers["content-range"] = 206, f"bytes {start}-{end - 1}/{stored.size}"
            if self.command == "HEAD":
                self.answer(status, {**headers, "content-length": str(stored.size)})
            else:
                self.answer_file(status, headers, Path(f"/proc/self/fd/{file.fileno()}"), (start, end), self.fault)

    serve_head = serve_get

    def _describe(self, stored: Stored) -> dict[str, str]:
        headers = {"etag": stored.etag, "last-modified": stored.modified, "content-type": stored.content_type}
        headers |= {"accept-ranges": "bytes", "storage-tier": "Standard", **stored.meta, **stored.checksums}
        wrong = self.fails("wrong_checksum")
        if stored.multipart_md5 is not None:
            headers["opc-multipart-md5"] = "wrong-1" if wrong else stored.multipart_md5
        else:
            headers["content-md5"] = base64.b64encode(b"0" * 16).decode() if wrong else stored.md5
        return headers

    def _range(self, size: int) -> tuple[int, int]:
        asked = self.headers.get("range")
        if asked is None:
            return 0, size
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end = (int(first), int(last) + 1 if last else size) if first else (max(0, size - int(last)), size)
        if start >= size or end <= start:
            raise Conflict(416, "InvalidRange", "The range is not in the object.")
        return start, min(end, size)

    def serve_delete(self) -> None:
        if not self.fails("lost"):
            self.bucket.delete(self.ask.name, self.headers.get("if-match"))
        if self.fails("reset_after"):
            self.reset()
        self.answer(204, {})

    def serve_list(self) -> None:
        limit = min(int(self.ask.query.get("limit", 1000)), self.page_size)
        first, after, end = (self.ask.query.get(key, "") for key in ("start", "startAfter", "end"))
        prefix, delimiter = self.ask.query.get("prefix", ""), self.ask.query.get("delimiter")
        with self.bucket.lock:
            names = sorted(name for name in self.bucket.objects if name.startswith(prefix))
            names = [n for n in names if n >= first and (not after or n > after) and (not end or n < end)]
            found, folders = _fold(names, prefix, delimiter)
            page = [_listed(self.bucket.objects[name], self.ask.query.get("fields", "name")) for name in found[:limit]]
        answer: dict[str, Any] = {"objects": page, "prefixes": folders}
        if len(found) > limit:
            answer["nextStartWith"] = found[limit]
        if self.fails("endless"):
            answer["nextStartWith"] = first or (found[0] if found else "a")
        self._page(answer)

    def serve_create_upload(self) -> None:
        details = json.loads(self.signed_body())
        meta = {key.lower(): value for key, value in (details.get("metadata") or {}).items()}
        upload = self.bucket.begin(details["object"], meta, **self._conditions())
        if self.fails("reset_after"):
            self.reset()
        answer = {
            "namespace": self.ask.namespace,
            "bucket": self.ask.bucket,
            "object": upload.name,
            "uploadId": upload.id,
        }
        self.answer_json(200, {**answer, "timeCreated": _iso(upload.created)})

    def serve_commit_upload(self) -> None:
        details = json.loads(self.signed_body())
        lost = self.fails("lost")
        if lost:
            stored = Stored(self.ask.name, 0, secrets.token_hex(16), "", "", multipart_md5="lost-1")
        else:
            stored = self.bucket.commit(self.ask.query["uploadId"], self.ask.name, details, **self._conditions())
        if self.fails("truncated", "flipped"):
            _spoil(stored, flip=self.fails("flipped"))
        if self.fails("reset_after"):
            self.reset()
        wrong = self.fails("wrong_checksum")
        md5 = "wrong-1" if wrong or stored.multipart_md5 is None else stored.multipart_md5
        self.answer(200, {"etag": stored.etag, "opc-multipart-md5": md5, "last-modified": stored.modified})

    def serve_abort_upload(self) -> None:
        self.bucket.abort(self.ask.query["uploadId"], self.ask.name)
        self.answer(204, {})

    def serve_list_uploads(self) -> None:
        with self.bucket.lock:
            uploads = sorted(self.bucket.uploads.values(), key=lambda upload: (upload.name, upload.id))
        listed = [
            {"namespace": self.ask.namespace, "bucket": self.ask.bucket, "object": u.name, "uploadId": u.id}
            | {"timeCreated": _iso(u.created)}
            for u in uploads
        ]
        self._pages(listed)

    def serve_list_parts(self) -> None:
        parts = self.bucket.upload(self.ask.query["uploadId"], self.ask.name).parts
        listed = [{"partNumber": n, "etag": p.etag, "md5": p.md5, "size": p.size} for n, p in sorted(parts.items())]
        self._pages(listed)

    def serve_bucket(self) -> None:
        answer = {
            "namespace": self.ask.namespace,
            "name": self.ask.bucket,
            "storageTier": "Standard",
            "versioning": "Disabled",
        }
        answer |= {"compartmentId": "ocid1.compartment.oc1..test", "createdBy": "test", "timeCreated": _iso(0)}
        self.answer_json(200, {**answer, "etag": "bucket"}, {"etag": "bucket"})

    def _pages(self, listed: list[dict[str, Any]]) -> None:
        limit, at = min(int(self.ask.query.get("limit", 1000)), self.page_size), int(self.ask.query.get("page", 0))
        more = {"opc-next-page": str(at + limit)} if len(listed) > at + limit else {}
        if self.fails("endless"):
            more = {"opc-next-page": str(at)}
        self._page(listed[at : at + limit], more)

    def _page(self, value: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        if self.fails("reset_response", "cut"):
            self._begin(200, {"content-type": "application/json"}, len(body))
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            if self.fails("reset_response"):
                self.reset()
            return
        self.answer(200, {"content-type": "application/json", **(headers or {})}, body)

    def signed_body(self) -> bytes:
        body = self.small_body()
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if self.headers.get("x-content-sha256") != digest:
            raise Refused("x-content-sha256 does not fit the body")
        return body

    def _conditions(self) -> dict[str, str | None]:
        return {"if_match": self.headers.get("if-match"), "if_none_match": self.headers.get("if-none-match")}


def _spoil(stored: Stored, flip: bool) -> None:
    """The bytes on disk become others; what the server says of them tells the truth where they are fewer."""
    path = Path(stored.data)
    content = bytearray(path.read_bytes())
    if not flip:
        content = content[: len(content) // 2]
        stored.size, stored.md5 = len(content), base64.b64encode(hashlib.md5(content).digest()).decode()
    elif content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _fold(names: list[str], prefix: str, delimiter: str | None) -> tuple[list[str], list[str]]:
    if not delimiter:
        return names, []
    folders = {name[: name.index(delimiter, len(prefix)) + 1] for name in names if delimiter in name[len(prefix) :]}
    return [name for name in names if delimiter not in name[len(prefix) :]], sorted(folders)


def _listed(stored: Stored, fields: str) -> dict[str, Any]:
    known = {"name": stored.name, "size": stored.size, "etag": stored.etag, "md5": stored.multipart_md5 or stored.md5}
    known |= {"timeCreated": _iso(stored.created), "timeModified": _iso(stored.created), "storageTier": "Standard"}
    return {key: known[key] for key in ["name", *fields.split(",")] if key in known}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

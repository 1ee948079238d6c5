"""What is stored: objects and unfinished uploads, their bytes in files of a folder, which a new process finds again."""

import base64
import contextlib
import hashlib
import json
import secrets
import shutil
import threading
import time
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any


@dataclass
class Stored:
    """An object, or a part of an upload; `data` is its file."""

    name: str
    size: int
    etag: str
    md5: str
    data: str
    multipart_md5: str | None = None
    meta: dict[str, str] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)  # header → value, where the client asked for one
    content_type: str = "application/octet-stream"
    created: float = field(default_factory=time.time)

    @property
    def modified(self) -> str:
        return formatdate(self.created, usegmt=True)


@dataclass
class Upload:
    id: str
    name: str
    meta: dict[str, str]
    parts: dict[int, Stored] = field(default_factory=dict)
    created: float = field(default_factory=time.time)


class Conflict(Exception):
    """A condition did not hold, or an upload is not as the client thinks: HTTP status, code, message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


class Bucket:
    """Objects by name; every change is one step under the lock."""

    def __init__(self, folder: Path, min_part: int) -> None:
        self.folder, self.min_part = folder, min_part
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self.lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.json"):
            stored = Stored(**json.loads(path.read_text(encoding="utf-8")))
            if Path(stored.data).exists():
                self.objects[stored.name] = stored

    def scratch(self) -> Path:
        return self.folder / f"{secrets.token_hex(12)}.data"

    def check(self, name: str, if_match: str | None, if_none_match: str | None) -> None:
        """Raises Conflict unless the conditions hold now."""
        there = self.objects.get(name)
        if if_none_match == "*" and there is not None:
            raise Conflict(412, "IfNoneMatchFailed", "The object exists.")
        if if_match is not None and (there is None or there.etag != if_match):
            raise Conflict(412, "IfMatchFailed", "The object's etag is another one.")

    def put(self, stored: Stored, if_match: str | None = None, if_none_match: str | None = None) -> None:
        with self.lock:
            self.check(stored.name, if_match, if_none_match)
            self._replace(stored)

    def delete(self, name: str, if_match: str | None) -> None:
        with self.lock:
            if name not in self.objects:
                raise Conflict(404, "ObjectNotFound", "The object was not found.")
            self.check(name, if_match, None)
            stored = self.objects.pop(name)
            self._index(name).unlink()
            Path(stored.data).unlink(missing_ok=True)

    def begin(self, name: str, meta: dict[str, str], if_match: str | None, if_none_match: str | None) -> Upload:
        with self.lock:
            self.check(name, if_match, if_none_match)
            upload = Upload(secrets.token_hex(16), name, meta)
            self.uploads[upload.id] = upload
        return upload

    def upload(self, upload_id: str, name: str) -> Upload:
        upload = self.uploads.get(upload_id)
        if upload is None or upload.name != name:
            raise Conflict(404, "NoSuchUpload", "The upload id was not found.")
        return upload

    def add_part(self, upload_id: str, name: str, number: int, stored: Stored) -> None:
        with self.lock:
            parts = self.upload(upload_id, name).parts
            if number in parts:
                Path(parts[number].data).unlink(missing_ok=True)
            parts[number] = stored

    def commit(self, upload_id: str, name: str, details: dict[str, Any], **conditions: str | None) -> Stored:
        """Joins the parts that the client names, in the order of their numbers."""
        with self.lock:
            upload = self.upload(upload_id, name)
            self.check(name, **conditions)
            parts = [self._named_part(upload, entry) for entry in details["partsToCommit"]]
            if not parts or any(part.size < self.min_part for part in parts[:-1]):
                raise Conflict(400, "InvalidUploadPart", f"A part but the last is under {self.min_part} bytes.")
            target, digest = self.scratch(), hashlib.md5(usedforsecurity=False)
            with target.open("wb") as file:
                for part in parts:
                    with Path(part.data).open("rb") as source:
                        shutil.copyfileobj(source, file, 2**20)
                    digest.update(base64.b64decode(part.md5))
            size, etag = sum(part.size for part in parts), secrets.token_hex(16)
            stored = Stored(name, size, etag, "", str(target), meta=upload.meta)
            stored.multipart_md5 = f"{base64.b64encode(digest.digest()).decode()}-{len(parts)}"
            self._forget(upload)
            self._replace(stored)
        return stored

    def abort(self, upload_id: str, name: str) -> None:
        with self.lock:
            self._forget(self.upload(upload_id, name))

    def _named_part(self, upload: Upload, entry: dict[str, Any]) -> Stored:
        part = upload.parts.get(entry["partNum"])
        if part is None or part.etag != entry["etag"]:
            raise Conflict(400, "InvalidUploadPart", f"Part {entry['partNum']} was not uploaded with this etag.")
        return part

    def _forget(self, upload: Upload) -> None:
        del self.uploads[upload.id]
        for part in upload.parts.values():
            Path(part.data).unlink(missing_ok=True)

    def _replace(self, stored: Stored) -> None:
        old = self.objects.get(stored.name)
        index = self._index(stored.name)
        beside = index.with_suffix(".new")
        beside.write_text(json.dumps(asdict(stored)), encoding="utf-8")
        beside.replace(index)
        self.objects[stored.name] = stored
        if old is not None:
            with contextlib.suppress(OSError):
                Path(old.data).unlink()

    def _index(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()}.json"

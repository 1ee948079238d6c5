"""OCI Object Storage as a store: oci://BUCKET@NAMESPACE/PREFIX, the namespace asked for where it is left out.

Nothing counts as stored before the service says the same size and checksums of it as we know of the file, and nothing
is read that was replaced meanwhile. Connects on first use; a forked process connects anew.
"""

import functools
import os
import re
import threading
import uuid
from pathlib import Path
from typing import Any

from job import auth
from job.errors import UsageError
from job.storage import download, upload
from job.storage.attempts import Damaged, anew, attempt, traced
from job.storage.connection import Connection, look
from job.storage.store import TIMEOUT, Entry, StoreError

import oci.object_storage  # isort: skip  # after job.auth, which keeps the SDK from loading everything

CONNECT_SECONDS = 10.0
PLACE = re.compile(r"oci://(?P<bucket>[A-Za-z0-9._-]+)(@(?P<namespace>[A-Za-z0-9_-]+))?(/(?P<prefix>.*))?")
LONGEST_NAME = 1024  # bytes of UTF-8


def open_uri(uri: str, timeout: float = TIMEOUT) -> "ObjectStore":
    """Checks the URI alone; credentials and network are needed on first use."""
    found = PLACE.fullmatch(uri)
    if found is None:
        raise UsageError(uri, "it names no bucket", "write oci://BUCKET@NAMESPACE/PREFIX, or oci://BUCKET/PREFIX")
    prefix = (found["prefix"] or "").strip("/")
    if any(part in (".", "..", "") for part in prefix.split("/")) and prefix:
        raise UsageError(uri, "its prefix is no plain path", "leave out '.', '..' and empty parts")
    return ObjectStore(uri.rstrip("/"), found["bucket"], found["namespace"], prefix, timeout)


class ObjectStore:
    """Objects below a prefix of a bucket. Threads may share it."""

    def __init__(self, uri: str, bucket: str, namespace: str | None, prefix: str, timeout: float) -> None:
        self.uri = uri
        self._bucket, self._namespace, self._timeout = bucket, namespace, timeout
        self._prefix = f"{prefix}/" if prefix else ""
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def put(self, path: Path, name: str) -> Entry:
        return upload.put(self.connection(), path, self._key(name), self._where(name), name)

    def put_if(self, path: Path, name: str, etag: str | None) -> Entry | None:
        connection, key, where = self.connection(), self._key(name), self._where(name)
        return upload.put_if(connection, path, key, where, name, etag, uuid.uuid4().hex)

    def get(self, name: str, path: Path) -> None:
        download.get(self.connection(), self._key(name), self._where(name), path)

    def head(self, name: str) -> Entry | None:
        found = look(self.connection(), self._key(name), self._where(name))
        return None if found is None else Entry(name, int(found["content-length"]), found["etag"])

    def list(self, prefix: str = "") -> list[Entry]:
        connection, found, start = self.connection(), [], None
        while True:
            answer = self._page(connection, self._prefix + prefix, start)
            page = answer.data
            found += [Entry(o.name.removeprefix(self._prefix), int(o.size), o.etag) for o in page.objects]
            if page.next_start_with is None:
                return sorted(found, key=lambda entry: entry.name)
            if page.next_start_with <= max([start or "", *(entry.name for entry in page.objects)]):
                raise Damaged(self.uri, "its list repeats a page", traced(answer.headers))
            start = page.next_start_with

    def exists(self, name: str) -> bool:
        return self.head(name) is not None

    def delete(self, name: str) -> None:
        """What is there now, and not what somebody else may put there meanwhile; a success is looked after."""
        connection, key, where = self.connection(), self._key(name), self._where(name)

        def delete(etag: str, ask: str) -> None:
            place = (connection.namespace, connection.bucket, key)
            try:
                connection.client.delete_object(*place, if_match=etag, opc_client_request_id=ask)
            except oci.exceptions.ServiceError as error:
                if error.code != "ObjectNotFound":
                    raise

        def call() -> None:
            if (there := look(connection, key, where)) is None:
                return
            attempt(where, functools.partial(delete, there["etag"]))
            after = look(connection, key, where)
            if after is not None and after["etag"] == there["etag"]:
                raise Damaged(where, "it was not deleted, though the service said so", traced(after))

        anew(call)

    def found(self) -> str:
        """Which credentials are used, and where: for people."""
        connection = self.connection()
        return f"{connection.credentials.found}, {connection.client.base_client.endpoint}"

    def connection(self) -> Connection:
        with self._lock:
            if self._connection is None or self._connection.pid != os.getpid():
                self._connection = self._connect()
            return self._connection

    def _connect(self) -> Connection:
        try:
            credentials = auth.find()
        except auth.AuthError as error:
            raise StoreError(error.where, error.what, error.cure, final=error.final) from error
        endpoint = auth.endpoint_override()
        options = {"service_endpoint": endpoint} if endpoint else {}
        try:
            client = oci.object_storage.ObjectStorageClient(
                credentials.config,
                signer=credentials.signer,
                timeout=(min(CONNECT_SECONDS, self._timeout), self._timeout),
                retry_strategy=oci.retry.NoneRetryStrategy(),
                circuit_breaker_strategy=oci.circuit_breaker.NoCircuitBreakerStrategy(),
                enable_strict_url_encoding=True,  # names with '//' or '..' stay what they are
                **options,
            )
        except ValueError as error:  # an unknown region
            raise StoreError(self.uri, str(error), "set OCI_REGION or JOB_OCI_ENDPOINT", final=True) from error
        upload.widen(client)
        namespace = self._namespace
        if namespace is None:
            namespace = attempt(self.uri, lambda ask: client.get_namespace(opc_client_request_id=ask).data)
        return Connection(client, namespace, self._bucket, credentials, os.getpid(), self._timeout)

    def _page(self, connection: Connection, prefix: str, start: str | None) -> Any:
        def call(ask: str) -> Any:
            options = {"start": start} if start is not None else {}
            return connection.client.list_objects(
                connection.namespace,
                connection.bucket,
                prefix=prefix,
                fields="name,size,etag",
                opc_client_request_id=ask,
                **options,
            )

        return attempt(self.uri, call)

    def _key(self, name: str) -> str:
        key = self._prefix + name
        if not name or name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
            raise StoreError(self._where(name), "this is no plain relative name", "use letters, digits, -", final=True)
        if len(key.encode()) > LONGEST_NAME:
            raise StoreError(self._where(name), f"the name is longer than {LONGEST_NAME} bytes", "cut it", final=True)
        return key

    def _where(self, name: str) -> str:
        return f"{self.uri}/{name}"

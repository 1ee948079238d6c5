"""One process's client for one bucket, and the one question that is asked of it everywhere: what is there?"""

from dataclasses import dataclass
from typing import Any

import oci.exceptions

from job.auth import Credentials
from job.storage.attempts import attempt, traced
from job.storage.store import StoreError

NOT_THERE = 404


@dataclass(frozen=True)
class Connection:
    client: Any
    namespace: str
    bucket: str
    credentials: Credentials
    pid: int
    timeout: float
    """Seconds without a byte after which a request is given up."""


class AbsentError(StoreError):
    """There is no such object; a missing bucket or right is another error. `request` is who said so."""

    def __init__(self, where: str, request: str) -> None:
        super().__init__(where, f"there is no such object, {request}", "check the name and the prefix", final=True)
        self.request = request


def look(connection: Connection, key: str, where: str) -> Any:
    """The headers of an object, or None if there is none."""
    try:
        return describe(connection, key, where)
    except AbsentError:
        return None


def describe(connection: Connection, key: str, where: str) -> Any:
    """The headers of an object. AbsentError if there is none."""
    place = (connection.namespace, connection.bucket, key)

    def call(ask: str) -> Any:
        try:
            return connection.client.head_object(*place, opc_client_request_id=ask).headers
        except oci.exceptions.ServiceError as error:
            if error.status != NOT_THERE:
                raise
        try:  # the answer to HEAD has no body that says what is missing
            answer = connection.client.get_object(*place, opc_client_request_id=ask)
            answer.data.close()
        except oci.exceptions.ServiceError as error:
            if error.code != "ObjectNotFound":
                raise
            raise AbsentError(where, traced(error.headers)) from None
        return answer.headers

    return attempt(where, call)

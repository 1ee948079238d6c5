"""One process's client for one bucket, and the one question that is asked of it everywhere: what is there?"""

from dataclasses import dataclass
from typing import Any

import oci.exceptions

from job.auth import Credentials
from job.storage.attempts import attempt

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


def look(connection: Connection, key: str, where: str) -> Any:
    """The headers of an object, or None if there is none. A missing bucket or right is an error, not an absence."""
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
            return None
        return answer.headers

    return attempt(where, call)

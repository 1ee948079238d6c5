"""Tries again what time may mend, with growing waits, and says in one line why a request to Object Storage failed.

The SDK's own retries and circuit breaker are off: it would send a part up to 40 times, and it cannot rewind the body
of a part. What is tried again here is opened again.
"""

import http.client
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import oci.exceptions
import urllib3

from job.auth import AuthError
from job.errors import JobError
from job.storage.store import StoreError

TRIES = 5
FIRST_WAIT = 0.5  # seconds, doubled from try to try, and cut by chance to half of it at least
LONGEST_WAIT = 8.0
SKEW = 240.0  # seconds; the service refuses 300

Result = TypeVar("Result")

NO_ANSWER = (
    oci.exceptions.RequestException,
    oci.exceptions.ConnectTimeout,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
)
DAMAGED = ("UnmatchedContentMD5", "UnmatchedContentSHA256", "UnmatchedETag")
CONCURRENT = ("ConcurrentObjectUpdate", "")  # an answer to HEAD has no code
FULL = ("QuotaExceeded", "LimitExceeded", "StorageLimitExceeded", "InsufficientQuota")
CURES = {
    401: "check the API key, its fingerprint, the session token and this machine's clock: python -m job doctor SPEC",
    403: "ask for a policy that allows it: manage objects in the bucket's compartment",
    404: "check bucket, namespace and region, and the policy: what one may not see looks like missing",
    409: "see who else writes there",
    412: "see who else writes there",
    413: "split the file",
}


class Damaged(StoreError):
    """What is stored, or was read, is not what was sent. Doing all of it again may help."""

    def __init__(self, where: str, what: str, request: str) -> None:
        cure = "it is tried again later; if it lasts, tell the storage's support"
        super().__init__(where, f"{what}, {request}", cure, final=False)


def attempt(where: str, call: Callable[[str], Result]) -> Result:
    """What `call` gives, which is one request; it gets an id that the service writes into its logs."""
    for number in range(1, TRIES + 1):
        ask = uuid.uuid4().hex.upper()
        try:
            return call(ask)
        except AuthError as error:  # before the request: a session that has ended
            raise StoreError(error.where, error.what, error.cure, final=error.final) from error
        except JobError:
            raise  # no failure of the request
        except Exception as error:
            refusal = told(where, error, ask)
            if refusal is None:
                raise
            if refusal.final or number == TRIES:
                raise refusal from error
        pause(number)
    raise AssertionError("the last try returns or raises")


def anew(call: Callable[[], Result]) -> Result:
    """What `call` gives, which is several requests; all of them again where the outcome was damaged."""
    for number in range(1, TRIES):
        try:
            return call()
        except Damaged:
            pause(number)
    return call()


def pause(number: int) -> None:
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (number - 1))
    time.sleep(random.uniform(wait / 2, wait))  # noqa: S311 - spreads retries, keeps no secret


def told(where: str, error: Exception, ask: str) -> StoreError | None:
    """The error in one line, or None where it is none of the storage's."""
    if isinstance(error, oci.exceptions.ServiceError):
        return _refused(where, error, ask)
    if isinstance(error, NO_ANSWER):
        what = f"no answer: {_innermost(error)}, opc-client-request-id {ask}"
        return StoreError(where, what, "check the network, the region and the endpoint", final=False)
    return None


def traced(headers: Any) -> str:
    """By which of the service's log lines an answer can be found."""
    return f"opc-request-id {headers.get('opc-request-id')}"


def _refused(where: str, error: Any, ask: str) -> StoreError:
    code = error.code or {401: "NotAuthenticated", 404: "NotFound"}.get(error.status, "")
    message = " ".join(str(error.message or "").split()).rstrip(".")
    request_id = f"opc-request-id {error.request_id}" if error.request_id else f"opc-client-request-id {ask}"
    what = ", ".join(part for part in (f"{error.status} {code}".strip(), message, request_id) if part)
    final = error.status < 500 and error.status not in (-1, 408, 429)  # noqa: PLR2004 - what the server is to blame for
    cure = CURES.get(error.status, "see what the message says" if final else "it is tried again later")
    if error.status == 401 and (skew := _skew(error)) is not None:  # noqa: PLR2004
        cure = f"this machine's clock is {skew:+.0f} s off: set it, sudo chronyc makestep"
    elif code in FULL:
        cure = "delete what is not needed, or ask for a higher limit"
    elif code in DAMAGED or code == "NoSuchUpload" or (error.status == 409 and code in CONCURRENT):  # noqa: PLR2004
        final, cure = False, "it is tried again later"
    return StoreError(where, what, cure, final=final)


def _skew(error: Any) -> float | None:
    """Seconds by which this clock is ahead of the server's, where that is why it refused."""
    try:
        theirs = parsedate_to_datetime(error.headers["date"])
    except (KeyError, TypeError, ValueError):
        return None
    ahead = (datetime.now(UTC) - theirs).total_seconds()
    return ahead if abs(ahead) > SKEW else None


def _innermost(error: BaseException) -> str:
    """A few words: 'connection refused', 'read timed out'."""
    seen = [error]
    while (inner := seen[-1].__cause__ or seen[-1].__context__) is not None and inner not in seen:
        seen.append(inner)
    for each in reversed(seen):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror.lower()
    for each in reversed(seen):
        if isinstance(each, TimeoutError | urllib3.exceptions.TimeoutError):
            return "timed out"
    return {"RemoteDisconnected": "the connection was closed", "IncompleteRead": "the answer was cut"}.get(
        type(seen[-1]).__name__, type(seen[-1]).__name__
    )

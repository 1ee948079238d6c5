"""Capacity, limit, quota, rights and shapes are told apart by the words that come back, whatever their status."""

import pytest

from job.cloud.causes import CURES, classify, of_service_error

# The provider's form is "STATUS-Code, Message" followed by a suggestion and links.
TEXTS = [
    ("500-InternalError, Out of host capacity. Suggestion: contact support", "capacity", "cell"),
    ("500-InternalError, Out of capacity for shape VM.GPU.A10.1 in availability domain 1", "capacity", "cell"),
    ("400-LimitExceeded, The following service limits were exceeded: gpu-a10-count.", "limit", "shape"),
    ("400-QuotaExceeded, You have exceeded the compartment quota gpu-a10-count", "quota", "shape"),
    ("404-NotAuthorizedOrNotFound, Authorization failed or requested resource not found.", "authorisation", "all"),
    ("401-NotAuthenticated, The required information was not provided.", "authorisation", "all"),
    ("404-NotAuthorizedOrNotFound, Shape VM.GPU.A10.1 not found", "shape", "shape"),
    ("400-InvalidParameter, Shape BM.GPU.X is incompatible with the image", "shape", "shape"),
    ("429-TooManyRequests, Too many requests for the user", "throttled", "cell"),
    ("Invalid value for variable max_duration lies between 600 seconds and 14 days", "refused", "all"),
    ("Resource precondition failed The job needs a GPU, and VM.Standard.E5.Flex has none.", "refused", "all"),
    ("Post https://iaas.us-phoenix-1.oraclecloud.com: dial tcp: lookup: no such host", "unreachable", "all"),
    ("503-ServiceUnavailable, The service is unavailable.", "unreachable", "all"),
    ("500-InternalError, Internal server error.", "other", "cell"),
]


@pytest.mark.parametrize(("said", "kind", "reach"), TEXTS, ids=[f"{kind}-{n}" for n, (_, kind, _) in enumerate(TEXTS)])
def test_what_was_said_has_a_cause(said: str, kind: str, reach: str) -> None:
    cause = classify(said)
    assert (cause.kind, cause.reach) == (kind, reach)
    assert cause.said in said
    assert cause.cure == CURES[cause.kind]


def test_capacity_is_no_plain_server_error() -> None:
    assert of_service_error(500, "InternalError", "Out of host capacity.").kind == "capacity"
    assert of_service_error(500, "InternalError", "Something else.").kind == "other"


def test_an_answer_without_words_is_a_cause_too() -> None:
    assert classify("  \n ").said == "nothing was said"
    assert of_service_error(404, None, None).kind == "other"


def test_a_long_answer_is_cut_to_a_line() -> None:
    cause = classify("500-InternalError, " + "many\nwords " * 100)
    assert "\n" not in cause.said
    assert len(cause.said) <= 300

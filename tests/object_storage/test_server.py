"""The test server against the real SDK: what it stores, what it refuses, and how it breaks."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["OCI_PYTHON_SDK_NO_SERVICE_IMPORTS"] = "1"
import oci
import oci.object_storage

from tests.object_storage.identity import TENANCY, make_key, private_pem, write_config
from tests.object_storage.server import ObjectStorage

PLACE = ("space", "bucket")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ObjectStorage]:
    with ObjectStorage(tmp_path / "server", page_size=2, min_part=10) as running:
        yield running


@pytest.fixture
def client(server: ObjectStorage, tmp_path: Path) -> Any:
    return connected(server, oci.config.from_file(str(write_config(tmp_path / "oci", server.identity))))


def connected(server: ObjectStorage, config: dict[str, Any], **options: Any) -> Any:
    options |= {"retry_strategy": oci.retry.NoneRetryStrategy(), "service_endpoint": server.endpoint}
    options["circuit_breaker_strategy"] = oci.circuit_breaker.NoCircuitBreakerStrategy()
    return oci.object_storage.ObjectStorageClient(config, timeout=(2, 2), **options)


def refusal(call: Any, *args: Any, **options: Any) -> tuple[int, str]:
    with pytest.raises(oci.exceptions.ServiceError) as caught:
        call(*args, **options)
    assert caught.value.request_id.startswith("test-")
    return caught.value.status, caught.value.code


@pytest.mark.parametrize("name", ["a", "a b/ü?&=#%+", "run/../x", "a//b", "日本/語", ".", "a" * 1000])
def test_an_object_comes_back_under_any_name(server: ObjectStorage, client: Any, name: str) -> None:
    put = client.put_object(*PLACE, name, b"hello", opc_meta={"key": "value"}, enable_strict_url_encoding=True)
    assert put.headers["opc-content-md5"] == base64.b64encode(hashlib.md5(b"hello").digest()).decode()
    head = client.head_object(*PLACE, name, enable_strict_url_encoding=True).headers
    assert (head["etag"], head["content-length"], head["opc-meta-key"]) == (put.headers["etag"], "5", "value")
    get = client.get_object(*PLACE, name, enable_strict_url_encoding=True)
    assert get.data.content == b"hello"
    assert server.content(name) == b"hello"
    assert [entry.name for entry in client.list_objects(*PLACE).data.objects] == [name]
    client.delete_object(*PLACE, name, enable_strict_url_encoding=True)
    assert refusal(client.get_object, *PLACE, name) == (404, "ObjectNotFound")


def test_ranges(client: Any) -> None:
    client.put_object(*PLACE, "a", b"0123456789")
    for asked, found in {"bytes=0-3": b"0123", "bytes=8-": b"89", "bytes=-1": b"9", "bytes=5-99": b"56789"}.items():
        response = client.get_object(*PLACE, "a", range=asked)
        assert (response.status, response.data.content) == (206, found)
    assert refusal(client.get_object, *PLACE, "a", range="bytes=10-") == (416, "InvalidRange")


def test_conditions(client: Any) -> None:
    etag = client.put_object(*PLACE, "a", b"1", if_none_match="*").headers["etag"]
    assert refusal(client.put_object, *PLACE, "a", b"2", if_none_match="*") == (412, "IfNoneMatchFailed")
    assert refusal(client.put_object, *PLACE, "a", b"2", if_match="other") == (412, "IfMatchFailed")
    assert client.put_object(*PLACE, "a", b"2", if_match=etag).headers["etag"] != etag
    assert refusal(client.get_object, *PLACE, "a", if_match=etag) == (412, "IfMatchFailed")
    assert refusal(client.delete_object, *PLACE, "a", if_match=etag) == (412, "IfMatchFailed")


def test_lists_come_in_pages(server: ObjectStorage, client: Any) -> None:
    for name in ("a/1", "a/2", "a/3", "b", "c/1"):
        client.put_object(*PLACE, name, b"x")
    every = oci.pagination.list_call_get_all_results(client.list_objects, *PLACE, fields="name,size,etag,md5")
    assert [entry.name for entry in every.data.objects] == ["a/1", "a/2", "a/3", "b", "c/1"]
    assert [entry.etag for entry in every.data.objects] == [o.etag for _, o in sorted(server.objects.items())]
    assert server.count("list") == 3
    assert [entry.name for entry in client.list_objects(*PLACE, prefix="a/").data.objects] == ["a/1", "a/2"]
    folded = client.list_objects(*PLACE, delimiter="/").data
    assert ([entry.name for entry in folded.objects], folded.prefixes) == (["b"], ["a/", "c/"])


def test_an_upload_in_parts(server: ObjectStorage, client: Any, tmp_path: Path) -> None:
    content = os.urandom(95)
    (tmp_path / "file").write_bytes(content)
    manager = oci.object_storage.UploadManager(client, parallel_process_count=3)
    options = {"part_size": 10, "metadata": {"sum": "1"}, "opc_checksum_algorithm": "SHA256"}
    response = manager.upload_file(*PLACE, "a", str(tmp_path / "file"), **options)
    sums = b"".join(hashlib.md5(content[at : at + 10]).digest() for at in range(0, 95, 10))
    expected = base64.b64encode(hashlib.md5(sums).digest()).decode() + "-10"
    head = client.head_object(*PLACE, "a").headers
    assert response.headers["opc-multipart-md5"] == head["opc-multipart-md5"] == expected
    assert "content-md5" not in head
    assert head["opc-meta-sum"] == "1"
    assert server.content("a") == content
    assert server.uploads == {}


def test_unfinished_uploads_are_listed_and_aborted(server: ObjectStorage, client: Any) -> None:
    details = [oci.object_storage.models.CreateMultipartUploadDetails(object=name) for name in "abc"]
    begun = [client.create_multipart_upload(*PLACE, detail).data for detail in details]
    part = client.upload_part(*PLACE, "a", begun[0].upload_id, 1, b"0123456789")
    listed = oci.pagination.list_call_get_all_results(client.list_multipart_uploads, *PLACE).data
    assert [(entry.object, entry.upload_id) for entry in listed] == [(b.object, b.upload_id) for b in begun]
    [found] = client.list_multipart_upload_parts(*PLACE, "a", begun[0].upload_id).data
    assert (found.part_number, found.size, found.etag) == (1, 10, part.headers["etag"])
    wrong = {"partsToCommit": [{"partNum": 2, "etag": part.headers["etag"]}], "partsToExclude": []}
    assert refusal(client.commit_multipart_upload, *PLACE, "a", begun[0].upload_id, wrong)[0] == 400
    for entry in begun:
        client.abort_multipart_upload(*PLACE, entry.object, entry.upload_id)
    assert refusal(client.abort_multipart_upload, *PLACE, "a", begun[0].upload_id) == (404, "NoSuchUpload")
    assert list(server.buckets["space/bucket"].folder.glob("*.data")) == []


def test_a_wrong_checksum_is_refused(server: ObjectStorage, client: Any) -> None:
    wrong = base64.b64encode(b"0" * 16).decode()
    assert refusal(client.put_object, *PLACE, "a", b"1", content_md5=wrong) == (400, "UnmatchedContentMD5")
    options = {"opc_checksum_algorithm": "SHA256", "opc_content_sha256": wrong}
    assert refusal(client.put_object, *PLACE, "a", b"1", **options) == (400, "UnmatchedContentSHA256")
    assert server.objects == {}


def test_a_signature_must_hold(server: ObjectStorage, client: Any, tmp_path: Path) -> None:
    config = dict(client.base_client.config)
    other = connected(server, {**config, "key_file": None, "key_content": private_pem(make_key())})
    assert refusal(other.get_namespace) == (401, "NotAuthenticated")
    unknown = connected(server, {**config, "fingerprint": ":".join(["00"] * 16)})
    assert refusal(unknown.get_namespace) == (401, "NotAuthenticated")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server.endpoint}/n")
    for ahead in (301.0, -301.0):
        server.identity.clock = ahead
        assert refusal(client.get_namespace) == (401, "NotAuthenticated")
    server.identity.clock = 200.0
    assert client.get_namespace().data == "space"
    assert refusal(client.get_bucket, "space", "other") == (404, "BucketNotFound")
    assert client.get_bucket(*PLACE).data.name == "bucket"


def test_an_instance_gets_a_token_and_a_new_one(server: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCI_METADATA_BASE_URL", f"{server.endpoint}/opc/v2")
    signer = oci.auth.signers.InstancePrincipalsSecurityTokenSigner(federation_endpoint=f"{server.endpoint}/v1/x509")
    assert (signer.region, signer.tenancy_id) == ("us-phoenix-1", TENANCY)
    client = connected(server, {}, signer=signer)
    assert client.get_namespace().data == "space"
    server.identity.revoke(server.told[-1].key_id.removeprefix("ST$"))
    assert client.get_namespace().data == "space"
    assert server.count("exchange") == 2
    server.identity.token_seconds = 30  # less than the SDK keeps in hand
    signer.refresh_security_token()
    client.get_namespace()
    assert server.count("exchange") == 4


def test_a_token_ends(server: ObjectStorage, client: Any) -> None:
    key = make_key()
    token = server.identity.token(key.public_key(), seconds=60)
    holder = connected(server, {}, signer=oci.auth.signers.SecurityTokenSigner(token, key))
    assert holder.get_namespace().data == "space"
    server.identity.clock = 61.0
    assert refusal(holder.get_namespace) == (401, "NotAuthenticated")


def test_faults_come_when_they_are_asked_for(server: ObjectStorage, client: Any) -> None:
    server.faults.add("503", "put", name="b", times=2, after=1)
    assert [server.faults.take("put", name) is None for name in "abbbb"] == [True, True, False, False, True]
    server.faults.clear()
    server.faults.add("500", probability=0.5, times=None)
    assert 30 < sum(server.faults.take("get", "a") is not None for _ in range(100)) < 70


@pytest.mark.parametrize("kind", ["reset_before", "reset_request", "reset_after", "hang"])
def test_a_connection_breaks(server: ObjectStorage, client: Any, kind: str) -> None:
    server.faults.add(kind, "put")
    with pytest.raises(oci.exceptions.RequestException):
        client.put_object(*PLACE, "a", os.urandom(10**6))
    assert (server.objects != {}) == (kind == "reset_after")
    client.put_object(*PLACE, "a", b"1")
    assert server.content("a") == b"1"


def test_an_answer_breaks(server: ObjectStorage, client: Any) -> None:
    client.put_object(*PLACE, "a", os.urandom(10**6))
    for kind in ("reset_response", "cut"):
        server.faults.add(kind, "get")
        response = client.get_object(*PLACE, "a").data.raw
        with pytest.raises(Exception, match=r"reset|IncompleteRead|Connection broken"):
            sum(len(piece) for piece in response.stream(2**16, decode_content=False))


def test_it_lies(server: ObjectStorage, client: Any) -> None:
    server.faults.add("lost", "put")
    assert client.put_object(*PLACE, "a", b"0123").status == 200
    assert server.objects == {}
    server.faults.add("truncated", "put")
    client.put_object(*PLACE, "a", b"0123")
    assert server.content("a") == b"01"
    server.faults.add("flipped", "put")
    client.put_object(*PLACE, "a", b"0123")
    assert server.content("a") == b"0133"


def test_latency_and_rate(server: ObjectStorage, client: Any) -> None:
    server.faults.rate = 1e6
    start = time.monotonic()
    client.put_object(*PLACE, "a", bytes(100_000))
    assert time.monotonic() - start >= 0.1
    server.faults.latency = 0.05
    start = time.monotonic()
    client.get_object(*PLACE, "a").data.content  # noqa: B018
    assert time.monotonic() - start >= 0.1


def test_a_process_keeps_what_it_stores(tmp_path: Path) -> None:
    def told(*options: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        command = [sys.executable, "-m", "tests.object_storage", str(tmp_path / "kept"), *options]
        root = Path(__file__).parents[2]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())

    def reached(line: dict[str, Any]) -> Any:
        config = oci.config.from_file(line["environment"]["OCI_CONFIG_FILE"])
        return oci.object_storage.ObjectStorageClient(config, service_endpoint=line["endpoint"])

    process, line = told()
    with process:
        reached(line).put_object(*PLACE, "a", b"kept")
        process.kill()
    process, line = told("--latency", "1")
    with process:
        client = reached(line)
        assert client.get_object(*PLACE, "a").data.content == b"kept"
        body = json.dumps({"faults": [{"kind": "404", "on": ["get"]}]}).encode()
        urllib.request.urlopen(urllib.request.Request(f"{line['endpoint']}/control", body, method="PUT"))
        assert refusal(client.get_object, *PLACE, "a") == (404, "NotAuthorizedOrNotFound")
        with urllib.request.urlopen(f"{line['endpoint']}/control") as answer:
            assert [(each["operation"], each["status"]) for each in json.load(answer)] == [("get", 404)]
        process.terminate()
    assert process.returncode == 0

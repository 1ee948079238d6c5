"""A store in the test server's bucket, with small parts and short waits."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from job.storage import attempts, download, upload
from job.storage.object_storage import ObjectStore, open_uri
from tests.object_storage.identity import write_config
from tests.object_storage.server import ObjectStorage

PART = 1000  # bytes


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ObjectStorage]:
    with ObjectStorage(tmp_path / "server", page_size=3, min_part=PART) as running:
        yield running


@pytest.fixture
def environment(server: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's address and an API key; small parts and short waits."""
    for name in ("OCI_CLI_CONFIG_FILE", "OCI_CLI_PROFILE", "OCI_CLI_REGION", "OCI_REGION", "JOB_OCI_AUTH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JOB_OCI_ENDPOINT", server.endpoint)
    monkeypatch.setenv("OCI_CLI_AUTH", "api_key")
    monkeypatch.setenv("OCI_CONFIG_FILE", str(write_config(tmp_path / "oci", server.identity)))
    for module, name, value in (
        (attempts, "FIRST_WAIT", 0.001),
        (upload, "PART", PART),
        (upload, "SMALLEST_PART", PART),
        (upload, "PARALLEL", 3),
        (download, "CHUNK", PART),
        (download, "PARALLEL", 3),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def store(environment: None) -> ObjectStore:
    return open_uri("oci://bucket@space/runs", 0.3)

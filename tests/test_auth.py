"""Each kind of credentials through the real SDK, the order in which they are found, and lines with cures."""

import gc
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from job import auth
from job.auth import AuthError, find
from job.storage.object_storage import open_uri
from job.storage.store import StoreError
from tests.object_storage.identity import fingerprint, make_key, private_pem, write_config
from tests.object_storage.server import ObjectStorage


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ObjectStorage]:
    with ObjectStorage(tmp_path / "server", min_part=1000) as running:
        yield running


@pytest.fixture(autouse=True)
def bare(server: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials but those a test makes, and no instance."""
    for name in [name for name in os.environ if name.startswith(("OCI_", "JOB_OCI_"))]:
        if name != "OCI_PYTHON_SDK_NO_SERVICE_IMPORTS":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OCI_METADATA_BASE_URL", "http://127.0.0.1:9/opc/v2")
    monkeypatch.setenv("JOB_OCI_ENDPOINT", server.endpoint)
    monkeypatch.setenv("JOB_OCI_AUTH_ENDPOINT", server.endpoint)
    monkeypatch.setattr("job.storage.attempts.FIRST_WAIT", 0.001)


def works(tmp_path: Path) -> str:
    """Writes, reads and deletes; which credentials did it."""
    store = open_uri("oci://bucket/runs", 2.0)
    (tmp_path / "sent").write_bytes(b"1")
    store.put(tmp_path / "sent", "a")
    store.get("a", tmp_path / "back")
    store.delete("a")
    assert (tmp_path / "back").read_bytes() == b"1"
    return store.found().partition(", http")[0]


def line(kind: str | None = None) -> str:
    with pytest.raises(AuthError) as caught:
        find(kind)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_api_key(server: ObjectStorage, tmp_path: Path) -> None:
    write_config(tmp_path / "home/.oci", server.identity)
    assert works(tmp_path) == "API key of profile DEFAULT in ~/.oci/config"
    assert {told.key_id for told in server.told} == {server.identity.key_id}


def test_a_profile_in_another_file(server: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path / "else", server.identity, "TEAM")
    monkeypatch.setenv("OCI_CLI_CONFIG_FILE", str(config))
    monkeypatch.setenv("OCI_CONFIG_FILE", "/none")
    assert line() == f"{config}: it has no profile DEFAULT; set OCI_CLI_PROFILE to one it has"
    monkeypatch.setenv("OCI_CLI_PROFILE", "TEAM")
    assert works(tmp_path) == f"API key of profile TEAM in {config}"


def test_an_instance_principal(server: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path / "home/.oci", server.identity)
    monkeypatch.setenv("OCI_METADATA_BASE_URL", f"{server.endpoint}/opc/v2")
    assert works(tmp_path) == "instance principal"
    assert find().region == "us-phoenix-1"
    monkeypatch.setenv("OCI_REGION", "eu-frankfurt-1")
    assert find().region == "eu-frankfurt-1"
    monkeypatch.setenv("OCI_CLI_AUTH", "api_key")
    assert works(tmp_path).startswith("API key")


def test_an_instances_token_that_is_refused_half_way_spoils_nothing(
    server: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK then asks for a new token and sends what is left of the body: nothing."""
    monkeypatch.setenv("OCI_METADATA_BASE_URL", f"{server.endpoint}/opc/v2")
    store = open_uri("oci://bucket@space/runs", 2.0)
    content = os.urandom(100_000)
    (tmp_path / "file").write_bytes(content)
    store.put(tmp_path / "file", "a")
    server.faults.add("401", "put")
    store.put(tmp_path / "file", "b")
    assert server.content("runs/b") == content
    assert server.count("exchange") >= 2


@pytest.mark.parametrize("kind", ["401", "404", "503"])
@pytest.mark.parametrize("name", ["instance/", "cert.pem", "key.pem", "intermediate.pem", "instance/region"])
@pytest.mark.parametrize("asked", [None, "instance_principal"])
def test_a_metadata_service_that_refuses_is_a_line(
    server: ObjectStorage, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, asked: str | None
) -> None:
    """Whichever of its answers it is; a socket that stayed open would fail the test. The next try finds it well."""
    monkeypatch.setenv("OCI_METADATA_BASE_URL", f"{server.endpoint}/opc/v2")
    server.faults.add(kind, "metadata", name=name, times=None)
    with pytest.raises(AuthError) as caught:
        find(asked)
    told, refused = str(caught.value), kind != "503"
    gc.collect()
    if name == "instance/" and refused and asked is None:  # another maker's machine
        assert told.startswith("credentials: none were found: no principal, and no ~/.oci/config; ")
    elif name == "instance/" and refused:
        assert told.startswith(f"instance principal: the instance metadata service answers {kind}; run on an OCI ")
    elif name != "instance/":
        why = rf"instance principal: no token was given \({kind}, opc-request-id [\w-]+\); check that the instance "
        assert re.match(why, told)
    assert "\n" not in told
    assert caught.value.final == refused
    assert server.count("metadata") <= 12, "known after few tries"
    server.faults.clear()
    assert find(asked).found == "instance principal"


def test_a_busy_metadata_service_is_asked_again(server: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """By who has nothing else; a config file is as good."""
    monkeypatch.setenv("OCI_METADATA_BASE_URL", f"{server.endpoint}/opc/v2")
    server.faults.add("503", "metadata", times=2)
    assert find().found == "instance principal"
    server.faults.add("503", "metadata")
    write_config(Path.home() / ".oci", server.identity)
    assert find().found == "API key of profile DEFAULT in ~/.oci/config"


def test_a_resource_principal(server: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCI_METADATA_BASE_URL", f"{server.endpoint}/opc/v2")
    monkeypatch.setenv("OCI_RESOURCE_PRINCIPAL_VERSION", "2.2")
    assert line().startswith("resource principal: it cannot be used (")
    key = make_key()
    (tmp_path / "rpst").write_text(server.identity.token(key.public_key()))
    (tmp_path / "rp.pem").write_text(private_pem(key))
    monkeypatch.setenv("OCI_RESOURCE_PRINCIPAL_RPST", str(tmp_path / "rpst"))
    monkeypatch.setenv("OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM", str(tmp_path / "rp.pem"))
    monkeypatch.setenv("OCI_RESOURCE_PRINCIPAL_REGION", "us-phoenix-1")
    assert works(tmp_path) == "resource principal"
    assert find("instance_principal").found == "instance principal"


def test_a_session_token_and_its_renewal(server: ObjectStorage, tmp_path: Path) -> None:
    token = server.identity.token(server.identity.user_key.public_key())
    write_config(tmp_path / "home/.oci", server.identity, token=token)
    assert works(tmp_path) == "session token of profile DEFAULT in ~/.oci/config"
    assert server.count("refresh") == 0
    store = open_uri("oci://bucket@space/runs", 2.0)
    file = tmp_path / "home/.oci/DEFAULT.token"
    ends_soon = server.identity.token(server.identity.user_key.public_key(), seconds=100)
    file.write_text(ends_soon)
    assert store.list() == []
    assert server.count("refresh") == 1
    renewed = file.read_text()
    assert renewed != ends_soon
    assert auth.expiry(renewed) > time.time() + 3000
    assert file.stat().st_mode & 0o777 == 0o600
    server.identity.revoke(ends_soon)
    assert store.list() == []
    newer = server.identity.token(server.identity.user_key.public_key())  # as `oci session refresh` would do
    file.write_text(newer)
    os.utime(file, ns=(1, 1))
    server.identity.revoke(renewed)
    assert store.list() == []
    assert server.count("refresh") == 1


def test_a_session_that_has_ended_says_so(server: ObjectStorage, tmp_path: Path) -> None:
    """Half-way too; and a new one is taken up without a restart."""
    key = server.identity.user_key.public_key()
    write_config(tmp_path / "home/.oci", server.identity, token=server.identity.token(key))
    store = open_uri("oci://bucket@space/runs", 2.0)
    assert store.list() == []
    server.faults.add("401", "refresh")
    file = tmp_path / "home/.oci/DEFAULT.token"
    file.write_text(server.identity.token(key, seconds=-10))
    with pytest.raises(StoreError) as caught:
        store.list()
    assert str(caught.value) == (
        "profile DEFAULT in ~/.oci/config: its session has ended, and could not be renewed; "
        "oci session authenticate --profile-name DEFAULT"
    )
    assert caught.value.final
    file.write_text(server.identity.token(key))
    os.utime(file, ns=(1, 1))
    assert store.list() == []


def test_an_instances_token_is_renewed_before_it_ends(
    server: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCI_METADATA_BASE_URL", f"{server.endpoint}/opc/v2")
    server.identity.token_seconds = 30  # less than the minute that the SDK keeps in hand
    store = open_uri("oci://bucket@space/runs", 2.0)
    assert store.list() == []
    before = server.count("exchange")
    assert store.list() == []
    assert server.count("exchange") == before + 1
    server.identity.token_seconds = 3600
    assert store.list() == store.list() == []
    assert server.count("exchange") == before + 2


@pytest.mark.parametrize(
    ("operation", "kind"),
    [*(("exchange", kind) for kind in ("401", "404", "503", "reset_before")), ("metadata", "reset_before")],
)
def test_a_token_that_cannot_be_renewed_is_a_line(
    server: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, operation: str
) -> None:
    """Also within an upload in parts, whose threads all wait for it; the token comes with the next try."""
    monkeypatch.setenv("OCI_METADATA_BASE_URL", f"{server.endpoint}/opc/v2")
    monkeypatch.setattr("job.storage.upload.SMALLEST_PART", 20_000)
    (tmp_path / "file").write_bytes(os.urandom(100_000))
    server.identity.token_seconds = 30
    store = open_uri("oci://bucket@space/runs", 2.0)
    assert store.list() == []
    server.faults.add(kind, operation, times=None)
    server.told.clear()
    for call in (store.list, lambda: store.put(tmp_path / "file", "a")):
        with pytest.raises(StoreError) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert caught.value.final == (kind in ("401", "404"))
    assert server.count(operation) <= 60, "no retries within retries"
    server.faults.clear()
    store.put(tmp_path / "file", "a")
    assert server.content("runs/a") == (tmp_path / "file").read_bytes()


def test_a_resource_principals_files_are_read_again(
    server: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service replaces token and key on disk; a 401 makes the SDK look."""
    monkeypatch.setenv("OCI_RESOURCE_PRINCIPAL_VERSION", "2.2")
    for name, file in (("RPST", "rpst"), ("PRIVATE_PEM", "rp.pem")):
        monkeypatch.setenv(f"OCI_RESOURCE_PRINCIPAL_{name}", str(tmp_path / file))
    monkeypatch.setenv("OCI_RESOURCE_PRINCIPAL_REGION", "us-phoenix-1")

    def issue() -> str:
        key = make_key()
        (tmp_path / "rp.pem").write_text(private_pem(key))
        (tmp_path / "rpst").write_text(server.identity.token(key.public_key()))
        return (tmp_path / "rpst").read_text()

    first = issue()
    store = open_uri("oci://bucket@space/runs", 2.0)
    (tmp_path / "file").write_bytes(b"content")
    store.put(tmp_path / "file", "a")
    server.identity.revoke(first)
    with pytest.raises(StoreError, match="401 NotAuthenticated") as caught:
        store.list()
    assert caught.value.final
    issue()
    store.put(tmp_path / "file", "b")
    assert server.content("runs/b") == b"content"


def test_nothing_is_found(tmp_path: Path) -> None:
    assert line() == (
        "credentials: none were found: no principal, and no ~/.oci/config; on a workstation: oci setup config; "
        "on an instance: a dynamic group with a policy; python -m job doctor SPEC shows what is found"
    )
    assert line("api-key").startswith("auth: api-key is no way to authenticate; use one of api_key, instance_principal")
    assert line("instance_principal").startswith("instance principal: the instance metadata service does not answer")


def test_a_silent_metadata_service_does_not_hold_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        monkeypatch.setenv("OCI_METADATA_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/opc/v2")
        monkeypatch.setattr(auth, "PROBE_SECONDS", 0.05)
        assert auth.metadata_status() is None


def test_another_makers_machine_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCI_METADATA_BASE_URL")
    (tmp_path / "tag").write_text("Somebody else's\n")
    monkeypatch.setattr(auth, "CHASSIS", tmp_path / "tag")
    assert auth.metadata_status() is None  # a connection off the loopback would fail the test


def test_mistakes_in_a_profile(server: ObjectStorage, tmp_path: Path) -> None:
    config = write_config(tmp_path / "home/.oci", server.identity)
    good, key = config.read_text(), tmp_path / "home/.oci/DEFAULT.pem"
    for change, told in {
        ("region=us-phoenix-1\n", ""): "it names no region; add region=…, or set OCI_REGION",
        ("fingerprint=", "fingerprint=x"): "it is not complete: fingerprint malformed; write it anew: oci setup config",
        (f"key_file={key}\n", ""): "it names no key_file; add key_file=…",
        ("DEFAULT.pem", "none.pem"): "its key_file is not there; correct key_file",
    }.items():
        config.write_text(good.replace(*change))
        assert line() == f"profile DEFAULT in ~/.oci/config: {told}"
    config.write_text("no section\npass_phrase=secret")
    assert line() == "~/.oci/config: it cannot be read (MissingSectionHeaderError); oci setup config"


def test_secrets_stay_out_of_texts_and_logs(
    server: ObjectStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    pem = private_pem(server.identity.user_key)
    token = server.identity.token(server.identity.user_key.public_key())
    config = write_config(tmp_path / "home/.oci", server.identity, token=token)
    texts = [repr(find())]
    store = open_uri("oci://bucket@space/runs", 2.0)
    for fault in ("401", "404", "500", "reset_before"):
        server.faults.add(fault, times=None)
        with pytest.raises(StoreError) as caught:
            store.list()
        texts += [str(caught.value), repr(caught.value), repr(caught.value.__cause__), str(caught.value.__cause__)]
        server.faults.clear()
    key = tmp_path / "home/.oci/DEFAULT.pem"
    key.write_text(pem.replace("\n", "x\n", 4))
    texts.append(line())
    config.write_text(config.read_text().replace("[DEFAULT]", "pass_phrase=open sesame\n[DEFAULT]"))
    texts.append(line())
    assert fingerprint(server.identity.user_key)
    for text in (*texts, caplog.text):
        for secret in (token, token.split(".")[2], *pem.splitlines()[1:-1], "open sesame"):
            assert secret not in text

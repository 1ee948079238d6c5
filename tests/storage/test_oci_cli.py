"""OCI's own command line reads a run that the job has stored: another client than ours finds the same bytes.

Needs the program `oci` of the package oci-cli, from $OCI_CLI or PATH; `make test-cli` brings it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.object_storage.identity import write_config
from tests.object_storage.server import ObjectStorage

ROOT = Path(__file__).resolve().parents[2]
SPEC = ROOT / "job/spec/samples/digits.yaml"


@pytest.fixture
def cli() -> str:
    found = os.environ.get("OCI_CLI") or shutil.which("oci")
    if not found:
        pytest.skip("needs oci-cli: make test-cli")
    return found


def ask(cli: str, server: ObjectStorage, config: Path, *words: str) -> Any:
    """What the command line answers, taken from its JSON."""
    where = ["--config-file", str(config), "--auth", "api_key", "--endpoint", server.endpoint]
    place = ["--namespace", "space", "--bucket-name", "bucket"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OCI_", "PYTHON"))}
    environment = {**kept, "HOME": str(config.parent), "SUPPRESS_LABEL_WARNING": "True"}
    command = [cli, *where, "os", "object", *words, *place]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index("{") :])


@pytest.mark.slow
def test_ocis_own_command_line_lists_and_downloads_a_run(cli: str, tmp_path: Path) -> None:
    with ObjectStorage(tmp_path / "server", page_size=4) as server:
        config = write_config(tmp_path / "oci", server.identity)
        environment = {"JOB_OCI_ENDPOINT": server.endpoint, "OCI_CONFIG_FILE": str(config), "OCI_CLI_AUTH": "api_key"}
        keys = ["--set", "store.uri=oci://bucket@space/runs", "--set", "train.epochs=3", "--run-id", "one"]
        run = [sys.executable, "-m", "job", "run", str(SPEC), *keys]
        done = subprocess.run(
            run,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

        listed = ask(cli, server, config, "list", "--prefix", "runs/one/", "--all")["data"]
        there = {name: server.objects[name].size for name in server.objects if name.startswith("runs/one/")}
        assert {entry["name"]: entry["size"] for entry in listed} == there

        ask(
            cli,
            server,
            config,
            "bulk-download",
            "--overwrite",
            "--prefix",
            "runs/one/",
            "--download-dir",
            str(tmp_path / "down"),
        )
    folder = tmp_path / "down/runs/one"
    claims = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    assert {"metrics.jsonl", "report.json"} <= {claim["path"] for claim in claims}
    for claim in claims:
        assert hashlib.sha256((folder / claim["path"]).read_bytes()).hexdigest() == claim["sha256"], claim["path"]

"""The verbs as a person calls them: what they print, and the exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from job import cli, doctor
from job.spec.load import json_schema

DIGITS = """
name: digits
dataset: {name: digits, subset: 400}
loader: {batch_size: 32}
model: {name: resnet9, width: 4}
optimizer: {name: sgd, lr: 0.1, nesterov: true}
schedule: {name: onecycle, warmup_epochs: 1}
train: {epochs: 3, device: cpu}
"""


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "digits.yaml"
    path.write_text(DIGITS + f"store: {{uri: {path.parent}}}\n")
    return path


@pytest.fixture(scope="module")
def run(spec: Path) -> Path:
    """A finished run, made by the command line in a process of its own."""
    command = [sys.executable, "-m", "job", "run", str(spec), "--run-id", "done", "--log-format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (lines[0]["event"], lines[-1]["event"]) == ("Begun", "Ended")
    assert done.stderr == ""
    return spec.parent / "done"


def test_no_verb_is_usage() -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2


def test_validate_says_yes(capsys: pytest.CaptureFixture[str], spec: Path) -> None:
    assert call(capsys, "validate", spec) == (0, f"{spec}: valid\n", "")


def test_validate_says_all_that_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("dataset: {name: digits}\nmodel: {named: resnet9}\ntrain: {epochs: 0}\n")
    code, out, err = call(capsys, "validate", path)
    assert (code, out) == (2, "")
    assert [line.split(": ")[0] for line in err.splitlines()] == [f"{path}:2:9", f"{path}:3:17"]


def test_a_missing_spec_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = call(capsys, "run", tmp_path / "none.yaml")
    assert code == 2
    assert err.count("\n") == 1
    assert "none.yaml" in err


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, _, err = call(capsys, "validate", tmp_path / "none.yaml", "--debug")
    assert err.startswith("Traceback")


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "schema")
    assert code == 0
    assert json.loads(out) == json_schema()


def test_plan_tells_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cost = ["--set", "resources={shape: VM.GPU.A10.1, max_cost: 1.0}"]
    code, out, _ = call(capsys, "plan", spec, "--set", f"store.uri={tmp_path / 'runs'}", *cost)
    assert code == 0
    for words in ("resnet9, ", "parameters", "MFLOPs an image", "8×8×1, 10 classes", "2.00 USD/h", "Loader: resident"):
        assert words in out
    assert "1,800 s by resources.max_cost, at most 1.00 USD" in out
    assert list(tmp_path.iterdir()) == []


def test_tune_prints_the_table(capsys: pytest.CaptureFixture[str], spec: Path) -> None:
    code, out, _ = call(capsys, "tune", spec, "--set", "loader.resident=false")
    assert code == 0
    assert out.startswith("Loader candidates:\n  0 workers")


def test_evaluate_repeats_the_result(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    for where in (run, run / "model/model.pt"):
        code, out, _ = call(capsys, "evaluate", where)
        assert code == 0
        assert f"{report['accuracy']:.2%}" in out.splitlines()[0]


def test_evaluate_takes_a_checkpoint(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    newest = sorted((run / "checkpoints").glob("*.pt"))[-1]
    code, out, _ = call(capsys, "evaluate", newest)
    assert code == 0
    assert out.startswith("Accuracy of the network on the ")


def test_predict_names_the_class(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    path = tmp_path / "zero.png"
    Image.fromarray((digits.images[0] * 255 / 16).round().astype(np.uint8)).save(path)
    code, out, _ = call(capsys, "predict", run, path)
    assert code == 0
    assert out.startswith(f"{path}: 0 ")


def test_predict_on_what_is_no_image(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    code, _, err = call(capsys, "predict", run, tmp_path / "text.png")
    assert code == 3
    assert err.count("\n") == 1
    assert "text.png" in err


@pytest.mark.parametrize("verb", ["evaluate", "report"])
def test_a_folder_that_is_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str) -> None:
    code, _, err = call(capsys, verb, tmp_path)
    assert code in (1, 2)
    assert err.count("\n") == 1


def test_report_renders_again(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    code, out, _ = call(capsys, "report", run)
    assert (code, out) == (0, f"{run / 'report.html'}\n")
    assert (run / "report.html").read_bytes() == before


def test_doctor_tells_of_the_machine_and_the_spec(capsys: pytest.CaptureFixture[str], spec: Path) -> None:
    code, out, _ = call(capsys, "doctor", spec)
    lines = out.splitlines()
    assert all(line.startswith(("ok  ", "!!  ")) for line in lines)
    assert f"ok  store: {spec.parent} can be written, read and deleted" in lines
    assert code == (1 if any(line.startswith("!!") for line in lines) else 0)
    assert not (spec.parent / "doctor-check").exists()


def test_doctor_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: 2**20)
    lines, healthy = doctor.examine(None)
    assert not healthy
    assert "!!  memory: 0.0 GiB available; give the container more, or use a smaller data set" in lines


def test_oci_without_credentials_is_told_plainly(
    capsys: pytest.CaptureFixture[str], spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("OCI_CLI_", "OCI_CONFIG", "JOB_OCI_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JOB_WORK_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OCI_METADATA_BASE_URL", "http://127.0.0.1:9/opc/v2")
    code, _, err = call(capsys, "run", spec, "--set", "store.uri=oci://bucket@namespace/runs")
    assert code != 0
    assert "none were found: no principal, and no ~/.oci/config; on a workstation: oci setup config" in err
    assert err.count("\n") == 1

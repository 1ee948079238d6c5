"""verify-resume: says yes where it is so, and finds the smallest thing that is not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from job import verification
from job.runfolder import RunFolder, append_line
from job.spec.load import parse
from job.training import checkpoint
from job.training.checkpoint import Place

SPEC = """
dataset: {name: digits, validation: 0.2}
loader: {batch_size: 16}
model: {name: resnet9, width: 2}
schedule: {name: onecycle, warmup_epochs: 2}
train: {epochs: 9, device: cpu}
"""


def made(root: Path, weight: float = 1.0, loss: float = 2.0, seen: str = "aa") -> Path:
    folder = RunFolder(root)
    folder.make()
    state = {"module": {"w": torch.tensor([weight, torch.nan])}, "seconds": root.stat().st_mtime, "seen": seen}
    checkpoint.write(folder, {**state, "identity": str(root), "list": [1, None]}, Place(1, 0, 1), 3)
    append_line(folder.metrics, {"kind": "loss", "epoch": 1, "step": 1, "loss": loss})
    return root


def test_equal_is_equal_whatever_the_clock_says(tmp_path: Path) -> None:
    assert verification.differences(made(tmp_path / "a"), made(tmp_path / "b")) == []


def test_one_bit_is_found_and_named(tmp_path: Path) -> None:
    near = float(torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)))
    a = made(tmp_path / "a")
    assert verification.differences(a, made(tmp_path / "b", weight=near)) == ["module.w"]
    assert verification.differences(a, made(tmp_path / "c", loss=2.5)) == ["loss of epoch 1, step 1"]
    assert verification.differences(a, made(tmp_path / "d", seen="ab")) == ["seen"]


def test_it_is_made_short_without_changing_what_it_is() -> None:
    loaded = parse(SPEC, "spec.yaml")
    short = verification.shortened(loaded)
    assert short == ["train.epochs=3", "dataset.subset=310"]
    spec = parse(SPEC, "spec.yaml", short).spec
    assert spec.schedule.warmup_epochs < spec.train.epochs


def test_what_is_short_stays_as_it_is() -> None:
    assert verification.shortened(parse(SPEC, "spec.yaml", ["train.epochs=3", "dataset.subset=200"])) == []


@pytest.mark.slow
def test_the_verb_says_so_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    command = [sys.executable, "-m", "job", "verify-resume", str(path), "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("Equal, bit for bit: stopped after step ")


@pytest.mark.slow
def test_a_run_that_cannot_be_is_told(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    command = [sys.executable, "-m", "job", "verify-resume", str(path), "--set", "train.precision=fp16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "run through: ended with 1 instead of 0: train.precision: fp16 needs a GPU" in done.stderr

"""The last words of a run that was killed: only where it had none, and where nobody works on it."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from job import epitaph
from job.results.schema import read
from job.runfolder import RunFolder, append_line, write_status, write_text
from tests.storage.watched import contents


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """As a kill in the second epoch leaves it."""
    made = RunFolder(tmp_path / "run")
    made.make()
    write_text(made.spec, "name: flowers\ndataset: {name: digits}\nmodel: {name: tutorial_net}\n")
    write_status(made, status="running", phase="train", epoch=2)
    append_line(made.metrics, {"kind": "loss", "epoch": 1, "step": 10, "loss": 2.0})
    epoch = {"epoch": 1, "train_loss": 1.5, "lr": 0.1, "seconds": 1.0, "images_per_second": 9.0, "evaluated_on": None}
    append_line(made.metrics, {"kind": "epoch", **epoch, "loss": None, "accuracy": None, "split_seconds": {}})
    with made.metrics.open("a") as file:
        file.write('{"kind": "lo')
    return made


def test_a_killed_run_gets_a_report_of_what_there_is(folder: RunFolder) -> None:
    epitaph.write(folder)
    report = read(folder.root / "report.json")
    assert (report.run_id, report.name, report.status) == ("run", "flowers", "interrupted")
    assert report.reason == "killed in phase train; run the same id again to go on"
    assert [(one.epoch, one.train_loss) for one in report.history] == [(1, 1.5)]
    assert [one.loss for one in report.running_loss] == [2.0]
    assert "killed in phase train" in folder.report("html").read_text()
    assert '"epoch": 2' in folder.status.read_text()
    before = contents(folder.root)
    epitaph.write(folder)
    assert contents(folder.root) == before, "said once"


@pytest.mark.parametrize("status", ["complete", "failed", "interrupted"])
def test_a_run_that_ended_by_itself_has_spoken(folder: RunFolder, status: str) -> None:
    write_status(folder, status=status)
    before = contents(folder.root)
    epitaph.write(folder)
    assert contents(folder.root) == before


def test_where_it_was_begun_again_nothing_is_said(folder: RunFolder) -> None:
    before = contents(folder.root)
    with (folder.root / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        subprocess.run([sys.executable, "-m", "job.epitaph", str(folder.root)], check=True)
        assert contents(folder.root) == before
    subprocess.run([sys.executable, "-m", "job.epitaph", str(folder.root)], check=True)
    assert folder.report("json").exists()

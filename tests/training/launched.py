"""A whole run in processes of its own."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def start(folder: Path, spec: str, *changes: str, more: Sequence[str] = ()) -> "subprocess.Popen[str]":
    """`job run` of the spec's text as run `run` in this folder; the changes are for --set."""
    (folder / "spec.yaml").write_text(spec)
    command = [sys.executable, "-m", "job", "run", str(folder / "spec.yaml"), "--run-id", "run"]
    sets = [word for change in (f"store.uri={folder}", *changes) for word in ("--set", change)]
    return subprocess.Popen([*command, *sets, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def interrupt(process: "subprocess.Popen[str]", patience: float) -> str:
    """SIGTERM in the second epoch; standard error of the run, which has left with 75 within so many seconds."""
    assert process.stdout is not None
    assert any(line.startswith("[2,") for line in process.stdout)
    process.terminate()
    _, errors = process.communicate(timeout=patience)
    assert process.returncode == 75, errors
    return errors

"""Processes that a test starts: a whole run, or ranks that do a piece of work together."""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from job.training.distributed import join

Found = dict[str, Any]
SERVER = multiprocessing.get_context("forkserver")  # it has torch loaded, which takes each process seconds
SERVER.set_forkserver_preload(["torch", "torch.distributed.fsdp", "job.training.parts", "job.training.session"])


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


def together(folder: Path, count: int, work: Callable[..., Found], *arguments: Any) -> list[Found]:
    """What `work(ranks, *arguments)` found in each of `count` processes over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    given = [(folder, {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}, work, arguments) for rank in range(count)]
    processes = [SERVER.Process(target=_rank, args=one) for one in given]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * count
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _rank(folder: Path, environ: dict[str, str], work: Callable[..., Found], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environ)
    torch.set_num_threads(1)
    with join() as ranks:
        torch.save(work(ranks, *arguments), folder / f"{ranks.rank}.pt")

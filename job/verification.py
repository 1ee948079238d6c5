"""verify-resume: does this spec, on this machine, go on after an interruption as if nothing had been?

Three processes, each `python -m job run`: one that nothing disturbs, one that stops after a step drawn at random,
and one that goes on from there. Then every value of the last checkpoint (weights, optimizer, average, generators,
best weights, the chain over all sample indices) and every loss are compared, bit for bit.
"""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from job.data import dataset
from job.errors import Interrupted, JobError
from job.events import Event, Note
from job.spec.load import Loaded, dump, parse
from job.training import checkpoint

STEPS = 15.5  # an epoch, at most: the last batch is a partial one
EPOCHS = 2
SHOWN = 3  # differences in the message


def verify(loaded: Loaded, whole: bool, seed: int | None) -> Iterator[Event]:
    """Ends with a Note that both runs are equal; JobError says what differs."""
    overrides = [] if whole else shortened(loaded)
    yield Note(f"Verifying with {', '.join(overrides) if overrides else 'the spec as it is'}, deterministic")
    with tempfile.TemporaryDirectory(prefix="verify-resume-") as folder:
        spec = Path(folder) / "spec.yaml"
        always = ["train.deterministic=true", "train.log_every=1", f"store.uri={folder}", "checkpoint.resume=auto"]
        free = ["resources.preemptible=false", "resources.max_duration=null", "resources.max_cost=null"]
        spec.write_text(dump(parse(dump(loaded.spec), loaded.path, [*overrides, *always, *free]).spec), "utf-8")
        _run(spec, "through")
        losses = _losses(Path(folder) / "through")
        steps = len(losses)
        step = random.Random(seed).randint(1, steps - 1)  # noqa: S311 - no secret
        yield Note(f"{steps} steps ran through; a second run stops after step {step}, a third goes on from there")
        _run(spec, "cut", "--stop-after", str(step), ends=Interrupted.exit_code)
        _run(spec, "cut")
        found = differences(Path(folder) / "through", Path(folder) / "cut")
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        what = f"stopped after step {step} of {steps}, these differ: {', '.join(found[:SHOWN])}{more}"
        raise JobError(loaded.path, what, "do not rely on resuming it; on a GPU, look for operations that vary")
    yield Note(
        f"Equal, bit for bit: stopped after step {step} of {steps} and resumed in a new process, "
        f"weights, optimizer, generators, {steps} losses and the samples' order are those of the run that went through"
    )


def shortened(loaded: Loaded) -> list[str]:
    """Overrides that keep the cost down and the training what it is: fewer epochs and images."""
    spec = loaded.spec
    epochs = min(spec.train.epochs, max(EPOCHS, int(spec.schedule.warmup_epochs) + 1))
    wanted = int(STEPS * spec.loader.batch_size)
    splits = dataset.load(spec.dataset)
    images = len(splits.train.labels) + (0 if splits.validation is None else len(splits.validation.labels))
    wanted = max(int(wanted / (1 - spec.dataset.validation)), 10 * len(splits.classes))
    changes = [f"train.epochs={epochs}"] if epochs < spec.train.epochs else []
    return [*changes, f"dataset.subset={wanted}"] if wanted < images else changes


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same in two runs' last checkpoints and losses; clocks do not count."""
    found = _different(_last(one), _last(other), "")
    pairs = zip(_losses(one), _losses(other), strict=False)
    found += [f"loss of epoch {a['epoch']}, step {a['step']}" for a, b in pairs if a != b]
    if len(_losses(one)) != len(_losses(other)):
        found.append("the number of losses")
    return found


def _run(spec: Path, run_id: str, *more: str, ends: int = 0) -> None:
    command = [sys.executable, "-m", "job", "run", str(spec), "--run-id", run_id, "--log-format", "plain", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != ends:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        why = said[-1] if said else "it said nothing"
        raise JobError(f"run {run_id}", f"ended with {done.returncode} instead of {ends}: {why}", "run the spec itself")


def _last(folder: Path) -> dict[str, Any]:
    newest = json.loads((folder / "checkpoints" / checkpoint.POINTER).read_text("utf-8"))["files"][0]["file"]
    state = checkpoint.read(folder / "checkpoints" / newest)
    del state["identity"]
    return state


def _losses(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line for line in lines if line["kind"] == "loss"]


def _different(one: Any, other: Any, where: str) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        names = [name for name in one if "second" not in str(name)]
        return [found for name in names for found in _different(one[name], other[name], f"{where}.{name}".strip("."))]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for place, pair in pairs for found in _different(*pair, f"{where}[{place}]")]
    return [] if checkpoint.same(one, other) else [where]

"""Going on with a run: what in its spec may have changed since it began, and the checkpoint it goes on from."""

import json
from collections.abc import Iterator

from job.errors import UsageError
from job.events import Event, Note
from job.runfolder import RunFolder, read_lines, write_text
from job.spec.load import Loaded, difference, dump, parse, spec_hash
from job.spec.schema import Spec
from job.training import checkpoint
from job.training.session import Session

# Keys whose change leaves the remaining steps what they would have been.
HARMLESS = (
    "name",
    "dataset.root",
    "dataset.mirror",
    "dataset.sha256",
    "dataset.uri",
    "dataset.cache",
    "loader.num_workers",
    "loader.pin_memory",
    "loader.prefetch_factor",
    "loader.start_method",
    "loader.resident",
    "loader.tune",
    "checkpoint.",
    "store.",
    "resources.",
    "train.log_every",
)
ROUNDING = (
    "train.device",
    "train.threads",
    "train.compile",
    "train.cuda_graphs",
    "train.channels_last",
    "train.deterministic",
)
BY_LENGTH = ("cosine", "onecycle")  # schedules that know where they end


def begin(folder: RunFolder, loaded: Loaded) -> list[str]:
    """Writes spec.yaml, or holds the one that is there against the spec: what has changed, in words.

    UsageError names every key that differs when one of them would make it another training.
    """
    if not folder.spec.exists():
        _write_spec(folder, loaded.spec)
        return []
    before = parse(folder.spec.read_text(encoding="utf-8"), str(folder.spec)).spec
    changes = difference(before, loaded.spec)
    refused = [row for row in changes if not row[0].startswith((*HARMLESS, *ROUNDING)) and row[0] != "train.epochs"]
    if refused:
        may = [row[0] for row in changes if row not in refused]
        cure = "put these keys back, or use another --run-id" + (f" ({', '.join(may)} may change)" if may else "")
        raise UsageError(str(folder.root), f"this run was begun with another spec: {_shown(refused)}", cure)
    if changes:
        _write_spec(folder, loaded.spec)
    return [_sentence(row, loaded.spec) for row in changes]


def restore(training: Session, folder: RunFolder) -> Iterator[Event]:
    """From the newest checkpoint that is whole, if there is one."""
    restored = checkpoint.newest(folder, training.mesh)
    if restored is None:
        return
    for line in restored.refused:
        yield Note(f"Checkpoint passed over: {line}", "warning")
    for line in training.restore(restored.state, restored.path):
        yield Note(line, "warning")
    kept = training.recorded(read_lines(folder.metrics))
    write_text(folder.metrics, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
    yield Note(f"Resumed from {restored.path.name}: epoch {training.state.epoch + 1}, step {training.state.step}")


def has_checkpoint(folder: RunFolder) -> bool:
    return (folder.checkpoints / checkpoint.POINTER).exists()


def _write_spec(folder: RunFolder, spec: Spec) -> None:
    write_text(folder.spec, f"# Every key as it ran; spec hash {spec_hash(spec)}\n{dump(spec)}")


def _sentence(change: tuple[str, object, object], spec: Spec) -> str:
    key, shown = change[0], _shown([change])
    if key == "train.epochs" and spec.schedule.name in BY_LENGTH:
        return f"{shown} since the run began: {spec.schedule.name} follows the new length from here on"
    if key.startswith(ROUNDING):
        return f"{shown} since the run began: rounding differs from here on"
    return f"{shown} since the run began"


def _shown(changes: list[tuple[str, object, object]]) -> str:
    return ", ".join(f"{key} {old} → {new}" for key, old, new in changes)

"""FSDP and checkpoints in parts: two processes over gloo against DDP, and against one process."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from job.data.dataset import Split
from job.data.loader import Pixels, Settings, TrainingBatches
from job.device import Device
from job.errors import JobError, UsageError
from job.inference import evaluate
from job.runfolder import RunFolder, files_of, read_pointer
from job.spec.schema import Augment, Spec
from job.training import checkpoint
from job.training.checkpoint import Place
from job.training.distributed import ALONE, Ranks
from job.training.evaluate import predict
from job.training.trainer import State, StepDone, train
from tests.training.launched import interrupt, start, together

CPU = Device("cpu", "test", "fp32", compile=False, channels_last=False, threads=1)
IMAGES, BATCH, EPOCHS = 91, 8, 3
RUN = """
name: parts
dataset: {name: digits, subset: 300, validation: 0.2}
loader: {batch_size: 32}
model: {name: resnet9, width: 2}
optimizer: {name: sgd, lr: 0.05}
train: {epochs: 3, log_every: 1, device: cpu, ema: 0.9}
resources: {processes: 2, parallel: fsdp}
"""


def work(ranks: Ranks, keys: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """A training and an evaluation, from the newest checkpoint in the folder if there is one, and one at its end."""
    keys = dict(keys)
    device = Device(**{**asdict(CPU), **keys.pop("device", {})})
    parallel, optimizer = keys.pop("parallel", "ddp"), keys.pop("optimizer", {"lr": 0.1})
    generator = np.random.default_rng(1)
    split = Split(generator.integers(0, 256, (IMAGES, 6, 6, 3), dtype=np.uint8), generator.integers(0, 3, IMAGES))
    pixels = Pixels.on(device, (0.5,) * 3, (0.5,) * 3)
    given = {"dataset": {"name": "digits"}, "model": {"name": "resnet9"}, "optimizer": optimizer}
    spec = Spec.model_validate({**given, "train": {"epochs": EPOCHS, "ema": 0.9, **keys}})
    settings = Settings(BATCH, resident=True)
    batches = TrainingBatches(
        split, settings, device, pixels, Augment(flip=True, crop_padding=1), 0, ranks.rank, ranks.count
    )
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9), nn.ReLU(), nn.Flatten(), nn.Linear(144, 500), nn.Linear(500, 3)]
    module = device.place(nn.Sequential(*layers))
    mesh, channel = None, None
    if parallel == "fsdp" and ranks.count > 1:
        from job.training import parts, sharding

        mesh, channel = sharding.shard(module, device, ranks.count), parts.Channel.open(ranks)
    state = State(module, spec, device)
    if folder is not None and (found := checkpoint.newest(RunFolder(folder), mesh)) is not None:
        state.restore(found.state)
    events = list(train(state, batches, spec, device, ranks))
    probabilities = predict(state.module, split, device, pixels, None, ranks).probabilities
    if folder is not None and events and (ranks.leads or channel is not None):
        place = Place(state.epoch, 0, state.epoch)
        if channel is None:
            checkpoint.write(RunFolder(folder), state.to_dict(), place, 3)
        else:
            own = RunFolder(folder if ranks.leads else folder.parent / f"other-{ranks.rank}")
            own.make()
            parts.write(own, state.to_dict(), place, 3, channel)
    saved = state.to_dict()
    return {
        "losses": [float(event.loss) for event in events if isinstance(event, StepDone)],
        "weights": whole(saved["module"]),
        "average": {} if saved["ema"] is None else whole(saved["ema"]["average"]),
        "momentum": {str(number): whole(one) for number, one in saved["optimizer"]["state"].items()},
        "probabilities": torch.from_numpy(probabilities),
        "seen": saved["seen"],
    }


def whole(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in tensors.items()
        if isinstance(value, torch.Tensor)
    }


def in_processes(
    tmp_path: Path, keys: dict[str, Any], folder: Path | None = None, count: int = 2
) -> list[dict[str, Any]]:
    return together(tmp_path, count, work, keys, folder)


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    """To the last bit."""
    assert one["seen"] == other["seen"]
    for what in ("weights", "average"):
        assert one[what].keys() == other[what].keys()
        for name, tensor in one[what].items():
            assert torch.equal(tensor, other[what][name]), name
    for number, state in one["momentum"].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, other["momentum"][number][name]), (number, name)


KINDS: dict[str, dict[str, Any]] = {
    "sgd": {"accumulate": 2, "clip_grad_norm": 0.5},
    "adamw": {"optimizer": {"name": "adamw", "lr": 0.01}},
    "bf16": {"device": {"precision": "bf16", "channels_last": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_in_parts_it_learns_what_ddp_learns(tmp_path: Path, kind: str) -> None:
    keys = KINDS[kind]
    copies, parts = in_processes(tmp_path, keys)[0], in_processes(tmp_path, {**keys, "parallel": "fsdp"})
    loose = 1e-2 if kind == "bf16" else 1e-4
    assert len(copies["losses"]) == EPOCHS * 12
    assert np.abs(np.subtract(parts[0]["losses"], copies["losses"])).max() < loose
    for what in ("weights", "average"):
        for name, tensor in copies[what].items():
            if kind == "sgd":
                torch.testing.assert_close(parts[0][what][name], tensor, rtol=1e-3, atol=1e-4)
            assert torch.equal(parts[0][what][name], parts[1][what][name]) or "running" in name
    assert torch.equal(parts[0]["probabilities"], parts[1]["probabilities"])
    torch.testing.assert_close(parts[0]["probabilities"], copies["probabilities"], rtol=0.2, atol=3 * loose)


@pytest.mark.slow
def test_saved_at_two_and_loaded_at_one_and_back_is_exact(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.make()
    fsdp = {"parallel": "fsdp"}
    saved = in_processes(tmp_path, fsdp, folder.root)[0]
    [entry] = read_pointer(folder.checkpoints / checkpoint.POINTER)
    names = [one["file"] for one in files_of(entry)]
    assert names == ["step-00000003.part-0.pt", "step-00000003.part-1.pt", "step-00000003.pt"]
    alone = work(ALONE, {}, folder.root)
    assert alone["losses"] == []
    assert_equal(alone, saved)
    assert_equal(in_processes(tmp_path, fsdp, folder.root)[0], saved)
    assert_equal(in_processes(tmp_path, fsdp, folder.root, count=3)[0], saved)
    assert_equal(in_processes(tmp_path, {}, folder.root)[0], saved)
    one = RunFolder(tmp_path / "one")
    one.make()
    single = work(ALONE, {}, one.root)
    assert_equal(in_processes(tmp_path, fsdp, one.root)[0], single)


@pytest.mark.slow
def test_a_damaged_part_is_refused_and_the_checkpoint_before_taken(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.make()
    in_processes(tmp_path, {"parallel": "fsdp", "epochs": 1}, folder.root)
    in_processes(tmp_path, {"parallel": "fsdp", "epochs": 2}, folder.root)
    part = folder.checkpoints / "step-00000002.part-1.pt"
    whole = part.read_bytes()
    damages = [whole[:-1], whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]]
    for damage in damages:
        part.write_bytes(damage)
        found = checkpoint.newest(folder)
        assert found is not None
        assert found.path.name == "step-00000001.pt"
        assert found.refused == (f"{part}: its SHA-256 is not the one that was written",)
        with pytest.raises(JobError, match=r"part-1\.pt: its SHA-256 is not the one that was written"):
            checkpoint.read(folder.checkpoints / "step-00000002.pt")
    part.unlink()
    assert checkpoint.newest(folder) is not None
    with pytest.raises(JobError, match=r"part-1\.pt: it is gone"):
        checkpoint.read(folder.checkpoints / "step-00000002.pt")


@pytest.mark.slow
def test_a_run_in_parts_is_interrupted_goes_on_and_is_read_by_one_process(tmp_path: Path) -> None:
    with start(tmp_path, RUN, "train.epochs=100000") as process:
        interrupt(process, 240)
    entries = read_pointer(tmp_path / "run/checkpoints/latest.json")
    assert [len(files_of(entry)) for entry in entries] == [3] * len(entries)
    epochs = entries[0]["epoch"] + 2
    with start(tmp_path, RUN, f"train.epochs={epochs}") as process:
        said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "Resumed from step-" in said
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["accuracy"] == pytest.approx(evaluate(tmp_path / "run").accuracy)
    newest = read_pointer(tmp_path / "run/checkpoints/latest.json")[0]["file"]
    assert evaluate(tmp_path / "run/checkpoints" / newest).count == evaluate(tmp_path / "run").count


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"optimizer": {"name": "muon"}}, "muon turns whole filters"),
        ({"train": {"precision": "fp16"}}, "the loss scaling of fp16 is not exact"),
        ({"train": {"sync_batch_norm": True}}, "replaces layers that fsdp holds"),
    ],
)
def test_what_cannot_be_in_parts_is_refused(keys: dict[str, Any], why: str) -> None:
    given = {"dataset": {"name": "digits"}, "model": {"name": "resnet9"}, "resources": {"parallel": "fsdp"}}
    with pytest.raises(ValueError, match=why):
        Spec.model_validate({**given, **keys})


def test_a_gpu_that_chose_fp16_is_refused() -> None:
    from job.training import sharding

    with pytest.raises(UsageError, match="the loss scaling of fp16 is not exact"):
        sharding.shard(nn.Linear(2, 2), Device(**{**asdict(CPU), "precision": "fp16"}), 2)

"""Two and three processes over gloo against one: the same losses, the same weights, every image counted once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from job.data.dataset import Split
from job.data.loader import EVALUATION_BATCH, Pixels, Settings, TrainingBatches
from job.device import Device
from job.errors import Interrupted, UsageError
from job.interrupt import StopFlag
from job.limits import Limits
from job.spec.schema import Augment, Spec
from job.training.distributed import ALONE, Ranks, join
from job.training.evaluate import predict
from job.training.trainer import State, StepDone, train
from tests.training.launched import interrupt, start, together

CPU = Device("cpu", "test", "fp32", compile=False, channels_last=False, threads=1)
ROOT = str(Path(__file__).resolve().parents[2])
IMAGES, BATCH, EPOCHS = 91, 8, 5  # the last batch has three images: shares of one and two
RUN = """
name: two
dataset: {name: digits, subset: 300, validation: 0.2}
loader: {batch_size: 32}
model: {name: resnet9, width: 2}
optimizer: {name: sgd, lr: 0.05}
train: {epochs: 3, log_every: 1, device: cpu}
resources: {processes: 2}
"""


def work(ranks: Ranks, keys: dict[str, Any], saved: str | None = None) -> dict[str, Any]:
    """A training and an evaluation, as one of several processes or alone."""
    generator = np.random.default_rng(1)
    split = Split(generator.integers(0, 256, (IMAGES, 6, 6, 3), dtype=np.uint8), generator.integers(0, 3, IMAGES))
    pixels = Pixels.on(CPU, (0.5,) * 3, (0.5,) * 3)
    given = {"dataset": {"name": "digits"}, "model": {"name": "resnet9"}, "optimizer": {"lr": 0.1}}
    spec = Spec.model_validate({**given, "train": {"epochs": EPOCHS, "ema": 0.9, **keys}})
    settings = Settings(BATCH, resident=True)
    batches = TrainingBatches(
        split, settings, CPU, pixels, Augment(flip=True, crop_padding=1), 0, ranks.rank, ranks.count
    )
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    state = State(module, spec, CPU)
    if saved is not None:
        state.restore(torch.load(saved, weights_only=True))
    events = list(train(state, batches, spec, CPU, ranks))
    found = predict(state.module, split, CPU, pixels, None, ranks)
    return {
        "losses": [float(event.loss) for event in events if isinstance(event, StepDone)],
        "images": [event.images for event in events],
        "weights": state.module.state_dict(),
        "state": state.to_dict(),
        "probabilities": torch.from_numpy(found.probabilities),
    }


@pytest.mark.parametrize("keys", [{}, {"accumulate": 2, "clip_grad_norm": 0.5}], ids=["plain", "accumulated"])
def test_two_are_one(tmp_path: Path, keys: dict[str, Any]) -> None:
    alone = work(ALONE, keys)
    first, second = together(tmp_path, 2, work, keys)
    assert len(alone["losses"]) == 60
    assert first["images"] == alone["images"]
    assert np.abs(np.subtract(first["losses"], alone["losses"])).max() < 1e-5
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-4, atol=1e-5)
        assert torch.equal(first["weights"][name], second["weights"][name]), "the ranks never drift apart"
    assert first["losses"] == second["losses"]


def test_three_look_at_every_image_once_and_in_order(tmp_path: Path) -> None:
    found = together(tmp_path, 3, work, {})
    alone = work(ALONE, {})
    for one in found:
        assert one["probabilities"].shape == (IMAGES, 3)
        torch.testing.assert_close(one["probabilities"], alone["probabilities"], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_of_two_is_one_of_one_and_back(tmp_path: Path) -> None:
    state = together(tmp_path, 2, work, {"epochs": 1})[0]["state"]
    saved = tmp_path / "saved.pt"
    torch.save(state, saved)
    alone = work(ALONE, {"epochs": 1}, str(saved))
    assert alone["losses"] == []
    assert all(torch.equal(alone["weights"][name], weight) for name, weight in state["module"].items())
    torch.save(alone["state"], saved)
    (tmp_path / "back").mkdir()
    back = together(tmp_path / "back", 2, work, {"epochs": 1}, str(saved))
    for one in back:
        assert all(torch.equal(one["weights"][name], weight) for name, weight in state["module"].items())
        assert one["state"]["seen"] == state["seen"]


def test_a_stop_is_heard_by_all_at_the_same_batch_of_an_evaluation(tmp_path: Path) -> None:
    """Rank 0 is asked while it looks at its second batch; one rank has three batches, the other two."""
    for polls in (2, 3):
        first, second = together(tmp_path, 2, evaluate_and_stop, polls)
        assert first["said"] == "stopped, received SIGTERM"
        assert second["said"] == "stopped, as rank 0 is"
        assert (first["batches"], second["batches"]) == (polls - 1, min(polls - 1, 2))


def evaluate_and_stop(ranks: Ranks, polls: int) -> dict[str, Any]:
    stop, seen = StopFlag(), []
    limits = Limits("run", stop, decide=ranks.decide)

    def poll() -> None:
        nonlocal polls
        polls -= 1
        if polls == 0 and ranks.leads:
            stop.reason = "received SIGTERM"
        limits.poll()

    class Network(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            return images.new_zeros(len(images), 3)

    split = Split(np.zeros((4 * EVALUATION_BATCH + 1, 1, 1, 1), np.uint8), np.zeros(4 * EVALUATION_BATCH + 1, np.int64))
    try:
        predict(Network(), split, CPU, Pixels.on(CPU, (0.5,), (0.5,)), poll, ranks)
    except Interrupted as leave:
        return {"said": leave.what, "batches": len(seen)}
    raise AssertionError


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("images", [0, 1, 2, 10, 11])
def test_shares_are_all_images_once(count: int, images: int) -> None:
    shares = [list(range(images)[Ranks(rank, count).share(images)]) for rank in range(count)]
    assert [image for share in shares for image in share] == list(range(images))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_that_leaves_a_rank_without_an_image_is_refused() -> None:
    Ranks(0, 2).refuse_empty_shares(64, 32)
    Ranks(0, 2).refuse_empty_shares(66, 32)
    with pytest.raises(UsageError, match="a batch of 1 cannot be shared by 2 processes"):
        Ranks(0, 2).refuse_empty_shares(65, 32)


def test_statistics_of_all_need_gpus() -> None:
    with pytest.raises(UsageError, match="torch has it for GPUs only"):
        Ranks(0, 2).share_statistics(nn.BatchNorm2d(3), "cpu")


def descendants(parent: int) -> list[int]:
    children = [int(name) for name in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return [*children, *(found for child in children for found in descendants(child))]


def rank(process: "subprocess.Popen[str]", number: int) -> int:
    for child in descendants(process.pid):
        if f"\0RANK={number}\0" in Path(f"/proc/{child}/environ").read_text():
            return child
    raise AssertionError(number)


@pytest.mark.slow
def test_kill_9_of_one_of_two_ends_in_one_result(tmp_path: Path) -> None:
    with start(tmp_path, RUN, "train.epochs=12") as process:
        assert process.stdout is not None
        assert any(line.startswith("Saved") for line in process.stdout)
        os.kill(rank(process, 1), signal.SIGKILL)
        said, errors = process.communicate(timeout=110)
    assert process.returncode == 0, errors
    assert "Resumed from step-" in said
    assert said.count("Done: run") == 1
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "complete"
    history = json.loads((tmp_path / "run/report.json").read_text())["history"]
    assert [entry["epoch"] for entry in history] == list(range(1, 13))


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 1])
def test_ranks_that_start_again_meet_whoever_comes_first(late: int) -> None:
    """torchrun's store still holds where the ranks before them listened."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "--max-restarts", "1", __file__, str(late)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("met") == 4


def meet_and_die(late: int) -> None:
    rank, again = int(os.environ["RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    if again and rank == late:
        time.sleep(1)  # the other one is there
    with join():
        sys.stdout.write("met\n")
        sys.stdout.flush()
        torch.distributed.barrier()
        if not again:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_nothing_stays_when_the_launcher_is_killed(tmp_path: Path) -> None:
    with start(tmp_path, RUN, "train.epochs=100000") as process:
        assert process.stdout is not None
        assert any(line.startswith("[2,") for line in process.stdout)
        family = descendants(process.pid)
        assert len(family) >= 3
        process.kill()
        process.stdout.read()  # to its end: everyone who could write is gone
    until = time.monotonic() + 30
    while any(map(runs, family)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(runs, family))


def runs(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_what_the_user_can_mend_is_told_once_and_not_tried_again(tmp_path: Path) -> None:
    with start(tmp_path, RUN, "loader.batch_size=239") as process:  # 240 images: the second batch has one
        said, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert said.count("Run run in") == 1
    assert "loader.batch_size: a batch of 1 cannot be shared by 2 processes" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_sigterm_interrupts_both_and_one_process_goes_on(tmp_path: Path) -> None:
    with start(tmp_path, RUN, "train.epochs=100000") as process:
        errors = interrupt(process, 120)
    assert "run: stopped, received SIGTERM; go on with --run-id run" in errors
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "interrupted"
    with start(tmp_path, RUN, "train.epochs=100000", "resources.processes=1", more=["--stop-after", "1"]) as process:
        said, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "Resumed from step-" in said
    assert "--stop-after is reached" in errors


if __name__ == "__main__":
    meet_and_die(int(sys.argv[1]))

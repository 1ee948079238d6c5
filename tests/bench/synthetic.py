"""(3) The job's training against pure compute: the same steps on one synthetic batch that is on the device already.

    python -m tests.bench.synthetic [--data FOLDER] [--repeat 3] [--json FILE]

cifar10.yaml's network, optimizer and batch size. The job's side is the second epoch of a real run, with cutting,
normalising, augmenting, losses, progress and status; alternately in one process, after a warm-up of both.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import common
from tests.bench.common import ROOT, Ratio, median

if TYPE_CHECKING:
    from job.planning import Ready
    from job.spec.schema import Spec

STEPS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    options = common.options(__doc__, arguments, repeat=5)
    data = common.cifar10(options.data)
    if data is None:
        return 0
    from job.device import calm_waiting

    calm_waiting()
    found: dict[str, list[float]] = {"job": [], "pure": []}
    for repetition in range(options.repeat + 1):
        with tempfile.TemporaryDirectory() as folder:
            trained, pure = both(data, Path(folder))
        print(f"job {trained:,.0f} images/s, pure compute {pure:,.0f}: {trained / pure:.3f}", flush=True)
        if repetition:  # the first is the warm-up
            found["job"].append(trained)
            found["pure"].append(pure)
    shares = [one / other for one, other in zip(found["job"], found["pure"], strict=True)]
    ratio = Ratio("job's training ÷ pure compute", median(shares), 0.97, unit="")
    return common.finish("synthetic", [ratio], found, options.json)


def both(data: Path, folder: Path) -> tuple[float, float]:
    """Images/s of a real run, and of as many of its steps on one batch, half before and half after it."""
    from job import pipeline, planning
    from job.events import EpochEnded
    from job.interrupt import StopFlag
    from job.spec.load import load

    keys = [f"store.uri={folder}", f"dataset.root={data}", "train.epochs=2", "schedule.warmup_epochs=1"]
    sample = str(ROOT / "job/spec/samples/cifar10.yaml")
    size = load(sample, keys).spec.loader.batch_size
    loaded = load(sample, [*keys, f"dataset.subset={size * STEPS}"])
    ready = planning.plan(loaded, fetch=False).ready
    assert ready is not None
    before = pure(ready, loaded.spec, STEPS // 2)
    epochs = [event for event in pipeline.job(loaded, "bench", StopFlag()) if isinstance(event, EpochEnded)]
    after = pure(ready, loaded.spec, STEPS // 2)
    return epochs[-1].images_per_second, 2 / (1 / before + 1 / after)


def pure(ready: "Ready", spec: "Spec", steps: int) -> float:
    import torch

    from job.data.loader import Batch
    from job.training.probe import trial

    network, size = ready.network, spec.loader.batch_size
    device = network.device
    torch.set_num_threads(device.threads)
    images = device.tensor(torch.randn(size, *reversed(ready.splits.train.images.shape[1:])))
    if device.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    batch = Batch(images, device.tensor(torch.randint(len(ready.splits.classes), (size,))))
    with trial(network, spec) as learn:
        for _ in range(3):
            learn(batch)
        device.wait()
        began = time.perf_counter()
        for _ in range(steps):
            learn(batch)
        device.wait()
        return size * steps / (time.perf_counter() - began)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""(2) Images/s of the tutorial's network in batches of 64: the job against Lightning's Trainer and the plain loop.

    python -m tests.bench.frameworks [--data FOLDER] [--repeat 3] [--json FILE]

The same network, images, batch size, optimizer and number format; 200 batches after as many that are not counted.
Lightning and the plain loop read through torchvision's CIFAR10, ToTensor and Normalize, and each takes the best of 0,
1 and 2 worker processes, found first. Lightning's logger, progress bar and checkpoints are off. Every measurement is
a process of its own.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench import common
from tests.bench.common import Ratio, median

BATCH, STEPS = 64, 200
WORKERS = (0, 1, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    options = common.options(__doc__, arguments)
    data = common.cifar10(options.data)
    if data is None:
        return 0
    best = {}
    for side in ("lightning", "plain"):
        rates = {workers: measured(side, data, workers) for workers in WORKERS}
        best[side] = max(rates, key=lambda workers: rates[workers])
        print(f"{side}, images/s by workers: " + ", ".join(f"{n}: {rate:,.0f}" for n, rate in rates.items()))
    found: dict[str, list[float]] = {"ours": [], "lightning": [], "plain": []}
    for _ in range(options.repeat):
        for side, seen in found.items():
            seen.append(measured(side, data, best.get(side, 0)))
            print(f"{side:10} {seen[-1]:10,.0f} images/s", flush=True)
    ratios = [
        Ratio("ours ÷ Lightning at its best setting", median(found["ours"]) / median(found["lightning"]), 2),
        Ratio("ours ÷ plain loop at its best setting", median(found["ours"]) / median(found["plain"]), 2),
    ]
    return common.finish("frameworks", ratios, {"images_per_second": found, "workers": best}, options.json)


def measured(side: str, data: Path, workers: int) -> float:
    done = common.python(["-m", "tests.bench.frameworks", "--side", side, str(data), str(workers)])
    return float(json.loads(done.output.splitlines()[-1])["images_per_second"])


def one_side(side: str, data: str, workers: int) -> float:
    return {"ours": ours, "lightning": with_lightning, "plain": plain}[side](data, workers)


def ours(data: str, _: int) -> float:
    """The second epoch of a real run."""
    from job.device import calm_waiting

    calm_waiting()
    from job import pipeline
    from job.events import EpochEnded
    from job.interrupt import StopFlag
    from job.spec.load import parse

    spec = f"""
        dataset: {{name: cifar10, root: {json.dumps(data)}, subset: {BATCH * STEPS}, normalize: {{}}}}
        loader: {{batch_size: {BATCH}}}
        model: {{name: tutorial_net}}
        optimizer: {{lr: 0.001, momentum: 0.9}}
        train: {{epochs: 2, precision: fp32}}
    """
    with tempfile.TemporaryDirectory() as folder:
        loaded = parse(spec, "spec.yaml", [f"store.uri={folder}"])
        events = list(pipeline.job(loaded, "bench", StopFlag()))
    return [event.images_per_second for event in events if isinstance(event, EpochEnded)][-1]


def plain(data: str, workers: int) -> float:
    import torch
    from torch.nn import functional as F

    from tests.bench.lab import Net

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net, batches = Net().to(device), loader(data, workers)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)

    def epoch() -> None:
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(net(images.to(device)), labels.to(device)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    epoch()
    began = time.perf_counter()
    epoch()
    return BATCH * STEPS / (time.perf_counter() - began)


def with_lightning(data: str, workers: int) -> float:
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import lightning
    import torch
    from torch.nn import functional as F

    from tests.bench.lab import Net

    class Module(lightning.LightningModule):  # type: ignore[misc]  # lightning is no part of the locked environment
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.turns: list[float] = []

        def training_step(self, batch: Any, _: int) -> Any:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.001, momentum=0.9)

        def on_train_epoch_start(self) -> None:
            self.turns.append(time.perf_counter())

        def on_train_epoch_end(self) -> None:
            self.turns.append(time.perf_counter())

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(data, workers))
    return BATCH * STEPS / (module.turns[3] - module.turns[2])


def loader(data: str, workers: int) -> Any:
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import CIFAR10
    from torchvision.transforms import Compose, Normalize, ToTensor

    images = CIFAR10(data, transform=Compose([ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)]))
    part = Subset(images, range(BATCH * STEPS))
    return DataLoader(part, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["--side"]:
        print(json.dumps({"images_per_second": one_side(words[1], words[2], int(words[3]))}))
        raise SystemExit(0)
    raise SystemExit(main())

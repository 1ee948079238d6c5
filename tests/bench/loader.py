"""The tuner's choice of loader settings against the best of all settings, each measured at length.

    python -m tests.bench.loader [--data FOLDER] [--seconds 1.5] [--repeat 3] [--json FILE]

Three kinds of data: CIFAR-10 in memory, the JPEG folder of folder.py resized to 64 from its kept copy, and the same
decoded at each use, as a folder too large for memory and disk is. Speed is images/s of training small_cnn.
A machine's speed wanders, and the fastest of many measurements is partly luck; so the sweep goes up and down its list
and only finds the best, which then runs against the choice in pairs. Bars: choice ÷ best ≥ 0.95, the median of pairs;
tuning within its budget.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from job.data import image_folder, tuning
from job.data.candidates import PREFETCHES, worker_counts
from job.data.dataset import load
from job.data.loader import Batch, Settings, TrainingBatches
from job.spec.load import parse
from job.spec.schema import Spec
from job.training import probe
from job.training.setup import prepare
from tests.bench import common
from tests.bench.common import Ratio, finish
from tests.bench.photos import folder

BAR = 0.95
PAIRS = 3  # for each repetition of the sweep
SPEC = """
name: bench
dataset: {DATASET}
model: {name: small_cnn}
loader: {batch_size: 128}
augment: {flip: true, crop_padding: 2}
train: {epochs: 1000}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--images", type=int, default=20_000, metavar="N", help="JPEGs to make and read")
    parser.add_argument("--seconds", type=float, default=1.5, metavar="S", help="for each measurement of the sweep")
    options = parser.parse_args(arguments)
    data = common.cifar10(options.data)
    if data is None:
        return 0
    photos = folder(data, options.images)
    kinds = {
        "in memory": f"{{name: cifar10, root: {data}}}",
        "kept copy": f"{{name: image_folder, root: {photos}, resize: 64}}",
        "decoded at each use": f"{{name: image_folder, root: {photos}, resize: 64, cache: false}}",
    }
    print(f"images/s of training small_cnn, medians of {options.repeat}")
    found = {kind: compare(kind, SPEC.replace("{DATASET}", dataset), options) for kind, dataset in kinds.items()}
    ratios = []
    for kind, row in found.items():
        ratios.append(Ratio(f"the tuner's choice ÷ the best of a sweep, {kind}", row["ratio"], BAR))
        ratios.append(Ratio(f"seconds of tuning ÷ its budget, {kind}", row["seconds"] / row["budget"], 1, at_most=True))
    return finish("loader", ratios, found, options.json)


def compare(kind: str, text: str, options: argparse.Namespace) -> dict[str, float]:
    """Tunes once, then measures everything, alternately; prints the table."""
    spec = parse(text, "bench").spec
    part = image_folder.MEMORY_PART
    image_folder.MEMORY_PART = 0.0 if kind == "decoded at each use" else part
    splits = load(spec.dataset)
    image_folder.MEMORY_PART = part
    network, rates = probe.measure(prepare(spec, splits), splits.train, spec)
    device, split = network.device, splits.train
    rate = rates.train
    began = time.perf_counter()
    with probe.trial(network, spec) as learn:
        chosen = tuning.choose(
            split, spec.loader, spec.augment, device, network.pixels, rate, spec.train, work=learn
        ).settings
    seconds = time.perf_counter() - began
    settings = everything(kind, spec)
    speeds: dict[Settings, list[float]] = {setting: [] for setting in settings}
    with probe.trial(network, spec) as learn:

        def speed_of(setting: Settings) -> float:
            batches = TrainingBatches(split, setting, device, network.pixels, spec.augment, 0)
            ahead = setting.num_workers * (setting.prefetch_factor or 0)
            speed = tuning.images_per_second(forever(batches), learn, device, options.seconds, ahead)
            batches.close()
            return speed

        for repetition in range(options.repeat):
            for setting in settings[:: -1 if repetition % 2 else 1]:
                speeds[setting].append(speed_of(setting))
        medians = {setting: statistics.median(values) for setting, values in speeds.items()}
        best = max(medians, key=lambda setting: medians[setting])
        pairs = [] if chosen == best else paired(chosen, best, PAIRS * options.repeat, speed_of)
    ratio = statistics.median(pairs) if pairs else 1.0
    print(f"\n{kind}: tuned in {seconds:.1f} of {spec.loader.tune_budget:g} s, the network alone {rate:,.0f} images/s")
    for setting, median in medians.items():
        mark = " chosen" * (setting == chosen) + " best" * (setting == best)
        print(f"  {setting!s:24} {median:9,.0f}{mark}")
    print(f"  chosen ÷ best {ratio:.3f}, bar {BAR}", *(f"{pair:.2f}" for pair in pairs), flush=True)
    return {"ratio": ratio, "seconds": seconds, "budget": spec.loader.tune_budget, "best": medians[best]}


def paired(chosen: Settings, best: Settings, count: int, speed_of: Callable[[Settings], float]) -> list[float]:
    """Ratios of speeds measured one after the other, in the order AB BA AB."""
    ratios = []
    for number in range(count):
        order = (best, chosen) if number % 2 else (chosen, best)
        speed = {setting: speed_of(setting) for setting in order}
        ratios.append(speed[chosen] / speed[best])
    return ratios


def everything(kind: str, spec: Spec) -> list[Settings]:
    size = spec.loader.batch_size
    resident = [] if kind == "decoded at each use" else [Settings(size, resident=True)]
    workers = [count for count in worker_counts() if count]
    grid = [Settings(size, False, count, False, factor) for count in workers for factor in PREFETCHES]
    return [*resident, Settings(size, False), *grid]


def forever(batches: TrainingBatches) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


if __name__ == "__main__":
    sys.exit(main())

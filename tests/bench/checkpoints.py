"""(6) What checkpoints cost: the same training with one after every epoch, and with one at the end.

    python -m tests.bench.checkpoints [--data FOLDER] [--repeat 3] [--json FILE]

cifar10.yaml on a tenth of the images, eight epochs, so that saving is tried often; the cost of one checkpoint is then
set against an epoch of the whole data set.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench import common
from tests.bench.common import Ratio, median

EPOCHS, PART = 8, 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    options = common.options(__doc__, arguments)
    data = common.cifar10(options.data)
    if data is None:
        return 0
    found: dict[str, list[float]] = {"every epoch": [], "at the end": []}
    epoch = []
    for _ in range(options.repeat):
        for name, every in (("every epoch", 1), ("at the end", EPOCHS)):
            with tempfile.TemporaryDirectory() as folder:
                keys = (f"checkpoint.every={every}", f"dataset.subset={PART}", f"train.epochs={EPOCHS}")
                _, report = common.job("cifar10.yaml", data, Path(folder), *keys)
            found[name].append(report["seconds"]["train"])
            epoch.append(median([row["seconds"] for row in report["history"]]) / PART)
            print(f"{name:12} {found[name][-1]:6.2f} s of training", flush=True)
    each = (median(found["every epoch"]) - median(found["at the end"])) / (EPOCHS - 1)
    ratios = [
        Ratio("seconds for each checkpoint, beyond the noise", max(each, 0.0), unit=" s"),
        Ratio("of an epoch of all images", 100 * max(each, 0.0) / median(epoch), 1, at_most=True, unit=" %"),
    ]
    return common.finish("checkpoints", ratios, {"train_seconds": found, "whole_epoch_seconds": epoch}, options.json)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Saved weights at work: `evaluate` on the test split, `predict` on images of the user's own."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from job.data import dataset
from job.data.dataset import Split
from job.data.image_folder import read_image
from job.errors import JobError, UsageError
from job.events import Result
from job.results.metrics import measure
from job.runfolder import RunFolder
from job.spec.load import parse
from job.storage import runs
from job.training.setup import Saved, restore

SHOWN = 3  # classes printed for each image


@dataclass(frozen=True)
class Found:
    """A run's folder and the file of weights meant in it."""

    folder: RunFolder
    weights: Path


def evaluate(where: str | Path) -> Result:
    """Accuracy on the test split of the data set that the run's spec names."""
    found = find(where)
    spec = parse(_text(found.folder.spec), str(found.folder.spec)).spec
    splits = dataset.load(spec.dataset)
    saved = _saved(found)
    if list(splits.classes) != list(saved.classes):
        raise JobError(
            str(found.folder.spec), "the data set's classes are not those of the weights", "point dataset.root at it"
        )
    test = measure(saved.predict(splits.test), splits.classes)
    classes = tuple((name, result.accuracy) for name, result in test.per_class.items())
    return Result(test.accuracy, test.interval, test.count, test.loss, classes, found.weights.name)


def predict(where: str | Path, images: Sequence[Path]) -> Iterator[str]:
    """A line for each image: its path, then the most probable classes. A bad image is an error that names it."""
    saved = _saved(find(where))
    channels, height, _ = saved.shape
    for path in images:
        pixels = read_image(path, size=height, channels=channels)
        probabilities = saved.predict(Split(pixels[None], dataset.no_labels(1))).probabilities[0]
        best = probabilities.argsort()[::-1][:SHOWN]
        yield f"{path}: " + ", ".join(f"{saved.classes[k]} {probabilities[k]:.1%}" for k in best)


def find(where: str | Path) -> Found:
    """A run's folder means its model/model.pt; a .pt file means itself, in the run's folder around it.

    Of a run in a store a copy is made of what is needed.
    """
    if "://" in str(where):
        run, file = runs.split(str(where))
        file = file or "model/model.pt"
        folder = RunFolder(runs.local(run, ["spec.yaml", "model/model.json", file, *runs.parts_of(run, file)]))
        return Found(folder, folder.root / file)
    where = Path(where)
    if where.is_dir():
        return Found(RunFolder(where), RunFolder(where).model / "model.pt")
    if not where.exists():
        raise UsageError(str(where), "there is no such run or checkpoint", "give a run's folder or a .pt file in it")
    return Found(RunFolder(where.parent.parent), where)


def _saved(found: Found) -> Saved:
    description = found.folder.model / "model.json"
    return restore(json.loads(_text(description)), found.weights)


def _text(path: Path) -> str:
    if not path.is_file():
        cure = "give the folder of a run that has trained, or a .pt file in its model/ or checkpoints/"
        raise UsageError(str(path), "there is no such file, so this is not a whole run", cure)
    return path.read_text(encoding="utf-8")

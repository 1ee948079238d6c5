"""One training from first step to result: the trainer, what is watched, what is saved, what is chosen."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from job.data.dataset import Split, Splits
from job.data.images import choose
from job.data.loader import Settings, TrainingBatches
from job.events import EpochEnded, RunningLoss
from job.results.metrics import Metrics, Predictions, measure
from job.runfolder import RunFolder, write_json
from job.spec.load import spec_hash
from job.spec.schema import Spec
from job.training import checkpoint
from job.training.evaluate import predict
from job.training.progress import CHECK_EVERY, Losses, Selection, refuse_broken
from job.training.setup import Prepared
from job.training.trainer import EpochDone, State, StepDone, train

GAP_IMAGES = 2000  # training images looked at again to see over-fitting: ±2 points of accuracy at 95 %
GAP_WARNING = 0.10  # training accuracy minus test accuracy that is worth a warning


@dataclass(frozen=True)
class Outcome:
    """What the run found: the test split read once, and a look back at training and validation."""

    predictions: Predictions
    test: Metrics
    train: Metrics
    validation: Metrics | None
    weights: str  # last, best or ema
    epoch: int  # the epoch the weights are from
    warning: str | None


class Session:
    """Owns the training state. The pipeline drives it and decides what becomes of the news."""

    def __init__(self, spec: Spec, splits: Splits, network: Prepared, settings: Settings, folder: RunFolder) -> None:
        self.spec, self.splits, self.network, self.folder = spec, splits, network, folder
        self.batches = TrainingBatches(
            splits.train, settings, network.device, network.pixels, spec.augment, spec.train.seed
        )
        self.state = State(network.module, spec, network.device)
        self.losses, self.selection = Losses(), Selection(spec.stop)
        self.history: list[EpochEnded] = []
        self.lr = 0.0

    def steps(self) -> Iterator[StepDone | EpochDone]:
        return train(self.state, self.batches, self.spec, self.network.device)

    def watch(self, done: StepDone) -> RunningLoss | None:
        """Takes in a step; the running loss where one is due. JobError when the loss is no number."""
        self.losses.add(done)
        self.lr = done.lr
        due = done.step % self.spec.train.log_every == 0
        if due or done.step % CHECK_EVERY == 0:
            self.losses.read()
        return RunningLoss(done.epoch + 1, done.step, self.losses.take_window()) if due else None

    def epoch_ended(self, done: EpochDone) -> EpochEnded:
        """Evaluates if it is time, keeps the weights if they are the best, and sums up the epoch."""
        self.losses.read()
        refuse_broken(self.state.module, done.epoch, len(self.batches), done.lr, self.losses.kept)
        train_loss, number = self.losses.take_epoch(), done.epoch + 1
        due = number % self.spec.train.evaluate_every == 0 or number == self.spec.train.epochs
        name, split = self._watched()
        seen = self._measure_counting(split) if due and split is not None else None
        if seen is not None and name == "validation" and self.selection.improved(seen.loss, number):
            checkpoint.save_weights(self.folder.model / "best.pt", self._counting_state())
        loss, accuracy = (None, None) if seen is None else (seen.loss, seen.accuracy)
        speed = done.images / max(done.seconds, 1e-9)
        where = None if seen is None else name
        total = self.spec.train.epochs
        ended = EpochEnded(number, total, train_loss, done.lr, done.seconds, speed, where, loss, accuracy)
        self.history.append(ended)
        return ended

    @property
    def why_stop(self) -> str | None:
        return self.selection.why_stop

    def save(self) -> Path:
        """A checkpoint of everything, at this very step."""
        self.losses.read()
        refuse_broken(self.state.module, self.state.epoch, self.state.step, self.lr, self.losses.kept)
        state = {
            **self.state.to_dict(),
            "losses": self.losses.to_dict(),
            "selection": self.selection.to_dict(),
            "history": [asdict(ended) for ended in self.history],
            "spec_sha256": spec_hash(self.spec),
        }
        total = self.state.epoch * len(self.batches) + self.state.step
        keep = self.spec.checkpoint.keep
        path = checkpoint.save(self.folder, state, self.state.epoch, self.state.step, total, keep)
        self.losses.kept = str(path)
        return path

    def restore(self, saved: dict[str, Any], path: Path) -> None:
        self.state.restore(saved)
        self.losses.kept = str(path)
        self.losses.restore(saved["losses"])
        self.selection.restore(saved["selection"])
        self.history = [EpochEnded(**ended) for ended in saved["history"]]

    def recorded(self, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that the restored state has seen."""
        done, step = self.state.epoch, self.state.step
        return [
            line
            for line in lines
            if line["epoch"] <= done or (line["kind"] == "loss" and line["epoch"] == done + 1 and line["step"] <= step)
        ]

    def finish(self, poll: Callable[[], None]) -> Outcome:
        """Chooses the weights, stores them, and reads the test split for the first and only time."""
        module, model = self.state.module, self.folder.model
        checkpoint.save_weights(model / "last.pt", module.state_dict())
        weights, epoch = "last" if self.state.ema is None else "ema", self.state.epoch
        module.load_state_dict(self._counting_state())
        if self._selects and self.selection.epoch is not None:
            module.load_state_dict(checkpoint.read(model / "best.pt"))
            weights, epoch = "best", self.selection.epoch
        checkpoint.save_weights(model / "model.pt", module.state_dict())
        self._describe_model(model / "model.json", weights, epoch)
        predictions = self._predict(self.splits.test, poll)
        test = self._sum_up(predictions)
        again = self._sum_up(self._predict(_sample(self.splits.train, GAP_IMAGES, self.spec.train.seed), poll))
        held = self.splits.validation
        validation = None if held is None else self._sum_up(self._predict(held, poll))
        return Outcome(predictions, test, again, validation, weights, epoch, overfitting(again, test))

    @property
    def _selects(self) -> bool:
        select = self.spec.train.select
        return select == "best" or (select == "auto" and self.splits.validation is not None)

    def _watched(self) -> tuple[str, Split | None]:
        on_test = self.spec.train.evaluate_on == "test"
        return ("test", self.splits.test) if on_test else ("validation", self.splits.validation)

    def _counting_state(self) -> dict[str, Any]:
        """The weights that count as the result: the moving average where there is one."""
        ema = self.state.ema
        return self.state.module.state_dict() if ema is None else ema.averaged()

    def _predict(self, split: Split, poll: Callable[[], None] | None = None) -> Predictions:
        return predict(self.state.module, split, self.network.device, self.network.pixels, poll)

    def _measure_counting(self, split: Split) -> Metrics:
        """With the weights that count, which training goes on without."""
        if self.state.ema is None:
            return self._sum_up(self._predict(split))
        with self.state.ema.applied():
            return self._sum_up(self._predict(split))

    def _sum_up(self, predictions: Predictions) -> Metrics:
        return measure(predictions, self.splits.classes)

    def _describe_model(self, path: Path, weights: str, epoch: int) -> None:
        """What is needed, beside model.pt, to classify an image."""
        height, width, channels = self.splits.train.images.shape[1:]
        write_json(
            path,
            {
                "name": self.spec.model.name,
                "width": self.spec.model.width,
                "shape": [channels, height, width],
                "classes": list(self.splits.classes),
                "mean": list(self.splits.mean),
                "std": list(self.splits.std),
                "weights": weights,
                "epoch": epoch,
            },
        )


def overfitting(train: Metrics, test: Metrics) -> str | None:
    """A sentence when the network knows its training images much better than new ones, with what to change."""
    gap = train.accuracy - test.accuracy
    if gap < GAP_WARNING or train.interval[0] <= test.interval[1]:
        return None
    return (
        f"over-fitting: {train.accuracy:.1%} of the training images are right and {test.accuracy:.1%} of the test "
        "images; try augment.flip and augment.crop_padding, more optimizer.weight_decay, fewer train.epochs, "
        "early stopping (dataset.validation with stop.patience), or more data"
    )


def _sample(split: Split, count: int, seed: int) -> Split:
    if len(split.labels) <= count:
        return split
    chosen = np.sort(np.random.default_rng(seed).choice(len(split.labels), count, replace=False))
    return Split(choose(split.images, chosen), split.labels[chosen])

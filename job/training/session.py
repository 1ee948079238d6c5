"""One training from first step to result: the trainer, what is watched, what is saved, what is chosen."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from job.data.dataset import Split, Splits
from job.data.images import choose
from job.data.loader import Settings, TrainingBatches, Waiting
from job.data.shards import streamed
from job.device import cpu_count
from job.errors import UsageError
from job.events import EpochEnded, RunningLoss
from job.gpu_watch import GpuWatch
from job.results.metrics import Metrics, Predictions, measure
from job.runfolder import RunFolder, write_json
from job.spec.schema import Spec
from job.training import checkpoint, identity
from job.training.checkpoint import Place
from job.training.distributed import ALONE, Ranks
from job.training.evaluate import predict
from job.training.progress import CHECK_EVERY, Losses, Selection, copy_of, refuse_broken
from job.training.saving import Saver, Written
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

    def __init__(
        self,
        spec: Spec,
        splits: Splits,
        network: Prepared,
        settings: Settings,
        folder: RunFolder,
        ranks: Ranks = ALONE,
    ) -> None:
        self.spec, self.splits, self.network, self.folder, self.ranks = spec, splits, network, folder, ranks
        ranks.refuse_empty_shares(len(splits.train.labels), settings.batch_size)
        self.batches = TrainingBatches(
            splits.train,
            settings,
            network.device,
            network.pixels,
            spec.augment,
            spec.train.seed,
            ranks.rank,
            ranks.count,
        )
        self.clock = self.batches.clock
        self.tail: dict[str, float] = {}  # seconds by phase after the last epoch
        self.gpu_watch = GpuWatch(network.device.uuid()) if network.device.kind == "cuda" else None
        self.mesh, self.channel, host = None, None, None
        if spec.resources.parallel == "fsdp" and ranks.count > 1:
            from job.training import parts, sharding

            self.mesh = sharding.shard(network.module, network.device, ranks.count)
            self.channel, host = parts.Channel.open(ranks), sharding.on_host(self.mesh)
        self.state = State(network.module, spec, network.device)
        self.losses, self.selection = Losses(), Selection(spec.stop)
        self.best: dict[str, Tensor] | None = None  # the weights of the lowest validation loss
        self.history: list[EpochEnded] = []
        self.lr = 0.0
        self.identity = identity.of(spec, splits, network.device)
        self.saver = Saver(folder, spec.checkpoint.keep, host, self._write)
        self.saved: Place | None = None  # where the newest checkpoint stands
        self.restored: Path | None = None  # the checkpoint this process went on from

    def steps(self) -> Iterator[StepDone | EpochDone]:
        self.clock.take()  # what went before is not training
        return train(self.state, self.batches, self.spec, self.network.device, self.ranks)

    def may_leave(self, waiting: Waiting) -> None:
        """`waiting` surrounds each wait for images and may raise there; not where all ranks have to save together."""
        if self.mesh is None:
            self.batches.waiting = waiting

    def watch(self, done: StepDone) -> RunningLoss | None:
        """Takes in a step; the running loss where one is due. JobError when the loss is no number."""
        self.losses.add(done)
        self.lr = done.lr
        due = done.step % self.spec.train.log_every == 0
        if due or done.step % CHECK_EVERY == 0:
            self.losses.read()
        return RunningLoss(done.epoch + 1, done.step, self.losses.take_window()) if due else None

    def epoch_ended(self, done: EpochDone, poll: Callable[[], None] | None = None) -> EpochEnded:
        """Evaluates if it is time, keeps the weights if they are the best, and sums up the epoch.

        `poll` is called while it evaluates and may raise to leave: `save(unevaluated=done)` then keeps the place.
        """
        self.losses.read()
        kept = self.losses.kept
        agreed = bool if self.mesh is None else self.ranks.any
        refuse_broken(self._mine(self.state.module.parameters()), done.epoch, len(self.batches), done.lr, kept, agreed)
        train_loss, number = self.losses.epoch_mean(), done.epoch + 1
        due = number % self.spec.train.evaluate_every == 0 or number == self.spec.train.epochs
        name, split = self._watched()
        with self.clock("evaluate"):
            seen = self._measure_counting(split, poll) if due and split is not None else None
        self.losses.next_epoch()
        if seen is not None and name == "validation" and self.selection.improved(seen.loss, number):
            self.best = copy_of(self._whole(self._counting_state()))
            if self.ranks.leads:
                self.saver.weights(self.folder.model / "best.pt", self.best)
        loss, accuracy = (None, None) if seen is None else (seen.loss, seen.accuracy)
        speed = done.images / max(done.seconds, 1e-9)
        where = None if seen is None else name
        total = self.spec.train.epochs
        split_seconds = self.clock.take()
        ended = EpochEnded(
            number, total, train_loss, done.lr, done.seconds, speed, where, loss, accuracy, split_seconds
        )
        self.history.append(ended)
        return ended

    @property
    def why_stop(self) -> str | None:
        return self.selection.why_stop

    @property
    def total(self) -> int:
        """Mini-batches done since the beginning."""
        return self.state.epoch * len(self.batches) + self.state.step

    def save(self, unevaluated: EpochDone | None = None) -> list[Written]:
        """Has a checkpoint of everything written, at this very step or before the evaluation that ends an epoch.

        Returns what has become durable meanwhile. A place that is saved already is not saved again.
        """
        self.losses.read()
        state, place = self.state.to_dict(), Place(self.state.epoch, self.state.step, self.total)
        if unevaluated is not None:
            place = Place(unevaluated.epoch, len(self.batches), self.total)
            again = {"epoch": place.epoch, "step": place.step}
            state |= {**again, "images": unevaluated.images, "seconds": unevaluated.seconds}
        if place == self.saved or not (self.ranks.leads or self.mesh is not None):
            return []
        self.saved = place
        state |= {
            "losses": self.losses.to_dict(),
            "selection": self.selection.to_dict(),
            "best": self.best,
            "history": [asdict(ended) for ended in self.history],
            "identity": self.identity,
        }
        names, lr, kept = [name for name, _ in self.state.module.named_parameters()], self.lr, self.losses.kept

        channel = self.channel

        def agreed(broken: bool) -> bool:
            return broken if channel is None else self.ranks.any(broken, channel.group)

        def healthy(copy: dict[str, Any]) -> None:
            weights = self._mine(copy["module"][name] for name in names)
            refuse_broken(weights, place.epoch, place.step, lr, kept, agreed)

        with self.clock("save"):
            return self._kept(self.saver.begin(state, place, healthy))

    def saved_meanwhile(self) -> list[Written]:
        """Checkpoints that have become durable since it was last asked; raises what went wrong with one."""
        return self._kept(self.saver.finished())

    def flush(self) -> list[Written]:
        """The same, once everything is on disk."""
        with self.clock("save"):
            return self._kept(self.saver.flush())

    def _kept(self, written: list[Written]) -> list[Written]:
        if written:
            self.losses.kept = str(written[-1].path)
        return written

    def restore(self, saved: dict[str, Any], path: Path) -> list[str]:
        """Takes over a checkpoint; returns what its reader should know. UsageError where it cannot go on from it."""
        before = saved.get("identity", {})
        self._take_threads(before.get("device", {}).get("threads"))
        notes = identity.compare(before, self.identity, str(path))
        state = self.state
        state.restore(saved)
        if (state.epoch, state.step) > (self.spec.train.epochs, 0):
            what = f"it stands in epoch {state.epoch + 1}, and train.epochs is {self.spec.train.epochs}"
            raise UsageError(str(path), what, f"set train.epochs to {state.epoch + 1} or more")
        self.saved, self.restored = Place(state.epoch, state.step, self.total), path
        self.losses.kept = str(path)
        self.losses.restore(saved["losses"])
        self.selection.restore(saved["selection"])
        self.best = saved["best"]
        self.history = [EpochEnded(**ended) for ended in saved["history"]]
        return notes

    def tell_others(self) -> None:
        """Of rank 0: what it goes on from."""
        if self.ranks.count > 1:
            files = [] if self.restored is None else checkpoint.files(self.restored)
            self.ranks.tell(files)
            for path in files:
                self.ranks.hand_out(path, path.parent)

    def follow(self, folder: Path) -> None:
        """Of the others: goes on from where rank 0 does. `folder` takes what is not on this machine."""
        paths = [self.ranks.hand_out(path, folder) for path in self.ranks.listen()]
        if paths:
            self.restore(checkpoint.read(paths[0], self.mesh), paths[0])

    def agree(self, due: bool) -> bool:
        """Whether to save, where each rank has its own watch and all have to save."""
        return due if self.mesh is None else self.ranks.decide(due)

    def _take_threads(self, threads: int | None) -> None:
        """Their number was measured; another one would round sums differently."""
        device = self.network.device
        if threads is None or threads == device.threads or threads > cpu_count():
            return
        why = {**device.reasons, "threads": "those it was begun with"}
        self.network = replace(self.network, device=replace(device.on_threads(threads), reasons=why))
        self.identity = identity.of(self.spec, self.splits, self.network.device)

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
        self.flush()
        self.tail = self.clock.take()
        checkpoint.save_weights(model / "last.pt", self._whole(module.state_dict()))
        weights, epoch = "last" if self.state.ema is None else "ema", self.state.epoch
        module.load_state_dict(self._counting_state())
        if self._selects and self.best is not None and self.selection.epoch is not None:
            checkpoint.save_weights(model / "best.pt", self.best)  # on another machine only the checkpoint has them
            self._fill(self.best)
            weights, epoch = "best", self.selection.epoch
        checkpoint.save_weights(model / "model.pt", self._whole(module.state_dict()))
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

    def _whole(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """All of the tensors, on every rank."""
        if self.mesh is None:
            return state
        from job.training import sharding

        return sharding.whole(state)

    def _mine(self, tensors: Iterable[Tensor]) -> Iterable[Tensor]:
        """This rank's part of each."""
        if self.mesh is None:
            return tensors
        from job.training import sharding

        return map(sharding.local, tensors)

    def _fill(self, weights: dict[str, Tensor]) -> None:
        if self.mesh is None:
            self.state.module.load_state_dict(weights)
            return
        from job.training import sharding

        sharding.fill(self.state.module, weights)

    def _write(self, folder: RunFolder, state: dict[str, Any], place: Place, keep: int) -> Path | None:
        if self.channel is None:
            return checkpoint.write(folder, state, place, keep)
        from job.training import parts

        return parts.write(folder, state, place, keep, self.channel)

    def _predict(self, split: Split, poll: Callable[[], None] | None = None) -> Predictions:
        network, mirrored = self.network, self.spec.train.mirror_test
        module = self.state.module
        waiting = self.batches.waiting
        device, pixels = network.device, network.pixels
        return predict(module, split, device, pixels, poll, self.ranks, mirrored=mirrored, waiting=waiting)

    def _measure_counting(self, split: Split, poll: Callable[[], None] | None) -> Metrics:
        """With the weights that count, which training goes on without."""
        if self.state.ema is None:
            return self._sum_up(self._predict(split, poll))
        with self.state.ema.applied():
            return self._sum_up(self._predict(split, poll))

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
                "mirror_test": self.spec.train.mirror_test,
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
    if streamed(split.images):  # they lie in a random order, and any other choice would bring nearly every shard
        return Split(choose(split.images, np.arange(count)), split.labels[:count])
    chosen = np.sort(np.random.default_rng(seed).choice(len(split.labels), count, replace=False))
    return Split(choose(split.images, chosen), split.labels[chosen])

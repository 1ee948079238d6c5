"""A made-up run of any number of classes, as a Report."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from job.results import schema
from job.results.metrics import Metrics, Predictions, measure, most_confident_mistakes, wilson

CLASSES = ("plane", "car", "bird", "cat")
HOSTILE = (
    "<script>alert(1)</script>",
    "{{7*7}}",
    "{% raw %}",
    "שלום עולם",
    "two\nlines | and *stars* `ticks`",
    "x" * 200,
    "猫",
    r"$\frac{1}{2}$ \textbf{a}",
    r"$\nosuch$",
    "evil\u202egnp.exe",
    "[a](http://example.org) www.example.org",
    "&amp; 'single' \"double\"",
    "-->]]></title></style>",
    "\x00\x07\u2028",
    "1. # - > | ---",
)

EPOCH_SECONDS = {
    "wait": 6.4, "copy": 0.4, "prepare": 0.8, "compute": 8.0, "evaluate": 0.3, "save": 0.1, "other": 0.2,
}  # fmt: skip

Build = Callable[..., schema.Report]


def make_predictions(classes: int, count: int = 400, seed: int = 0, skill: float = 3.0) -> Predictions:
    """Softmax of noise with the truth raised by `skill`."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, count)
    logits = draw.gumbel(size=(count, classes))
    logits[np.arange(count), labels] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(probabilities.astype(np.float32), labels)


def make_mistakes(predictions: Predictions, names: Sequence[str], count: int) -> tuple[schema.Mistake, ...]:
    found = []
    for index in most_confident_mistakes(predictions, count):
        row = predictions.probabilities[index]
        truth, taken = names[predictions.labels[index]], names[row.argmax()]
        found.append(
            schema.Mistake(index=index, truth=truth, predicted=taken, probability=float(row.max()), picture=None)
        )
    return tuple(found)


def headline(metrics: Metrics) -> dict[str, Any]:
    return {
        "accuracy": metrics.accuracy,
        "per_class": {name: one.accuracy for name, one in metrics.per_class.items()},
        "accuracy_interval": metrics.interval,
        "test": schema.TestResult.of(metrics),
    }


def make_report(names: Sequence[str] = CLASSES, epochs: int = 3, mistakes: int = 4, **changes: Any) -> schema.Report:
    """A complete run; `changes` replaces any of its fields."""
    predictions = make_predictions(len(names))
    metrics = measure(predictions, names)
    fields: dict[str, Any] = {
        "run_id": "digits-20250102-abc123",
        "status": "complete",
        **headline(metrics),
        "name": "digits",
        "started": "2025-01-02T03:04:05Z",
        "finished": "2025-01-02T03:05:06Z",
        "seconds": schema.Seconds(data=1.0, tune=0.5, train=50.0, evaluate=2.0, total=61.0),
        "train": schema.SplitResult(
            count=2000, correct=1900, accuracy=0.95, interval=wilson(1900, 2000), loss=0.2, ece=0.01, top5=None
        ),
        "overfitting": schema.Overfitting(gap=0.15, warning="over-fitting: try augment.flip"),
        "result": schema.Chosen(weights="best", epoch=2, epochs_planned=epochs, stopped_early=None),
        "history": tuple(
            schema.Epoch(
                epoch=number,
                train_loss=2 / number,
                lr=0.1,
                seconds=16.0,
                images_per_second=900.0,
                evaluated_on="validation",
                loss=2.1 / number,
                accuracy=1 - 1 / (number + 1),
                split_seconds=EPOCH_SECONDS,
            )
            for number in range(1, epochs + 1)
        ),
        "running_loss": tuple(
            schema.Loss(epoch=epoch, step=step, loss=2 / epoch) for epoch in range(1, epochs + 1) for step in (5, 10)
        ),
        "mistakes": make_mistakes(predictions, names, mistakes),
        "data": schema.Data(
            name="digits",
            source="scikit-learn",
            sha256="ab" * 32,
            train=1000,
            validation=100,
            test=400,
            classes=tuple(names),
            shape=(3, 8, 8),
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            notices=("2 images are grey",),
            skipped=("train/cat/1.png: truncated",),
            leaked=1,
        ),
        "model": schema.Network(name="resnet9", parameters=1234567, flops_per_image=7.6e7, weights=None),
        "loader": schema.LoaderChoice(
            settings=schema.LoaderSettings(
                batch_size=64, resident=True, num_workers=0, pin_memory=False, prefetch_factor=None
            ),
            table=(_row(resident=True, speed=9000.0), _row(resident=False, speed=None, note="not needed")),
            why="brings 9,000 images/s",
            model_images_per_second=950.0,
        ),
        "device": schema.DeviceChoice(
            device="cpu",
            name="a CPU",
            precision="fp32",
            compile=False,
            channels_last=True,
            threads=2,
            reasons={"precision": "the CPU's own"},
        ),
        "use": schema.Use(
            split_seconds={phase: epochs * seconds for phase, seconds in EPOCH_SECONDS.items()},
            images_per_second=900.0,
            flops_per_second=2.05e11,
            mfu=0.0016,
            peak="125 TFLOP/s in bf16 (A10 data sheet)",
            gpu=schema.Gpu(samples=48, utilization=0.31, memory=1_610_612_736, power=61.5, temperature=47.0),
            gpu_note=None,
            limit="Loading limits this run: 40% of the time goes into waiting for images. Give it more CPUs.",
        ),
        "environment": {"python": "3.11.7", "gpu": None},
        "spec": {"name": "digits", "train": {"epochs": epochs, "seed": 0}, "optimizer": {"betas": [0.9, 0.999]}},
        "spec_defaults": ("train.seed", "optimizer"),
        "spec_sha256": "cd" * 32,
        "warnings": ("the data leaks",),
        "reproduce": ("make setup", "python -m job run spec.yaml"),
    }
    return schema.Report(**fields | changes)


def _row(*, resident: bool, speed: float | None, note: str = "") -> schema.LoaderRow:
    return schema.LoaderRow(
        num_workers=0, pin_memory=False, prefetch_factor=None, resident=resident, images_per_second=speed, note=note
    )


def make_partial() -> schema.Report:
    """A run that failed before anything was known."""
    return schema.Report(
        run_id="x-1",
        status="failed",
        accuracy=None,
        per_class={},
        name="x",
        started="2025-01-02T03:04:05Z",
        finished=None,
        reason="epoch 1, step 3: the loss is nan; lower optimizer.lr",
    )


def make_pictures(report: schema.Report, side: int = 8) -> list[NDArray[np.uint8]]:
    draw = np.random.default_rng(1)
    return [draw.integers(0, 256, (side, side, 3)).astype(np.uint8) for _ in report.mistakes]


@pytest.fixture
def build() -> Build:
    """`make_report`; test files cannot import each other."""
    return make_report


@pytest.fixture
def partial() -> schema.Report:
    return make_partial()


@pytest.fixture
def hostile() -> tuple[str, ...]:
    """Class names that try to be something else."""
    return HOSTILE


@pytest.fixture
def predictions() -> Callable[..., Predictions]:
    return make_predictions


@pytest.fixture
def pictures() -> Callable[..., list[NDArray[np.uint8]]]:
    return make_pictures

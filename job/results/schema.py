"""report.json: its schema, one frozen model a section, and the reader that refuses what is not one.

`Report` is written by the pipeline and read by `job report`, `job compare` and by other people's programs: a change
of meaning raises VERSION. Fractions are 0–1, times are seconds, and what is not known is null, never NaN.
"""

import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from job.errors import JobError
from job.results.metrics import Metrics

VERSION = 1

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Interval = tuple[Fraction, Fraction]
Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$")]


class Record(BaseModel):
    """Frozen, no unknown keys; the string under a field is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, data: Any) -> Any:
        """Numbers that are none become null, numpy's become Python's, and text becomes text that UTF-8 can hold."""
        return {key: clean(value) for key, value in data.items()} if isinstance(data, dict) else data


class Seconds(Record):
    """Where the time went; null for a phase that was not reached."""

    data: float | None = None
    """Reading the data set."""
    tune: float | None = None
    """Measuring loader settings."""
    train: float | None = None
    """Training, with the evaluations during it."""
    evaluate: float | None = None
    """The last evaluation."""
    report: float | None = None
    """Plots and pages; null where this file was written before they were."""
    total: float | None = None
    """From the start of the process."""


class ClassResult(Record):
    """One class on the test split."""

    accuracy: Fraction | None
    """Null where the split has no image of the class."""
    count: Count
    """Images of the class."""
    correct: Count
    """Of these, how many were right."""


class CalibrationBin(Record):
    """Images whose highest probability lies in (low, high]."""

    low: Fraction
    """Lower edge, outside the bin."""
    high: Fraction
    """Upper edge, in the bin."""
    count: Count
    """Images in it."""
    confidence: float | None
    """Their mean highest probability."""
    accuracy: Fraction | None
    """Part of them that was right."""


class SplitResult(Record):
    """A split in short."""

    count: Count
    """Images looked at."""
    correct: Count
    """Of these, how many were right."""
    accuracy: Fraction
    """correct / count."""
    interval: Interval
    """95 % Wilson interval of the accuracy."""
    loss: Annotated[float, Field(ge=0)]
    """Mean cross-entropy, in nats."""
    ece: Fraction
    """Expected calibration error, 15 bins."""
    top5: Fraction | None
    """Part of the images whose class is among the five most probable; null for ten classes or fewer."""

    @classmethod
    def of(cls, metrics: Metrics) -> Self:
        """The part of `metrics` that this record holds."""
        return cls.model_validate({name: getattr(metrics, name) for name in cls.model_fields}, from_attributes=True)


class TestResult(SplitResult):
    """The test split, read once."""

    __test__ = False  # to pytest, its name looks like that of a test

    per_class: dict[str, ClassResult]
    """Class name → result, in the order of the classes."""
    confusion: tuple[tuple[Count, ...], ...]
    """Images by truth (row) and prediction (column)."""
    calibration: tuple[CalibrationBin, ...]
    """Claimed against found accuracy."""

    @model_validator(mode="after")
    def _square(self) -> Self:
        classes = len(self.per_class)
        if {classes} != {len(self.confusion), *map(len, self.confusion)}:
            raise ValueError(f"confusion is not {classes} by {classes}")
        return self


class Overfitting(Record):
    """How much better the training images are known than new ones."""

    gap: float
    """Training accuracy minus test accuracy."""
    warning: str | None
    """A sentence with what to change, where the gap is large."""


class Chosen(Record):
    """The weights that were evaluated."""

    weights: Literal["last", "best", "ema"]
    """Of the last step, of the best epoch on the validation part, or a moving average."""
    epoch: Count
    """The epoch they are from, from 1."""
    epochs_planned: Count
    """train.epochs."""
    stopped_early: str | None
    """Why training ended before that."""


class Epoch(Record):
    """One pass over the training split."""

    epoch: Annotated[int, Field(ge=1)]
    """From 1."""
    train_loss: float | None
    """Mean over its mini-batches."""
    lr: float | None
    """Learning rate of its last step."""
    seconds: float | None
    """Without the evaluation after it."""
    images_per_second: float | None
    """Training images a second."""
    evaluated_on: Literal["validation", "test"] | None
    """The split looked at after it, if any."""
    loss: float | None
    """Mean cross-entropy there."""
    accuracy: Fraction | None
    """Accuracy there."""
    split_seconds: dict[str, float] | None = None
    """Where its time went, by phase: wait, copy, prepare, compute, evaluate, save, other."""


class Loss(Record):
    """The running loss of one line of output."""

    epoch: Annotated[int, Field(ge=1)]
    """From 1."""
    step: Annotated[int, Field(ge=0)]
    """Mini-batch in the epoch, from 1."""
    loss: float | None
    """Mean since the line before."""


class Mistake(Record):
    """A test image that was named wrongly, with much confidence."""

    index: Count
    """Its place in the test split."""
    truth: str
    """Class it is of."""
    predicted: str
    """Class it was taken for."""
    probability: Fraction
    """Of the predicted class."""
    picture: Annotated[str, Field(pattern=r"^plots/mistakes/[0-9]+\.png$")] | None
    """Path in the run's folder; kept to that place, since the page embeds what it names."""


class Data(Record):
    """What was learned from."""

    name: str
    """dataset.name."""
    source: str
    """Where the bytes came from, in words."""
    sha256: str
    """Of pixels, labels and class names as used."""
    train: Count
    """Images that trained."""
    validation: Count
    """Images kept for choosing weights and stopping."""
    test: Count
    """Images of the test split."""
    classes: tuple[str, ...]
    """Names, in the order of the labels."""
    shape: tuple[Count, Count, Count]
    """Channels, height, width."""
    mean: tuple[float, ...]
    """Taken from the pixels, by channel, on the scale 0–1."""
    std: tuple[float, ...]
    """The pixels are divided by it after that."""
    notices: tuple[str, ...] = ()
    """Conversions and oddities, a line each."""
    skipped: tuple[str, ...] = ()
    """Files left out, 'path: why'."""
    leaked: Count = 0
    """Test images that are pixel for pixel among the training images."""


class Network(Record):
    """The network."""

    name: str
    """model.name."""
    parameters: Count
    """Numbers that are learned."""
    flops_per_image: float | None
    """Floating-point operations of one forward pass."""
    weights: str | None
    """What training started from, if not from random weights."""


class LoaderSettings(Record):
    """How batches are brought."""

    batch_size: Annotated[int, Field(ge=1)]
    """Images a step."""
    resident: bool
    """The whole data set is kept on the device."""
    num_workers: Count
    """Worker processes."""
    pin_memory: bool
    """Page-locked buffers for the copy."""
    prefetch_factor: int | None
    """Batches each worker keeps ready."""
    start_method: Literal["fork", "forkserver"] = "fork"
    """How the workers began."""


class LoaderRow(Record):
    """A candidate and what it brought."""

    num_workers: Count
    """Worker processes."""
    pin_memory: bool
    """Page-locked buffers for the copy."""
    prefetch_factor: int | None
    """Batches each worker keeps ready."""
    start_method: Literal["fork", "forkserver"] = "fork"
    """How the workers began."""
    resident: bool
    """The whole data set is kept on the device."""
    images_per_second: float | None
    """Null where it was not tried."""
    note: str
    """Why it was not tried, or another remark."""


class LoaderChoice(Record):
    """The choice, the table it was made from, and why."""

    settings: LoaderSettings
    """What was used."""
    table: tuple[LoaderRow, ...]
    """All candidates."""
    why: str
    """The reason, in words."""
    model_images_per_second: float | None
    """What the network takes when batches are there already."""


class DeviceChoice(Record):
    """Where and how it was computed."""

    device: str
    """cpu or cuda."""
    name: str
    """As the maker calls it."""
    precision: str
    """fp32, tf32, bf16 or fp16."""
    compile: bool
    """torch.compile was used."""
    graphs: bool = False
    """Full batches were replayed as CUDA graphs."""
    channels_last: bool
    """Memory layout NHWC."""
    threads: Count
    """CPU threads."""
    reasons: dict[str, str]
    """Choice → why."""


class Gpu(Record):
    """The GPU's own figures while training, through NVML; null where the board does not tell."""

    samples: Count
    """Looks at it, one a second."""
    utilization: Fraction | None
    """Mean share of the time in which a kernel ran."""
    memory: Count | None
    """Most bytes in use on the board."""
    power: float | None
    """Mean, in watts."""
    temperature: float | None
    """Highest, in °C."""


class Use(Record):
    """How well the device was used."""

    split_seconds: dict[str, float]
    """Where the training's time went, by phase: wait, copy, prepare, compute, evaluate, save, other."""
    images_per_second: float | None
    """Over all epochs, without evaluations and saving."""
    flops_per_second: float | None
    """Arithmetic of the network alone: three forward passes an image."""
    mfu: float | None
    """That over the device's peak; null where no peak is published."""
    peak: str | None
    """The peak and its source."""
    gpu: Gpu | None
    """The GPU's own figures."""
    gpu_note: str | None
    """Why there are none."""
    limit: str
    """What holds the run back, and what to change."""


class Report(Record):
    """A run, whole or as far as it came. The first five keys stay first: other programs read only these."""

    schema_version: Literal[1] = 1
    """Of this file."""
    run_id: str
    """The run's folder is called so."""
    status: Literal["complete", "interrupted", "failed"]
    """How it ended."""
    accuracy: Fraction | None
    """On the test split; null where it was not reached."""
    per_class: dict[str, Fraction | None]
    """Class name → accuracy on the test split; empty where it was not reached."""
    name: str
    """The spec's name."""
    started: Moment
    """ISO 8601, UTC."""
    finished: Moment | None
    """ISO 8601, UTC."""
    reason: str | None = None
    """Why it is not complete."""
    seconds: Seconds = Seconds()
    """Where the time went."""
    accuracy_interval: Interval | None = None
    """95 % Wilson interval of the accuracy."""
    test: TestResult | None = None
    """The test split."""
    train: SplitResult | None = None
    """Training images looked at again, without augmentation; a sample where there are many."""
    validation: SplitResult | None = None
    """The validation part."""
    overfitting: Overfitting | None = None
    """Training against test."""
    result: Chosen | None = None
    """The weights that were evaluated."""
    history: tuple[Epoch, ...] = ()
    """A record for each epoch."""
    running_loss: tuple[Loss, ...] = ()
    """A record for each line of running loss."""
    mistakes: tuple[Mistake, ...] = ()
    """The most confident ones, the surest first."""
    data: Data | None = None
    """What was learned from."""
    model: Network | None = None
    """The network."""
    loader: LoaderChoice | None = None
    """How batches were brought."""
    device: DeviceChoice | None = None
    """Where it was computed."""
    use: Use | None = None
    """How well the device was used."""
    environment: dict[str, str | None] = {}
    """Versions, machine, commit, GPU and driver."""
    spec: dict[str, Any] = {}
    """Every key as it ran."""
    spec_defaults: tuple[str, ...] = ()
    """Dotted keys that nobody set."""
    spec_sha256: str | None = None
    """Of the spec as it ran."""
    warnings: tuple[str, ...] = ()
    """What a reader should know first."""
    reproduce: tuple[str, ...] = ()
    """Command lines that run it again."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """The headline is the test split's, so that a reader of the first five keys is not told otherwise."""
        of_test = {} if self.test is None else {name: one.accuracy for name, one in self.test.per_class.items()}
        if self.per_class != of_test:
            raise ValueError("per_class differs from test.per_class")
        if self.accuracy != (None if self.test is None else self.test.accuracy):
            raise ValueError("accuracy differs from test.accuracy")
        return self


def moment(seconds: float) -> Moment:
    """Unix seconds, as a report writes them."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def trained(lines: Iterable[dict[str, Any]]) -> tuple[tuple[Epoch, ...], tuple[Loss, ...]]:
    """Of metrics.jsonl: a record for each epoch, and one for each running loss."""
    kinds: dict[str, list[dict[str, Any]]] = {"epoch": [], "loss": []}
    for line in lines:
        kinds[line["kind"]].append({name: value for name, value in line.items() if name != "kind"})
    return tuple(Epoch(**line) for line in kinds["epoch"]), tuple(Loss(**line) for line in kinds["loss"])


def clean(value: Any) -> Any:
    """What JSON can hold: no NaN, no numpy, no half of a surrogate pair (from a file whose name is not UTF-8)."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def read(path: Path) -> Report:
    """The report in `path`. One line says what is wrong with it and what to do."""
    again = "run the job again, or fetch the file once more"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(str(path), "there is no report here", "give the folder of a run that has ended") from None
    except NotADirectoryError:
        raise JobError(str(path), "there is no report here", "give a run's folder, not a file in it") from None
    except OSError as error:
        raise JobError(str(path), (error.strerror or str(error)).lower(), "make the file readable") from error
    except (ValueError, RecursionError) as error:  # also what is not UTF-8, and a number of 5,000 digits
        raise JobError(str(path), f"is damaged, not JSON ({error})", again) from error
    if not isinstance(data, dict) or "schema_version" not in data:
        raise JobError(str(path), "is not a report of this job: it has no schema_version", "give a run's folder")
    if data["schema_version"] != VERSION:
        what = f"has schema version {str(data['schema_version'])[:20]!r}, this program reads version {VERSION}"
        raise JobError(str(path), what, "use the version of the job that wrote it; report.html needs no program")
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        first, *more = error.errors(include_url=False, include_input=False)
        key = ".".join(str(part) for part in first["loc"]) or "report"
        others = f" (and {len(more)} more)" if more else ""
        what = " ".join(f"{key[:80]}: {first['msg']}{others}".split())
        raise JobError(str(path), what, again) from error

"""The spec: one frozen model a section; field, default, doc and check in one place.

Reading a file into a `Spec` is `job.spec.load`. This module imports pydantic only.
"""

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)")
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
BYTES |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_duration(value: Any) -> Any:
    """'90m', '2h', '1h30m', '500ms' → seconds. A bare number is seconds."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("a duration such as 30s, 90m, 2h or 1d")
    if not isinstance(value, str):
        return float(value)
    parts = DURATION.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value.replace(" ", ""):
        raise ValueError("a duration such as 30s, 90m, 2h or 1d")
    return sum(float(number) * SECONDS[unit] for number, unit in parts)


def parse_interval(value: Any) -> Any:
    """A duration with its unit, where a bare number means something else."""
    return parse_duration(value if isinstance(value, str) else None)


def parse_size(value: Any) -> Any:
    """'128MiB', '2GB' → bytes. A bare number is bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a size such as 128MiB or 2GiB")
    return int(Decimal(match[1]) * BYTES[match[2]])  # exact where float is not: a size read back is the same size


def show_duration(seconds: float) -> str:
    """The shortest exact form: 5400.0 → 90m."""
    for unit in ("d", "h", "m", "s"):
        count = int(seconds / SECONDS[unit])
        if count >= 1 and count * SECONDS[unit] == seconds:
            return f"{count}{unit}"
    return f"{Decimal(repr(seconds)):f}s"  # no exponent, no digit lost


def show_size(size: int) -> str:
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % BYTES[unit] == 0:
            return f"{size // BYTES[unit]}{unit}"
    return f"{size}B"


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    Field(gt=0),
    PlainSerializer(show_duration),
    WithJsonSchema(
        {
            "type": ["string", "number"],
            "pattern": r"^(\d+(\.\d+)?(ms|s|m|h|d) *)+$",
            "exclusiveMinimum": 0,
            "patternErrorMessage": "a duration above zero such as 30s, 90m, 2h or 1d",
            "examples": ["30s", "90m", "2h"],
        }
    ),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(gt=0),
    PlainSerializer(show_size),
    WithJsonSchema(
        {
            "type": ["string", "integer"],
            "pattern": r"^\d+(\.\d+)?\s*(B|[KMGT]i?B)$",
            "minimum": 1,
            "patternErrorMessage": "a size above zero such as 128MiB or 2GiB",
            "examples": ["128MiB", "2GiB"],
        }
    ),
]
Steps = Annotated[
    str,
    Field(
        pattern=r"^[1-9]\d* steps?$", json_schema_extra={"patternErrorMessage": "a number of steps such as 500 steps"}
    ),
]
Interval = Annotated[
    float,
    BeforeValidator(parse_interval),
    Field(gt=0),
    PlainSerializer(show_duration),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^(\d+(\.\d+)?(ms|s|m|h|d) *)+$",
            "patternErrorMessage": "a duration above zero such as 5m",
            "examples": ["5m", "1h"],
        }
    ),
]
Auto = Literal["auto"]
Fraction = Annotated[float, Field(ge=0, lt=1)]

# A pattern in words, for the reader's messages; editors that know the keyword show it too.
HEX: dict[str, JsonValue] = {"patternErrorMessage": "64 lower-case hexadecimal digits"}
SHAPE_NAME: dict[str, JsonValue] = {"patternErrorMessage": "a shape such as VM.GPU.A10.1"}
RUN_NAME: dict[str, JsonValue] = {
    "patternErrorMessage": "1 to 63 lower-case letters, digits, dots, dashes, underscores; the first a letter or digit"
}


class Section(BaseModel):
    """Frozen, strict, no unknown keys; the string under a field is its documentation."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


class Split(Section):
    """How own images without a test/ folder are divided."""

    train: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Part of each class that trains; the rest is the test split."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The same seed always divides the same files in the same way, whatever their order on disk."""


class Normalize(Section):
    """Pixels are scaled to 0–1, then (x − mean) / std, by channel or one number for all."""

    mean: float | list[float] = 0.5
    """Mean of the channels; the lab uses 0.5."""
    std: Annotated[float, Field(gt=0)] | list[Annotated[float, Field(gt=0)]] = 0.5
    """Standard deviation of the channels; the lab uses 0.5."""


class Dataset(Section):
    """What is learned from."""

    name: Literal["cifar10", "cifar100", "fashion_mnist", "mnist", "digits", "image_folder", "shards"]
    """The data set; image_folder is your own images, one folder a class; shards is what the verb `shard` has made."""
    uri: Annotated[str, Field(min_length=1)] | None = None
    """Where the shards are: a folder, or oci://BUCKET@NAMESPACE/PREFIX, from which they are streamed."""
    shuffle_window: Annotated[int, Field(ge=1, le=1024)] = 8
    """Shards whose images are mixed at a time; more mix better and take more of cache_limit."""
    root: str | None = None
    """Folder that holds the data, or receives the download; default $JOB_DATA_ROOT, else data."""
    mirror: str | None = None
    """An archive (or the folder that holds it) to take the data from before any download: a path or oci://…"""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", json_schema_extra=HEX)] | None = None
    """SHA-256 of the mirror's archive; default: read from ARCHIVE.sha256 beside it."""
    subset: Annotated[int, Field(ge=2)] | Annotated[float, Field(gt=0, le=1)] | None = None
    """Train on a stratified part: a number of training images or a fraction; other splits shrink alike."""
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Stratified part of the training data kept for choosing weights and stopping early."""
    split: Split = Split()
    """How own images without a test/ folder are divided."""
    resize: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Side in pixels that every image is resized and centre-cropped to."""
    color: Literal["auto", "rgb", "grey"] = "auto"
    """Channels of own images; auto is grey when every image is grey, else rgb."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What a file that cannot be decoded does: end the run, or be left out and listed in the report."""
    normalize: Normalize | Auto = "auto"
    """Mean and standard deviation taken from the pixels; auto measures the training split."""
    cache: Literal["auto", False] | Annotated[str, Field(min_length=1)] = "auto"
    """Folder for a decoded copy of own images or for streamed shards; auto is $JOB_CACHE_DIR or ~/.cache/gpu-job."""
    cache_limit: Size | Auto = "auto"
    """Most disk that all copies together may take, and all shards together; auto is half of what is free."""


class Loader(Section):
    """How batches reach the device."""

    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images a step."""
    num_workers: Annotated[int, Field(ge=0, le=256)] | Auto = "auto"
    """Worker processes; auto measures this machine."""
    pin_memory: bool | Auto = "auto"
    """Page-locked buffers for the copy to the GPU; auto pins on CUDA."""
    prefetch_factor: Annotated[int, Field(ge=1, le=64)] | Auto = "auto"
    """Batches each worker keeps ready."""
    start_method: Literal["fork", "forkserver"] | Auto = "auto"
    """How worker processes begin; forkserver is for images that are decoded at each use."""
    resident: bool | Auto = "auto"
    """Keep the whole decoded data set on the device and cut batches there; no workers."""
    resident_budget: Size | Auto = "auto"
    """Most memory a resident data set may take; auto is half of what is free."""
    tune_budget: Duration = 5.0
    """Most time spent on measuring loader settings."""


class Augment(Section):
    """Changes to training images, drawn anew each epoch."""

    flip: bool | Literal["alternating"] = False
    """Mirror left to right: half of the images at random, or every image in every other epoch (arXiv 2404.00498)."""
    crop_padding: Annotated[int, Field(ge=0, le=64)] = 0
    """Pad by this many reflected pixels, then cut a window of the original size at a random place."""
    cutout: Annotated[int, Field(ge=0)] = 0
    """Side in pixels of a square set to the mean at a random place."""


class Model(Section):
    """The network."""

    name: Annotated[str, Field(min_length=1)]
    """tutorial_net, small_cnn, resnet9, airbench, or any torchvision classifier such as resnet18."""
    weights: str | None = None
    """A state_dict to start from: a file or oci://…; nothing is ever downloaded by itself."""
    width: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Channels of the first block of small_cnn, resnet9 and airbench; default 8, 16 and 64."""


class Optimizer(Section):
    """How weights move."""

    name: Literal["sgd", "adamw", "muon"] = "sgd"
    """Muon orthogonalises the updates of convolution filters; the rest of the weights use SGD."""
    lr: Annotated[float, Field(gt=0)] = 0.001
    """Learning rate: the peak of the schedule."""
    momentum: Fraction = 0.9
    """Of sgd and muon."""
    nesterov: bool = False
    """Nesterov momentum, for sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 for sgd, decoupled for adamw."""
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Of adamw."""


class Schedule(Section):
    """The learning rate as a function of the step."""

    name: Literal["constant", "cosine", "onecycle", "step"] = "constant"
    """onecycle rises to the peak over warmup_epochs and falls linearly to final_lr × peak."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs of linear rise from zero to the peak."""
    milestones: list[Annotated[int, Field(ge=1)]] = []
    """Epochs after which step multiplies the rate by gamma."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of step."""
    final_lr: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Where cosine and onecycle end, as a part of the peak."""


class Train(Section):
    """The training itself."""

    epochs: Annotated[int, Field(ge=1)] = 2
    """Passes over the training split."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU if there is one this build can use."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """auto is bf16 where GPU or CPU compute it natively, fp16 on older GPUs, else fp32."""
    compile: bool | Auto = "auto"
    """torch.compile; auto does so on CUDA when the run is long enough to earn it back."""
    cuda_graphs: bool | Auto = "auto"
    """Replay full batches as CUDA graphs; auto does so where the network can be captured. Off with accumulate."""
    channels_last: bool | Auto = "auto"
    """Memory layout NHWC; auto chooses it for networks with batch norm, and on CUDA."""
    threads: Annotated[int, Field(ge=1, le=1024)] | Auto = "auto"
    """CPU threads; auto takes the CPUs allowed, or fewer where a measurement shows that others use the cores."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of weights, order and augmentation."""
    deterministic: bool = False
    """Refuse operations that can differ between two equal runs."""
    log_every: Annotated[int, Field(ge=1)] = 2000
    """Mini-batches between two lines of running loss."""
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between two evaluations during training."""
    evaluate_on: Literal["validation", "test"] = "validation"
    """What they look at; test is for display only: nothing is ever chosen by it."""
    mirror_test: bool = False
    """Classify each image together with its mirror image, by the mean of both, wherever accuracy is measured."""
    label_smoothing: Fraction = 0.0
    """Part of the target spread over all classes."""
    ema: Fraction | None = None
    """Decay a step of an exponential moving average of the weights, which then counts as the result."""
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Longest gradient allowed, as an L2 norm."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Mini-batches whose gradients are averaged into one step of the optimizer."""
    sync_batch_norm: bool = False
    """Batch norm over the images of all processes instead of each one's own; on GPUs."""
    select: Literal["auto", "last", "best"] = "auto"
    """Weights that count as the result; auto is best where there is a validation part, else last."""


class Stop(Section):
    """When to stop before the last epoch."""

    patience: Annotated[int, Field(ge=1)] | None = None
    """Evaluations without improvement of the validation loss before training stops."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Smallest fall of the validation loss that counts as an improvement."""


class Checkpoint(Section):
    """What survives an interruption."""

    every: Annotated[int, Field(ge=1)] | Steps | Interval = 1
    """What lies between two checkpoints: epochs (1), steps ("500 steps") or time ("5m")."""
    keep: Annotated[int, Field(ge=1)] = 3
    """Newest checkpoints kept; the best weights are kept beside them."""
    resume: Literal["auto", "never"] = "auto"
    """auto goes on from the newest whole checkpoint of the same run id."""
    grace: Duration = 90.0
    """Most time from SIGTERM or Ctrl-C to the exit; after it the run leaves with the last checkpoint as it is."""


class Store(Section):
    """Where results end up."""

    uri: Annotated[str, Field(min_length=1)] = "runs"
    """A folder, or oci://BUCKET@NAMESPACE/PREFIX; the run's folder is made in it."""
    flush_timeout: Duration = 600.0
    """Most time at the end for what is not uploaded yet; after it the run exits 4 and `upload` finishes."""
    lag_warning: Duration = 300.0
    """Age of a checkpoint that is still not uploaded at which the run warns."""


class Resources(Section):
    """The machine and its limits."""

    shape: str | None = None
    """OCI shape the run is meant for, such as VM.GPU.A10.1; plan prices it."""
    processes: Annotated[int, Field(ge=1, le=64)] | Auto = "auto"
    """Training processes on the machine, each with its share of every batch; auto is one a GPU."""
    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Instances that train together, each with its processes; submit starts them all."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What several processes have of the network: a copy each, or (fsdp) each a part of weights and optimizer."""
    preemptible: bool = False
    """Half the price, and may be taken away at any time; needs a store that outlives the instance."""
    max_duration: Duration | None = None
    """Wall time after which the run saves a checkpoint and stops, resumable; on an instance, from its launch."""
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """US dollars after which it does the same; needs a shape whose price is known."""
    min_gpu_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Mean share of the time the GPU has to be busy, over utilization_window; below it the run saves and fails."""
    utilization_window: Duration = 600.0
    """Training time over which min_gpu_utilization looks back."""
    fallback: list[Annotated[str, Field(pattern=r"^(VM|BM)\.[A-Za-z0-9.-]+$", json_schema_extra=SHAPE_NAME)]] = []
    """Other shapes for submit to try, in this order, where there is no capacity for `shape`."""
    max_wait: Duration | None = None
    """How long submit goes on looking for capacity; without it every place is tried once."""
    first_step_timeout: Duration = 1800.0
    """Most time from the job's start to its first training step; after it the instance ends itself."""


class Spec(Section):
    """A job: what to learn from, what to train, and where the results go."""

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9._-]{0,62}$", json_schema_extra=RUN_NAME)] = "job"
    """Lower-case letters, digits, dots, dashes; the run's folder starts with it."""
    dataset: Dataset
    """What is learned from."""
    loader: Loader = Loader()
    """How batches reach the device."""
    augment: Augment = Augment()
    """Changes to training images."""
    model: Model
    """The network."""
    optimizer: Optimizer = Optimizer()
    """How weights move."""
    schedule: Schedule = Schedule()
    """The learning rate as a function of the step."""
    train: Train = Train()
    """The training itself."""
    stop: Stop = Stop()
    """When to stop before the last epoch."""
    checkpoint: Checkpoint = Checkpoint()
    """What survives an interruption."""
    store: Store = Store()
    """Where results end up."""
    resources: Resources = Resources()
    """The machine and its limits."""

    @property
    def processes(self) -> int | Literal["gpus"]:
        """Training processes: a number, or as many as there are GPUs."""
        if self.resources.processes != "auto":
            return self.resources.processes
        return 1 if self.train.device == "cpu" else "gpus"

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "Spec":
        """Rules over several keys are `contradictions`; the reader asks for all of them with their places."""
        found = contradictions(self)
        if found:
            raise ValueError("; ".join(f"{key}: {what}; {cure}" for key, what, cure in found))
        return self


def contradictions(spec: Spec) -> list[tuple[str, str, str]]:
    """Rules that take more than one key: (key, what is wrong, what to do). Empty when the spec is sound.

    The words name every other key whose default would break the rule: the reader keeps a rule to itself while a key
    it names is itself in error.
    """
    data, loader, train = spec.dataset, spec.loader, spec.train
    no_validation = "set dataset.validation, for example to 0.1"
    rules = [
        (
            spec.stop.patience is not None and data.validation == 0,
            "stop.patience",
            "early stopping needs a validation part: the test split never chooses",
            no_validation,
        ),
        (
            train.select == "best" and data.validation == 0,
            "train.select",
            "choosing the best weights needs a validation part: the test split never chooses",
            no_validation,
        ),
        (
            spec.stop.patience is not None and train.evaluate_on == "test",
            "train.evaluate_on",
            "early stopping looks at the validation part, not at the test split",
            "set train.evaluate_on: validation or remove stop.patience",
        ),
        (
            train.select == "best" and train.evaluate_on == "test",
            "train.evaluate_on",
            "the best weights are chosen on the validation part, not on the test split",
            "set train.evaluate_on: validation or train.select: last",
        ),
        (
            loader.resident is True and loader.num_workers not in (0, "auto"),
            "loader.num_workers",
            "a resident data set has no workers",
            "set loader.resident: false or remove loader.num_workers",
        ),
        (
            loader.prefetch_factor != "auto" and loader.num_workers == 0,
            "loader.prefetch_factor",
            "without workers nothing is prefetched",
            "remove it or set loader.num_workers to 1 or more",
        ),
        (
            loader.start_method != "auto" and loader.num_workers == 0,
            "loader.start_method",
            "there are no workers to start",
            "remove it or set loader.num_workers to 1 or more",
        ),
        (
            spec.optimizer.nesterov and spec.optimizer.momentum == 0,
            "optimizer.nesterov",
            "Nesterov needs momentum",
            "set optimizer.momentum, for example to 0.9",
        ),
        (
            spec.schedule.name == "step" and not spec.schedule.milestones,
            "schedule.milestones",
            "the step schedule needs the epochs after which it steps",
            "for example milestones: [30, 60]",
        ),
        (
            spec.schedule.warmup_epochs >= train.epochs,
            "schedule.warmup_epochs",
            f"the warm-up ({spec.schedule.warmup_epochs:g}) does not end before the training ({train.epochs})",
            "use fewer warm-up epochs or more train.epochs",
        ),
        (
            data.name == "shards" and data.uri is None,
            "dataset.uri",
            "nothing says where the shards are",
            "set dataset.uri to a folder or oci://BUCKET@NAMESPACE/PREFIX",
        ),
        (
            data.name != "shards" and data.uri is not None,
            "dataset.uri",
            f"it says where shards are, and dataset.name is {data.name}",
            "set dataset.name: shards or remove it",
        ),
        (
            data.name == "shards" and data.cache is False and "://" in (data.uri or ""),
            "dataset.cache",
            "what is streamed from dataset.uri needs a folder for the shards in use",
            "remove it or name a folder",
        ),
        (
            data.sha256 is not None and data.mirror is None,
            "dataset.sha256",
            "it is the checksum of dataset.mirror, which is not set",
            "set dataset.mirror or remove it",
        ),
        (
            spec.resources.parallel == "fsdp" and spec.optimizer.name == "muon",
            "resources.parallel",
            "muon turns whole filters, and fsdp gives each process some rows of them",
            "set optimizer.name to sgd or adamw, or resources.parallel: ddp",
        ),
        (
            spec.resources.parallel == "fsdp" and train.sync_batch_norm,
            "resources.parallel",
            "train.sync_batch_norm replaces layers that fsdp holds",
            "set train.sync_batch_norm: false, or resources.parallel: ddp",
        ),
        (
            spec.resources.parallel == "fsdp" and train.precision == "fp16",
            "resources.parallel",
            "the loss scaling of fp16 is not exact over parts of gradients",
            "set train.precision to bf16 or fp32, or resources.parallel: ddp",
        ),
        (
            spec.resources.max_cost is not None and spec.resources.shape is None,
            "resources.max_cost",
            "a cost needs the price of a shape",
            "set resources.shape",
        ),
        (
            spec.resources.preemptible and not spec.store.uri.startswith("oci://"),
            "resources.preemptible",
            "a folder on a preemptible instance goes away with it",
            "set store.uri to oci://BUCKET@NAMESPACE/PREFIX",
        ),
    ]
    return [(key, what, cure) for broken, key, what, cure in rules if broken]

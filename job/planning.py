"""What would run: every `auto` settled, every part built. The plan is the object that runs, so it cannot lie."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from job import estimate
from job.cloud.shapes import PREEMPTIBLE_PRICE, table, usd_per_hour
from job.data import dataset, tuning
from job.data.dataset import Source, Splits
from job.data.loader import TrainingBatches
from job.data.remembered import Memory, path_for
from job.device import require, settle_compile
from job.events import Event, Note, Planned, Tuned
from job.spec.load import Loaded
from job.spec.schema import Spec
from job.training import probe
from job.training.session import GAP_IMAGES
from job.training.setup import Prepared, prepare

LONGEST_TRIAL = 1.0  # seconds of real steps before training
TRIAL_SHARE = 0.01  # of the training's time
COPIES = {"sgd": 2, "muon": 2, "adamw": 3}  # tensors of the weights' size in a checkpoint: themselves, momenta


@dataclass(frozen=True)
class Ready:
    """Data in memory, a network on its device, and how batches will reach it."""

    splits: Splits
    network: Prepared
    loader: tuning.LoaderPlan
    images_per_second: float  # of training as it will be, measured over a few real steps
    seconds: dict[str, float]  # estimated, by phase, from the start of the process to the report


@dataclass(frozen=True)
class Plan:
    """`ready` is None when the data would first have to be fetched."""

    loaded: Loaded
    source: Source
    usd_per_hour: float | None
    ready: Ready | None
    seconds: dict[str, float]  # spent so far, by phase: data, tune


def limit(spec: Spec) -> tuple[float, str] | None:
    """Seconds after which the run has to stop, and by which key."""
    resources, price = spec.resources, usd_per_hour(spec.resources)
    limits = [] if resources.max_duration is None else [(resources.max_duration, "resources.max_duration")]
    if resources.max_cost is not None and price is not None:
        limits.append((resources.max_cost / price * 3600, "resources.max_cost"))
    return min(limits, default=None)


def plan(
    loaded: Loaded,
    *,
    fetch: bool,
    began: float | None = None,
    remeasure: bool = False,
    phase: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Reads the data, builds the network, measures both. Without `fetch` nothing is written or downloaded.

    `remeasure` passes over what an earlier run found out about loading. `began` is when the process did, seconds since
    1970: what went by until here is part of the estimated time. `phase` is told what is being done.
    """
    began = time.time() if began is None else began
    spec = loaded.spec
    require(spec.train)
    price = usd_per_hour(spec.resources)
    source = dataset.locate(spec.dataset)
    if not fetch and source.kind not in ("root", "bundled"):
        return Plan(loaded, source, price, None, {})
    came = time.monotonic()
    splits = dataset.load(spec.dataset, keep=fetch)
    read = time.monotonic()
    phase("tune")
    network, rates = probe.measure(prepare(spec, splits), splits.train, spec)
    chosen = _tune(network, rates.train, splits, spec, reads=not remeasure, writes=fetch)
    network = probe.settle_graphs(network, splits.train, spec, pinned=chosen.settings.pin_memory)
    speed = _speed(network, splits, spec, chosen)
    images = spec.train.epochs * len(splits.train.labels)
    network = replace(network, device=settle_compile(network.device, spec.train.compile, images / speed))
    seconds = {"data": read - came, "tune": time.monotonic() - read}
    spent = time.time() - began
    ready = Ready(splits, network, chosen, speed, estimate.parts(_figures(spec, splits, network, rates, speed, spent)))
    return Plan(loaded, source, price, ready, seconds)


def _tune(
    network: Prepared, rate: float, splits: Splits, spec: Spec, *, reads: bool, writes: bool
) -> tuning.LoaderPlan:
    """How batches will be brought: as an earlier run found, else measured while a copy of the network learns."""
    device, split = network.device, splits.train
    memory = Memory(path_for(spec, split, device), reads, writes)
    with probe.trial(network, spec) as learn:
        return tuning.choose(
            split, spec.loader, spec.augment, device, network.pixels, rate, spec.train, work=learn, memory=memory
        )


def _speed(network: Prepared, splits: Splits, spec: Spec, chosen: tuning.LoaderPlan) -> float:
    """Images/s of a few real steps, for a hundredth of the training's time."""
    settings = chosen.settings
    batches = TrainingBatches(splits.train, settings, network.device, network.pixels, spec.augment, spec.train.seed)
    least = spec.train.epochs * len(splits.train.labels) / chosen.model_images_per_second
    try:
        return probe.end_to_end(network, batches, spec, min(LONGEST_TRIAL, TRIAL_SHARE * least))
    finally:
        batches.close()


def _figures(
    spec: Spec, splits: Splits, network: Prepared, rates: probe.Rates, speed: float, spent: float
) -> estimate.Figures:
    held = 0 if splits.validation is None else len(splits.validation.labels)
    watched = len(splits.test.labels) if spec.train.evaluate_on == "test" else held
    return estimate.Figures(
        spent=spent,
        epochs=spec.train.epochs,
        train_images=len(splits.train.labels),
        train_rate=speed,
        watched_images=watched,
        evaluations=estimate.evaluations(spec.train.epochs, spec.train.evaluate_every),
        final_images=len(splits.test.labels) + min(GAP_IMAGES, len(splits.train.labels)) + held,
        evaluate_rate=rates.evaluate / (1 + spec.train.mirror_test),
        checkpoints=_checkpoints(spec, len(splits.train.labels), speed),
        checkpoint_bytes=network.facts.bytes * (COPIES[spec.optimizer.name] + (spec.train.ema is not None)),
    )


def _checkpoints(spec: Spec, images: int, speed: float) -> int:
    every, epochs = spec.checkpoint.every, spec.train.epochs
    match every:
        case int():
            return estimate.evaluations(epochs, every)
        case str():
            steps = epochs * -(-images // spec.loader.batch_size)
            return estimate.evaluations(steps, int(every.split()[0]))
        case float():
            return int(epochs * images / speed / every) + 1


def describe(made: Plan) -> Iterator[Event]:
    """The plan for a reader."""
    spec, ready = made.loaded.spec, made.ready
    lines = [("data", f"{spec.dataset.name}, {made.source.where}")]
    if ready is not None:
        lines += _ready_lines(made, ready)
    yield Planned((*lines, ("store", spec.store.uri), *_cost_lines(made)))
    if ready is None:
        yield Note("The data is not here yet: `run` fetches it; size, speed and time can be told after that.")
        return
    for notice in ready.splits.notices:
        yield Note(notice, "warning")
    yield tuned(made)


def tuned(made: Plan) -> Tuned:
    assert made.ready is not None
    loader = made.ready.loader
    rows = tuple((str(row.settings), row.images_per_second, row.note) for row in loader.rows)
    return Tuned(rows, str(loader.settings), loader.why)


def _ready_lines(made: Plan, ready: Ready) -> list[tuple[str, str]]:
    spec, splits, device, facts = made.loaded.spec, ready.splits, ready.network.device, ready.network.facts
    height, width, channels = splits.train.images.shape[1:]
    held = 0 if splits.validation is None else len(splits.validation.labels)
    counts = f"{len(splits.train.labels):,} to train, {held:,} to validate, {len(splits.test.labels):,} to test"
    switches = [
        ("precision", device.precision),
        ("channels_last", "on" if device.channels_last else "off"),
        ("compile", "on" if device.compile else "off"),
        ("graphs", "on" if device.graphs else "off"),
    ]
    return [
        ("images", f"{counts}; {height}×{width}×{channels}, {len(splits.classes)} classes"),
        (
            "model",
            f"{spec.model.name}, {facts.parameters:,} parameters, {facts.flops_per_image / 1e6:,.1f} MFLOPs an image",
        ),
        ("device", f"{device.name} ({device.reasons['device']}), {device.threads} CPU threads"),
        *((word, f"{value} ({device.reasons[word]})") for word, value in switches),
        ("threads", f"{device.threads} ({device.reasons['threads']})"),
        ("training", f"{spec.train.epochs} epochs at about {ready.images_per_second:,.0f} images/s"),
        ("time", _time_line(ready.seconds)),
    ]


def _time_line(seconds: dict[str, float]) -> str:
    shown = ", ".join(f"{phase} {value:,.1f}" for phase, value in seconds.items())
    return f"about {sum(seconds.values()):,.0f} s from start to report, estimated: {shown}"


def _cost_lines(made: Plan) -> list[tuple[str, str]]:
    resources, price = made.loaded.spec.resources, made.usd_per_hour
    lines = []
    if resources.shape is not None and price is None:
        lines.append(("shape", f"{resources.shape}, whose price is not known"))
    if price is not None:
        kind = f"preemptible, {PREEMPTIBLE_PRICE:.0%} of list" if resources.preemptible else "list"
        lines.append(("shape", f"{resources.shape}, {price:.2f} USD/h ({kind} price of {table()[0]}, an estimate)"))
    if (end := limit(made.loaded.spec)) is not None:
        seconds, key = end
        cost = "" if price is None else f", at most {seconds / 3600 * price:.2f} USD of the instance"
        lines.append(("limit", f"{seconds:,.0f} s by {key}{cost}"))
    return lines

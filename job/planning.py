"""What would run: every `auto` settled, every part built. The plan is the object that runs, so it cannot lie."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from job.cloud.shapes import PREEMPTIBLE_PRICE, table, usd_per_hour
from job.data import dataset, tuning
from job.data.dataset import Source, Splits
from job.device import settle_compile
from job.events import Event, Note, Planned, Tuned
from job.spec.load import Loaded
from job.training.setup import Prepared, prepare


@dataclass(frozen=True)
class Ready:
    """Data in memory, a network on its device, and how batches will reach it."""

    splits: Splits
    network: Prepared
    loader: tuning.LoaderPlan
    train_seconds: float  # at least: images × epochs ÷ the slower of loader and network, measured each by itself


@dataclass(frozen=True)
class Plan:
    """`ready` is None when the data would first have to be fetched."""

    loaded: Loaded
    source: Source
    usd_per_hour: float | None
    ready: Ready | None
    seconds: dict[str, float]  # spent so far, by phase: data, tune

    @property
    def limit(self) -> tuple[float, str] | None:
        """Seconds after which the run has to stop, and by which key."""
        resources = self.loaded.spec.resources
        limits = [] if resources.max_duration is None else [(resources.max_duration, "resources.max_duration")]
        if resources.max_cost is not None and self.usd_per_hour is not None:
            limits.append((resources.max_cost / self.usd_per_hour * 3600, "resources.max_cost"))
        return min(limits, default=None)


def plan(loaded: Loaded, *, fetch: bool) -> Plan:
    """Reads the data, builds the network, measures the loader. Without `fetch` nothing is written or downloaded."""
    spec = loaded.spec
    price = usd_per_hour(spec.resources)
    source = dataset.locate(spec.dataset)
    if not fetch and source.kind not in ("root", "bundled"):
        return Plan(loaded, source, price, None, {})
    began = time.monotonic()
    splits = dataset.load(spec.dataset)
    read = time.monotonic()
    network = prepare(spec, splits)
    chosen = tuning.choose(
        splits.train, spec.loader, spec.augment, network.device, network.pixels, network.module, spec.train
    )
    rates = [row.images_per_second for row in chosen.rows if row.settings == chosen.settings]
    slower = min([chosen.model_images_per_second, *(rate for rate in rates if rate is not None)])
    estimate = spec.train.epochs * len(splits.train.labels) / slower
    network = replace(network, device=settle_compile(network.device, spec.train.compile, estimate))
    seconds = {"data": read - began, "tune": time.monotonic() - read}
    return Plan(loaded, source, price, Ready(splits, network, chosen, estimate), seconds)


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
    ]
    return [
        ("images", f"{counts}; {height}×{width}×{channels}, {len(splits.classes)} classes"),
        (
            "model",
            f"{spec.model.name}, {facts.parameters:,} parameters, {facts.flops_per_image / 1e6:,.1f} MFLOPs an image",
        ),
        ("device", f"{device.name} ({device.reasons['device']}), {device.threads} CPU threads"),
        *((word, f"{value} ({device.reasons[word]})") for word, value in switches),
        ("training", f"{spec.train.epochs} epochs, at least {ready.train_seconds:,.0f} s"),
    ]


def _cost_lines(made: Plan) -> list[tuple[str, str]]:
    resources, price = made.loaded.spec.resources, made.usd_per_hour
    lines = []
    if resources.shape is not None and price is None:
        lines.append(("shape", f"{resources.shape}, whose price is not known"))
    if price is not None:
        kind = f"preemptible, {PREEMPTIBLE_PRICE:.0%} of list" if resources.preemptible else "list"
        lines.append(("shape", f"{resources.shape}, {price:.2f} USD/h ({kind} price of {table()[0]}, an estimate)"))
    if made.limit is not None:
        seconds, key = made.limit
        cost = "" if price is None else f", at most {seconds / 3600 * price:.2f} USD of the instance"
        lines.append(("limit", f"{seconds:,.0f} s by {key}{cost}"))
    return lines

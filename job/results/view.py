"""A report as its two pages need it: rows, ranks and shares, computed once. No text is escaped here."""

from dataclasses import dataclass

from job.results import words
from job.results.metrics import wilson
from job.results.schema import LoaderRow, Report, SplitResult, TestResult

LISTED = 30  # classes; with more, only the ends of the list stand in the open
ENDS = 6  # the weakest and the best of many classes
PAIRS = 6  # most frequent confusions
NUMBERED = 20  # classes; with more, a confusion matrix in numbers is too wide to read
CALIBRATED = 0.03  # mean gap between confidence and accuracy that nobody needs to mind
USES = {  # phases of job.clock, the largest part first where a run is as it should be
    "compute": "computing",
    "prepare": "normalising and augmenting",
    "wait": "waiting for images",
    "copy": "copying them to the device",
    "evaluate": "evaluating",
    "save": "saving checkpoints",
    "other": "the rest",
}
PHASES = ("data", "tune", "train", "evaluate", "report")


@dataclass(frozen=True)
class ClassRow:
    """A class of the test split; None where it has no image."""

    number: int
    name: str
    accuracy: float | None
    low: float | None
    high: float | None
    count: int
    correct: int


@dataclass(frozen=True)
class Pair:
    """Images of one class taken for another; `share` is of the true class."""

    truth: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class LoaderLine:
    """A candidate in words; `share` is its rate against the fastest."""

    name: str
    images_per_second: float | None
    share: float
    note: str
    chosen: bool


@dataclass(frozen=True)
class Phase:
    """Part of the run's time."""

    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class View:
    """What the templates are given beside the report itself."""

    classes: tuple[ClassRow, ...]  # in the order of the labels
    ranked: tuple[ClassRow, ...]  # the best first, without those that have no image
    pairs: tuple[Pair, ...]  # the most frequent first
    guess: float | None  # accuracy of always naming the most frequent class
    confidence: float | None  # mean highest probability
    loader: tuple[LoaderLine, ...]
    phases: tuple[Phase, ...]
    uses: tuple[Phase, ...]  # of the training alone
    speeds: tuple[tuple[str, str], ...]  # how fast that was: word, value
    environment: tuple[tuple[str, str], ...]  # what is known
    notes: tuple[str, ...]  # why it ended, and warnings, without repetition
    facts: tuple[tuple[str, str, str], ...]  # the run at a glance: word, value, detail
    splits: tuple[tuple[str, SplitResult], ...]  # those that were looked at
    evaluated: bool  # during training
    digits: int  # decimals that the number of test images carries

    @property
    def many(self) -> bool:
        return len(self.classes) > LISTED

    @property
    def numbered(self) -> bool:
        return len(self.classes) <= NUMBERED

    def equals(self, row: ClassRow) -> int:
        """Classes of the same accuracy, itself included."""
        return sum(other.accuracy == row.accuracy for other in self.ranked)

    @property
    def weakest(self) -> tuple[ClassRow, ...]:
        return self.ranked[: -ENDS - 1 : -1]

    @property
    def best(self) -> tuple[ClassRow, ...]:
        return self.ranked[:ENDS]


def view(report: Report) -> View:
    """Everything that is derived from the report."""
    test = report.test
    classes = () if test is None else tuple(_classes(test))
    known = [row for row in classes if row.accuracy is not None]
    over = None if report.overfitting is None else report.overfitting.warning
    notes = [note for note in (report.reason, *report.warnings, over) if note is not None]
    splits = [("training", report.train), ("validation", report.validation), ("test", test)]
    return View(
        classes=classes,
        ranked=tuple(sorted(known, key=lambda row: -(row.accuracy or 0))),
        pairs=() if test is None else tuple(_pairs(test)),
        guess=max(row.count for row in classes) / test.count if test is not None else None,
        confidence=None if test is None else _confidence(test),
        loader=tuple(_loader(report)),
        phases=tuple(_phases(report)),
        uses=tuple(_uses(report)),
        speeds=tuple(_speeds(report)),
        environment=tuple((word, value) for word, value in report.environment.items() if value is not None),
        notes=tuple(dict.fromkeys(notes)),
        facts=tuple(_facts(report)),
        splits=tuple((word, split) for word, split in splits if split is not None),
        evaluated=any(epoch.evaluated_on is not None for epoch in report.history),
        digits=2 if test is not None and test.count >= 1000 else 1,  # noqa: PLR2004
    )


def describe(row: LoaderRow) -> str:
    """A loader setting in words."""
    if row.resident:
        return "resident on the device"
    ahead = f", {row.prefetch_factor} batches ahead" if row.prefetch_factor else ""
    also = (", pinned" if row.pin_memory else "") + (", by a fork server" if row.start_method == "forkserver" else "")
    return f"{row.num_workers} worker{'' if row.num_workers == 1 else 's'}{ahead}{also}"


def _facts(report: Report) -> list[tuple[str, str, str]]:
    found = []
    if (data := report.data) is not None:
        found.append(("Data set", data.name, f"{data.train:,} to train, {data.test:,} to test"))
    if (model := report.model) is not None:
        found.append(("Network", model.name, f"{model.parameters:,} parameters"))
    if epochs := report.history:
        speed = words.count(epochs[-1].images_per_second)
        found.append(("Training", f"{len(epochs)} epoch{'' if len(epochs) == 1 else 's'}", f"{speed} images/s"))
    if (device := report.device) is not None:
        found.append(("Device", device.name, device.precision))
    if (test := report.test) is not None:
        top5 = "" if test.top5 is None else f", top-5 {words.percent(test.top5)}"
        found.append(("Test loss", words.decimal(test.loss), f"calibration error {words.percent(test.ece)}{top5}"))
    if (seconds := report.seconds).total is not None:
        training = "" if seconds.train is None else f"training {words.duration(seconds.train)}"
        found.append(("Time in all", words.duration(seconds.total), training))
    return found


def _classes(test: TestResult) -> list[ClassRow]:
    rows = []
    for number, (name, one) in enumerate(test.per_class.items()):
        low, high = wilson(one.correct, one.count) if one.count else (None, None)
        rows.append(ClassRow(number, name, one.accuracy, low, high, one.count, one.correct))
    return rows


def _pairs(test: TestResult) -> list[Pair]:
    names, wrong = list(test.per_class), []
    for truth, row in enumerate(test.confusion):
        total = sum(row)
        wrong += [(count, truth, taken, total) for taken, count in enumerate(row) if count and taken != truth]
    wrong.sort(key=lambda found: (-found[0], found[1], found[2]))
    return [Pair(names[truth], names[taken], count, count / total) for count, truth, taken, total in wrong[:PAIRS]]


def _confidence(test: TestResult) -> float:
    return sum(part.count * part.confidence for part in test.calibration if part.confidence is not None) / test.count


def _loader(report: Report) -> list[LoaderLine]:
    if report.loader is None:
        return []
    used = report.loader.settings.model_dump(exclude={"batch_size"})
    fastest = max((row.images_per_second or 0 for row in report.loader.table), default=0) or 1
    return [
        LoaderLine(
            describe(row),
            row.images_per_second,
            (row.images_per_second or 0) / fastest,
            row.note,
            chosen=row.model_dump(exclude={"images_per_second", "note"}) == used,
        )
        for row in report.loader.table
    ]


def _phases(report: Report) -> list[Phase]:
    spent = [(name, getattr(report.seconds, name)) for name in PHASES]
    known = [(name, seconds) for name, seconds in spent if seconds is not None]
    total = report.seconds.total
    rest = 0.0 if total is None else total - sum(seconds for _, seconds in known)
    if known and rest >= 0.05:  # noqa: PLR2004 - what a tenth of a second shows
        known.append(("starting and the rest", rest))
    whole = sum(seconds for _, seconds in known) or 1.0
    return [Phase(name, seconds, seconds / whole) for name, seconds in known]


def _uses(report: Report) -> list[Phase]:
    if report.use is None:
        return []
    split = report.use.split_seconds
    whole = sum(split.values()) or 1.0
    known = [(word, split.get(phase, 0.0)) for phase, word in USES.items()]
    return [Phase(word, seconds, seconds / whole) for word, seconds in known if seconds >= 0.0005 * whole]


def _speeds(report: Report) -> list[tuple[str, str]]:
    """What is known of rate and utilisation, in words."""
    use = report.use
    if use is None:
        return []
    flops = (
        None if use.flops_per_second is None else f"{words.short(use.flops_per_second / 1e9)} GFLOP/s of the network"
    )
    found = [("images", f"{words.count(use.images_per_second)} a second while training"), ("arithmetic", flops)]
    if use.mfu is not None:
        found.append(("utilisation (MFU)", f"{words.percent(use.mfu)} of {use.peak}"))
    if (gpu := use.gpu) is not None:
        parts = [
            None if gpu.utilization is None else f"busy {words.percent(gpu.utilization, 0)} of the time",
            None if gpu.memory is None else f"{gpu.memory / 2**30:.1f} GiB at most",
            None if gpu.power is None else f"{gpu.power:.0f} W",
            None if gpu.temperature is None else f"{gpu.temperature:.0f} °C at most",
        ]
        found.append(("GPU", ", ".join(part for part in parts if part is not None)))
    found.append(("GPU", use.gpu_note))
    return [(word, value) for word, value in found if value]

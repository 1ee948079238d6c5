"""Chooses how batches are brought, by measuring on this machine with this data and this network.

A data set that fits stays on the device. Else each candidate, from the cheapest up, brings batches that the network
learns from for a moment (on a copy), so what workers take from training on a CPU counts; where a step takes too long
for that, loading is measured alone. The search is successive halving: all get a share of the time, the better half
again, until one is left, of which more batches ahead, the other pinning and workers begun by a fork server are tried.
Of equally fast ones the cheapest is taken. It ends as soon as training does not wait, or when `loader.tune_budget` or
2 % of the estimated run is used up, whichever comes first; starting workers counts. The choice is kept for this
machine, data set and network.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from job.data.candidates import Row, candidates, refinements
from job.data.dataset import Split
from job.data.loader import Batch, Pixels, Settings, TrainingBatches, end_fork_server
from job.data.remembered import NOWHERE, Memory
from job.device import Device
from job.errors import JobError
from job.spec.schema import Augment, Loader, Train

NEVER_WAITS = 0.97  # of the network's own rate: what training reaches with a loader that it does not wait for
ENOUGH = 1.5  # a loader this many times faster than the network never makes it wait, where it works beside it
ENOUGH_IN_TURN = 30.0  # the same where loading and training share the processor
ALIKE = 0.95  # of the fastest: less apart than two measurements of the same; more workers would be waste
RUN_SHARE = 0.02  # of the estimated training time is the most that tuning may take
FIRST_STAGE = 0.75  # of the budget goes into the number of workers, the rest into refining it
START = 0.1  # seconds that starting a worker may take beside its first batch
SERVER_START = 3.0  # seconds until a fork server has imported torch
RESIDENT_SHARE = 0.25  # seconds for a resident data set: its speed is told, but there is nothing to choose
STEPS = 4  # of training that must fit into a candidate's share, or loading is measured alone
LONGEST = 200  # batches of a measurement
USED_UP = "not tried: the time for tuning was used up"

Work = Callable[[Batch], None]
clock = time.perf_counter


@dataclass(frozen=True)
class LoaderPlan:
    """The settings, the table they were chosen from, and why."""

    settings: Settings
    rows: tuple[Row, ...]
    why: str
    model_images_per_second: float  # training on a batch that is already there


@dataclass
class Search:
    """What is measured, with what, and until when."""

    split: Split
    spec: Loader
    augment: Augment
    device: Device
    pixels: Pixels
    seed: int
    rate: float  # the network's own, images/s
    budget: float
    work: Work | None  # a step on a copy of the network; None: loading alone is measured
    poll: Callable[[], None]
    rows: dict[Settings, Row] = field(default_factory=dict)
    enough: bool = False

    def run(self, possible: list[Row]) -> Settings:
        """The best of them and of its variations; fills `rows`."""
        began = clock()
        best = self._halve(possible, began + FIRST_STAGE * self.budget)
        if not self.enough:
            finer = refinements(best, self.split, self.spec, self.device)
            fit = [row for row in finer if not row.note]
            self.rows |= {row.settings: row for row in finer if row.note}
            if fit:
                best = self._halve([self.rows[best], *fit], began + self.budget)
        return best

    def _halve(self, alive: list[Row], deadline: float) -> Settings:
        """Measures all, then the better half for as long again, until one is left or the time is used up.

        They come cheapest first.
        """
        with contextlib.ExitStack() as opened:
            brought: dict[Settings, Iterator[Batch]] = {}
            while True:
                rounds = max(1, math.ceil(math.log2(len(alive))))
                end = clock() + (deadline - clock()) / rounds
                for index, row in enumerate(alive):
                    share = (end - clock()) / (len(alive) - index)
                    self._measure(row, share, brought, opened)
                    if self.enough:
                        self._pass_over(alive[index + 1 :], "not needed")
                        return row.settings
                tried = [self.rows[row.settings] for row in alive if self.rows[row.settings].images_per_second]
                if len(tried) <= 2 or clock() >= deadline:  # noqa: PLR2004 - of two the better one is known
                    least = ALIKE * max(map(_speed, tried))
                    return next(row.settings for row in tried if _speed(row) >= least)
                least = sorted(map(_speed, tried))[len(tried) // 2]
                alive = [row for row in tried if _speed(row) >= least]

    def _measure(
        self, row: Row, share: float, brought: dict[Settings, Iterator[Batch]], opened: contextlib.ExitStack
    ) -> None:
        """Puts the images/s with these settings into `rows`; the first is measured however little time there is."""
        self.poll()
        settings, known = row.settings, self.rows.get(row.settings, row)
        some = any(other.images_per_second for other in self.rows.values())
        if some and share <= 0:
            self.rows[settings] = known if known.images_per_second else replace(row, note=USED_UP)
            return
        if settings not in brought:
            if some and settings.num_workers and self._start(settings) > share:
                self.rows[settings] = replace(
                    row, note=f"not tried: starting would take about {self._start(settings):.1f} s"
                )
                return
            batches = TrainingBatches(self.split, settings, self.device, self.pixels, self.augment, self.seed)
            opened.callback(batches.close)
            brought[settings] = self._polled(batches)
        ahead = settings.num_workers * (settings.prefetch_factor or 0)
        share = min(share, RESIDENT_SHARE) if settings.resident else share
        speed = images_per_second(brought[settings], self.work, self.device, share, ahead)
        self.rows[settings] = replace(row, images_per_second=speed, note="")
        self.enough = settings.resident or speed >= self.needed  # nothing brings pixels faster than memory

    @property
    def needed(self) -> float:
        """Images/s from which on more would be waste."""
        if self.work is not None:
            return NEVER_WAITS * self.rate
        return (ENOUGH if self.device.kind == "cuda" else ENOUGH_IN_TURN) * self.rate

    def _start(self, settings: Settings) -> float:
        """Seconds until the workers' first batch, by the speed that was found without any."""
        alone = self.rows.get(Settings(settings.batch_size, False, 0, settings.pin_memory))
        slow = alone is not None and alone.images_per_second
        server = SERVER_START if settings.start_method == "forkserver" else 0.0
        return server + START * math.sqrt(settings.num_workers) + (settings.batch_size / slow if slow else 0.0)

    def _pass_over(self, rows: list[Row], note: str) -> None:
        for row in rows:
            self.rows.setdefault(row.settings, replace(row, note=note))

    def _polled(self, batches: TrainingBatches) -> Iterator[Batch]:
        for epoch in itertools.count():
            for batch in batches.epoch(epoch):
                self.poll()
                yield batch


def choose(
    split: Split,
    spec: Loader,
    augment: Augment,
    device: Device,
    pixels: Pixels,
    rate: float,
    train: Train,
    *,
    work: Work | None = None,
    memory: Memory = NOWHERE,
    poll: Callable[[], None] = lambda: None,
) -> LoaderPlan:
    """Measures what the spec leaves open; what it fixes is taken as it is. `rate` is the network's own, images/s.

    `work` is a step of training on a copy of the network; `memory` may hold the choice of an earlier run.
    """
    rows = candidates(split, spec, device)
    possible, refused = [row for row in rows if not row.note], [row for row in rows if row.note]
    if not possible:
        raise JobError("loader", "; ".join(f"{row.settings}: {row.note}" for row in refused), "change these keys")
    variations = [row for row in refinements(possible[0].settings, split, spec, device) if not row.note]
    if len(possible) == 1 and not variations:
        return LoaderPlan(possible[0].settings, (*possible, *refused), "the spec leaves one choice", rate)
    allowed = {_kind(row.settings) for row in possible}
    known = memory.recall()
    if known is not None:
        settings, table, why = known
        if _kind(settings) in allowed:
            return LoaderPlan(settings, table, why, rate)
    budget = min(spec.tune_budget, RUN_SHARE * train.epochs * len(split.labels) / rate)
    fits = work is not None and STEPS * len(possible) * spec.batch_size / rate <= FIRST_STAGE * budget
    search = Search(split, spec, augment, device, pixels, train.seed, rate, budget, work if fits else None, poll)
    best = search.run(possible)
    tried = (row.settings.start_method for row in search.rows.values() if row.images_per_second)
    if "forkserver" in tried and best.start_method != "forkserver":
        end_fork_server()
    table = (*search.rows.values(), *refused)
    why = reason(search.rows[best].images_per_second or 0, search)
    memory.keep(best, table, why)
    return LoaderPlan(best, table, why, rate)


def images_per_second(
    batches: Iterator[Batch], work: Work | None, device: Device, seconds: float, ahead: int = 0
) -> float:
    """Rate over about `seconds`. One batch, and for half the time those `ahead` that lay ready, are not counted."""
    came = clock()

    def step() -> int:
        batch = next(batches)
        if work is not None:
            work(batch)
        return len(batch.labels)

    step()
    while ahead > 0 and clock() - came < seconds / 2:
        step()
        ahead -= 1
    device.wait()
    began, images, steps = clock(), 0, 0
    while steps == 0 or (steps < LONGEST and clock() - came < seconds):
        images += step()
        steps += 1
        if device.kind == "cuda" and steps % 4 == 0:
            device.wait()  # the clock would else see steps queued, not done
    device.wait()
    return images / max(clock() - began, 1e-9)


def reason(speed: float, search: Search) -> str:
    """The choice in words."""
    rate, beside = search.rate, f"nothing measured beside it is {1 - ALIKE:.0%} faster"
    if search.work is not None:
        words = f"trains at {speed:,.0f} images/s, {speed / rate:.0%} of what the network takes from memory"
        if speed >= NEVER_WAITS * rate:
            return f"{words}: it never waits"
        return f"{words}; {beside}"
    ratio = speed / rate
    if speed >= search.needed:
        return f"brings {speed:,.0f} images/s, {ratio:.1f}× what the network takes: it never waits"
    if ratio >= 1:
        return f"brings {speed:,.0f} images/s, {ratio:.1f}× what the network takes; {beside}"
    return f"brings {speed:,.0f} images/s; {beside}, yet the network could take {rate:,.0f}: loading limits this run"


def _kind(settings: Settings) -> tuple[bool, int]:
    """What candidates differ in; the rest is refined."""
    return settings.resident, settings.num_workers


def _speed(row: Row) -> float:
    return row.images_per_second or 0.0

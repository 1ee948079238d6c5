"""The loader is chosen by measurement, within limits, and the choice is explained. No test waits on the clock."""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from job.data import candidates as bearable
from job.data import tuning
from job.data.candidates import Row, candidates, refinements, refusal, worker_counts
from job.data.dataset import Split
from job.data.decode import Encoded, Form
from job.data.loader import Batch, Pixels, Settings, TrainingBatches
from job.data.remembered import NOWHERE, Memory
from job.data.tuning import LoaderPlan, choose
from job.device import Device
from job.errors import Interrupted, JobError
from job.spec.schema import Augment, Loader, Train

CPU = Device("cpu", "test", "fp32", compile=False, channels_last=False, threads=1)
GPU = Device("cuda", "test", "fp32", compile=False, channels_last=False, threads=1)
SPLIT = Split(np.zeros((64, 8, 8, 3), np.uint8), np.zeros(64, np.int64))
RATE = 1000.0  # images/s of the network itself


class Machine:
    """Loaders with a known speed, and a clock that moves when they work.

    `speeds` has images/s by the settings' words, `start` the seconds that workers take to come up.
    """

    def __init__(self, speeds: dict[str, float], start: float = 0.0) -> None:
        self.now, self.speeds, self.start = 0.0, speeds, start
        self.opened: list[str] = []
        self.closed: list[str] = []

    def batches(self, _split: Split, settings: Settings, *_rest: object) -> SimpleNamespace:
        words = str(settings)
        self.opened.append(words)

        def epoch(number: int) -> Iterator[SimpleNamespace]:
            if number == 0:
                self.now += self.start * settings.num_workers
            while True:
                self.now += settings.batch_size / self.speeds[words]
                yield SimpleNamespace(labels=range(settings.batch_size))

        return SimpleNamespace(epoch=epoch, close=lambda: self.closed.append(words))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def make(speeds: dict[str, float], start: float = 0.0) -> Machine:
        made = Machine(speeds, start)
        monkeypatch.setattr(tuning, "TrainingBatches", made.batches)
        monkeypatch.setattr(tuning, "clock", lambda: made.now)
        monkeypatch.setattr(bearable, "cpu_count", lambda: 4)
        return made

    return make


def together(batch: Batch) -> None:
    """A step of training: the machine's speeds are those of loading and learning."""


def plan(
    spec: Loader,
    epochs: int = 100_000,
    split: Split = SPLIT,
    work: tuning.Work | None = together,
    memory: Memory = NOWHERE,
    poll: Callable[[], None] = lambda: None,
) -> LoaderPlan:
    pixels = Pixels.on(CPU, (0.5,) * 3, (0.5,) * 3)
    train = Train(epochs=epochs)
    return choose(split, spec, Augment(), CPU, pixels, RATE, train, work=work, memory=memory, poll=poll)


def words(rows: tuple[Row, ...]) -> dict[str, str]:
    return {str(row.settings): row.note for row in rows}


def test_the_search_ends_when_training_never_waits(machine: Callable[..., Machine]) -> None:
    found = machine({"resident": 990.0})
    made = plan(Loader(batch_size=8))
    assert str(made.settings) == "resident"
    assert words(made.rows) == {"resident": "", "0 workers": "not needed"}
    assert made.why == "trains at 990 images/s, 99% of what the network takes from memory: it never waits"
    assert found.opened == found.closed == ["resident"]


def test_what_is_resident_stays_so_however_its_moment_was(machine: Callable[..., Machine]) -> None:
    machine({"resident": 300.0})
    made = plan(Loader(batch_size=8))
    assert words(made.rows) == {"resident": "", "0 workers": "not needed"}
    assert (
        made.why
        == "trains at 300 images/s, 30% of what the network takes from memory; nothing measured beside it is 5% faster"
    )


COPIED = "workers that are not forked from this process would each get a copy of the images"
FILES = Split(Encoded(["a.jpg"] * 64, Form(8, 8, 3, resize=True)), SPLIT.labels)
SPEEDS = {
    "0 workers": 400.0,
    "1 worker, prefetch 2": 450.0,
    "2 workers, prefetch 2": 900.0,
    "4 workers, prefetch 2": 700.0,
    "2 workers, prefetch 4": 960.0,
    "2 workers, prefetch 8": 910.0,
}


def test_the_fastest_wins_where_none_is_enough(machine: Callable[..., Machine]) -> None:
    found = machine(SPEEDS)
    made = plan(Loader(batch_size=8, resident=False))
    assert str(made.settings) == "2 workers, prefetch 4"
    assert (
        made.why
        == "trains at 960 images/s, 96% of what the network takes from memory; nothing measured beside it is 5% faster"
    )
    measured = {str(row.settings): round(row.images_per_second) for row in made.rows if row.images_per_second}
    assert measured == SPEEDS
    assert words(made.rows)["2 workers, prefetch 2, forkserver"] == COPIED
    assert sorted(found.opened) == sorted(found.closed), "no worker is left behind"


def test_of_equally_fast_ones_the_cheapest_wins(machine: Callable[..., Machine]) -> None:
    machine(SPEEDS | {"0 workers": 860.0})
    made = plan(Loader(batch_size=8, resident=False))
    assert str(made.settings) == "0 workers"
    assert (
        made.why
        == "trains at 860 images/s, 86% of what the network takes from memory; nothing measured beside it is 5% faster"
    )


def test_a_fork_server_is_tried_where_there_is_the_time(machine: Callable[..., Machine]) -> None:
    found = machine(SPEEDS | {"2 workers, prefetch 2, forkserver": 965.0})
    short = plan(Loader(batch_size=8, resident=False), split=FILES)
    assert str(short.settings) == "2 workers, prefetch 4"
    assert words(short.rows)["2 workers, prefetch 2, forkserver"] == "not tried: starting would take about 3.2 s"
    assert "2 workers, prefetch 2, forkserver" not in found.opened
    speeds = SPEEDS | {"2 workers, prefetch 4": 900.0, "2 workers, prefetch 2, forkserver": 960.0}
    machine(speeds)
    long = plan(Loader(batch_size=8, resident=False, tune_budget=100), split=FILES)
    assert str(long.settings) == "2 workers, prefetch 2, forkserver"


def test_forkserver_as_the_spec_asks(machine: Callable[..., Machine]) -> None:
    machine(
        {
            f"{name}, forkserver" if "worker," in name or "workers," in name else name: speed
            for name, speed in SPEEDS.items()
        }
    )
    asked = Loader(batch_size=8, num_workers=2, start_method="forkserver")
    assert plan(asked, split=FILES).settings.start_method == "forkserver"
    with pytest.raises(JobError, match=f"^loader: 2 workers, prefetch 2, forkserver: {COPIED}; change these keys$"):
        plan(asked)


@pytest.mark.parametrize(("epochs", "budget"), [(100_000, 5.0), (1000, 1.28)])
def test_the_budget_is_kept_start_of_workers_and_all(
    machine: Callable[..., Machine], epochs: int, budget: float
) -> None:
    """2 % of 64 images × epochs at 1,000 images/s, or loader.tune_budget; overshoot is a batch for each measurement."""
    found = machine(SPEEDS, start=0.02)
    made = plan(Loader(batch_size=8, resident=False), epochs)
    assert str(made.settings) == "2 workers, prefetch 4"
    assert found.now <= budget * 1.2


def test_a_budget_used_up_says_so(machine: Callable[..., Machine]) -> None:
    machine(SPEEDS)
    made = plan(Loader(batch_size=8, resident=False), epochs=10)
    assert str(made.settings) == "0 workers"
    notes = words(made.rows)
    assert notes.pop("0 workers") == ""
    assert set(notes.values()) <= {tuning.USED_UP, "not tried: starting would take about 0.1 s"}
    assert len(notes) == 3


def test_workers_that_take_too_long_to_start_are_not_started(machine: Callable[..., Machine]) -> None:
    found = machine(SPEEDS, start=1e9)
    made = plan(Loader(batch_size=300, resident=False))
    assert str(made.settings) == "0 workers"
    assert found.opened == ["0 workers"]
    assert "not tried: starting would take about 0.9 s" in words(made.rows).values()


def test_a_step_too_long_for_the_budget_is_not_taken(machine: Callable[..., Machine]) -> None:
    """Loading is then measured by itself, and has to be much faster where it shares the processor with training."""
    learned: list[Batch] = []
    machine({"0 workers": 31_000.0})
    made = plan(Loader(batch_size=1000, resident=False, tune_budget=0.5), work=learned.append)
    assert learned == []
    assert str(made.settings) == "0 workers"
    assert made.why == "brings 31,000 images/s, 31.0× what the network takes: it never waits"


def test_loading_that_limits_the_run_is_said(machine: Callable[..., Machine]) -> None:
    machine({"resident": 500.0, "0 workers": 300.0})
    made = plan(Loader(batch_size=8), work=None)
    assert made.why == (
        "brings 500 images/s; nothing measured beside it is 5% faster, yet the network could take 1,000: "
        "loading limits this run"
    )


def test_batches_that_lay_ready_do_not_count(machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(tuning, "clock", lambda: now)

    def stream() -> Iterator[SimpleNamespace]:
        nonlocal now
        for number in range(1000):
            now += 0.001 if number < 5 else 0.1
            yield SimpleNamespace(labels=range(8))

    batches: Iterator[Batch] = stream()  # type: ignore[assignment]
    assert tuning.images_per_second(batches, None, CPU, 2.0, ahead=4) == pytest.approx(80.0)


def test_what_the_spec_fixes_is_taken(machine: Callable[..., Machine]) -> None:
    found = machine({})
    made = plan(Loader(batch_size=8, resident=False, num_workers=3, prefetch_factor=4))
    assert (made.settings.num_workers, made.settings.prefetch_factor) == (3, 4)
    assert made.why == "the spec leaves one choice"
    assert found.opened == []


def test_naming_workers_means_workers(machine: Callable[..., Machine]) -> None:
    machine(SPEEDS)
    made = plan(Loader(batch_size=8, num_workers=2))
    assert (made.settings.num_workers, made.settings.prefetch_factor) == (2, 4)


def test_workers_asked_for_are_measured_however_little_time_there_is(machine: Callable[..., Machine]) -> None:
    machine(SPEEDS, start=5.0)
    made = plan(Loader(batch_size=8, resident=False, num_workers=2), epochs=1)
    assert str(made.settings) == "2 workers, prefetch 2"
    assert words(made.rows)["2 workers, prefetch 4"] == tuning.USED_UP


def test_a_stop_is_heard_while_measuring(machine: Callable[..., Machine]) -> None:
    found = machine(SPEEDS)
    asked = 0

    def poll() -> None:
        nonlocal asked
        asked += 1
        if asked > 20:
            raise Interrupted("run", "stopped", "go on")

    with pytest.raises(Interrupted):
        plan(Loader(batch_size=8, resident=False), poll=poll)
    assert sorted(found.closed) == sorted(found.opened), "no worker is left behind"


def test_a_second_run_measures_nothing(machine: Callable[..., Machine], tmp_path: Path) -> None:
    memory = Memory(tmp_path / "tuning/one.json")
    found = machine(SPEEDS)
    first = plan(Loader(batch_size=8, resident=False), memory=memory)
    found.opened.clear()
    second = plan(Loader(batch_size=8, resident=False), memory=memory)
    assert (second.settings, second.rows) == (first.settings, first.rows)
    assert second.why.startswith(first.why + " (measured on 2")
    assert second.why.endswith("; the verb tune measures again)")
    assert found.opened == []
    again = plan(Loader(batch_size=8, resident=False), memory=Memory(memory.path, reads=False))
    assert again.why == first.why
    assert found.opened != []


@pytest.mark.parametrize("content", ["", "{}", '{"settings": 3}', "[]", '{"rows": [], "why": "x", "date": "y"}'])
def test_a_memory_that_cannot_be_read_is_measured_anew(
    machine: Callable[..., Machine], tmp_path: Path, content: str
) -> None:
    machine(SPEEDS)
    (tmp_path / "one.json").write_text(content)
    assert "measured on" not in plan(Loader(batch_size=8, resident=False), memory=Memory(tmp_path / "one.json")).why


def test_what_is_no_longer_possible_is_not_remembered(machine: Callable[..., Machine], tmp_path: Path) -> None:
    memory = Memory(tmp_path / "one.json")
    memory.keep(Settings(8, resident=True), (), "fits")
    machine(SPEEDS)
    assert not plan(Loader(batch_size=8, resident_budget=1000), memory=memory).settings.resident


def test_nothing_is_written_where_nothing_may_be(machine: Callable[..., Machine], tmp_path: Path) -> None:
    machine(SPEEDS)
    plan(Loader(batch_size=8, resident=False), memory=Memory(tmp_path / "one.json", writes=False))
    (tmp_path / "file").write_text("")
    plan(Loader(batch_size=8, resident=False), memory=Memory(tmp_path / "file/one.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_data_set_too_large_to_keep_is_not_kept(machine: Callable[..., Machine]) -> None:
    machine(SPEEDS)
    made = plan(Loader(batch_size=8, resident_budget=1000))
    assert not made.settings.resident
    assert made.rows[-1].note == "the data set takes 0 MiB of 0"


def test_insisting_on_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(JobError, match="loader: resident: the data set takes 0 MiB of 0; change these keys"):
        plan(Loader(batch_size=8, resident=True, resident_budget=1000))


def test_what_is_decoded_at_each_use_is_brought_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bearable, "cpu_count", lambda: 2)
    split = Split(Encoded(["a.jpg"] * 64, Form(8, 8, 3, resize=True)), SPLIT.labels)
    rows = candidates(split, Loader(), CPU)
    assert rows[0].note == "there is not the memory or disk to keep it decoded"
    assert [row.settings.num_workers for row in rows[1:]] == [0, 1, 2]


def test_workers_double_up_to_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, counts in ((1, [0, 1]), (2, [0, 1, 2]), (6, [0, 1, 2, 4, 6]), (8, [0, 1, 2, 4, 8])):
        monkeypatch.setattr(bearable, "cpu_count", lambda cpus=cpus: cpus)
        assert worker_counts() == counts


def test_pinning_is_tried_both_ways_on_a_gpu_only() -> None:
    best = Settings(8, False, 2, pin_memory=True, prefetch_factor=2)
    assert [str(row.settings) for row in refinements(best, SPLIT, Loader(), GPU)] == [
        "2 workers, prefetch 4, pinned",
        "2 workers, prefetch 8, pinned",
        "2 workers, prefetch 2",
        "2 workers, prefetch 2, pinned, forkserver",
    ]
    fixed = Loader(prefetch_factor=2, pin_memory=True, start_method="fork")
    assert refinements(best, SPLIT, fixed, GPU) == []
    assert all("pinned" not in str(row.settings) for row in candidates(SPLIT, Loader(pin_memory=True), CPU))


def test_a_small_shared_memory_rules_workers_out(tmp_path: Path) -> None:
    big = Split(np.broadcast_to(np.zeros(1, np.uint8), (8, 4000, 4000, 3)), np.zeros(8, np.int64))
    [row] = candidates(big, Loader(batch_size=256, resident=False, num_workers=64, prefetch_factor=64), CPU)
    assert row.note.startswith("/dev/shm has ")
    assert row.note.endswith("are needed: start with --shm-size")
    assert refusal(Settings(8, False, 0), big) == ""


def test_little_memory_rules_workers_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bearable, "available_memory", lambda: 400 * 2**20)
    assert refusal(Settings(8, False, 2, prefetch_factor=2), SPLIT) == ""
    assert refusal(Settings(8, False, 4, prefetch_factor=2), SPLIT) == (
        "workers and their batches take 256 MiB of the 200 that may be used"
    )


def test_few_open_files_rule_workers_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (400, 4096))
    assert refusal(Settings(8, False, 4, prefetch_factor=8), SPLIT) == ""
    assert refusal(Settings(8, False, 8, prefetch_factor=8), SPLIT) == (
        "432 open files are needed, 400 are allowed: raise ulimit -n"
    )


def test_real_workers_are_measured_and_gone_afterwards() -> None:
    import multiprocessing

    pixels = Pixels.on(CPU, (0.5,) * 3, (0.5,) * 3)
    settings = Settings(8, False, 1, prefetch_factor=2)
    batches = TrainingBatches(SPLIT, settings, CPU, pixels, Augment(), 0)
    assert tuning.images_per_second(batches.epoch(0), None, CPU, 0.0) > 0
    assert len(multiprocessing.active_children()) == 1
    batches.close()
    assert multiprocessing.active_children() == []
    assert len(list(batches.epoch(1))) == 8, "closed, it begins anew"
    batches.close()

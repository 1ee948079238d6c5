"""The seam to the accelerator, as far as it can be shown without one."""

import os
from pathlib import Path

import pytest
import torch

from job import device
from job.device import (
    available_memory,
    cgroup_cpus,
    choose,
    cpu_count,
    most_threads,
    one_ahead,
    refuse_unsupported,
    settle_compile,
    settle_threads,
)
from job.doctor import examine
from job.errors import JobError
from job.planning import plan
from job.spec.load import parse
from job.spec.schema import Train

TORCH_2_14_CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)])
def test_a_gpu_with_code_for_it_is_taken(capability: tuple[int, int]) -> None:
    refuse_unsupported("GPU", capability, TORCH_2_14_CUDA_13)


@pytest.mark.parametrize(("name", "capability"), [("Tesla P100", (6, 0)), ("Tesla V100", (7, 0))])
def test_a_gpu_without_code_is_refused_by_name(name: str, capability: tuple[int, int]) -> None:
    with pytest.raises(JobError) as caught:
        refuse_unsupported(name, capability, TORCH_2_14_CUDA_13)
    assert str(caught.value).startswith(
        f"GPU {name} (sm_{capability[0]}{capability[1]}): this build of torch has no code"
    )


def test_portable_code_runs_on_later_gpus() -> None:
    refuse_unsupported("new", (13, 0), ["sm_90", "compute_120"])
    with pytest.raises(JobError):
        refuse_unsupported("old", (8, 0), ["compute_90"])


def test_letters_after_the_number_are_no_obstacle() -> None:
    refuse_unsupported("H100", (9, 0), ["sm_90a"])


def test_the_cgroup_quota_is_read_in_both_versions(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "two/cpu.max").write_text("150000 100000\n")
    assert cgroup_cpus(tmp_path / "two") == (150000, 100000)
    (tmp_path / "two/cpu.max").write_text("max 100000\n")
    assert cgroup_cpus(tmp_path / "two") is None
    (tmp_path / "one/cpu").mkdir(parents=True)
    (tmp_path / "one/cpu/cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "one/cpu/cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_cpus(tmp_path / "one") == (50000, 100000)
    assert cgroup_cpus(tmp_path / "none") is None


def test_half_a_cpu_is_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cgroup_cpus", lambda _: (50000, 100000))
    assert cpu_count() == 1


def test_the_cgroup_limits_what_memory_is_left(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 1000 kB\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 1000 * 1024
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("200000\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 300000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path / "meminfo", tmp_path) == 1000 * 1024


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_what_needs_a_gpu_is_refused_on_cpu(precision: str) -> None:
    with pytest.raises(JobError, match=f"train.precision: {precision} needs a GPU"):
        choose(Train.model_validate({"device": "cpu", "precision": precision}), batch_norm=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_asking_for_a_gpu_that_is_not_there() -> None:
    with pytest.raises(JobError, match="no GPU can be used here"):
        choose(Train(device="cuda"), batch_norm=True)


def test_what_is_compiled_on_cpu_is_fp32_unless_the_spec_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "native_bf16", lambda: True)
    found = choose(Train(device="cpu", compile=True), batch_norm=True)
    assert (found.precision, found.reasons["precision"]) == (
        "fp32",
        "compiled bf16 gives some networks NaN gradients on CPU",
    )
    assert choose(Train(device="cpu", compile=True, precision="bf16"), batch_norm=True).precision == "bf16"


@pytest.mark.parametrize(
    ("native", "batch_norm", "precision"), [(True, True, "bf16"), (True, False, "fp32"), (False, True, "fp32")]
)
def test_a_cpu_with_bf16_uses_it_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, native: bool, batch_norm: bool, precision: str
) -> None:
    monkeypatch.setattr(device, "native_bf16", lambda: native)
    assert choose(Train(device="cpu"), batch_norm=batch_norm).precision == precision


def test_every_choice_has_a_reason() -> None:
    chosen = choose(Train(device="cpu"), batch_norm=True)
    assert (chosen.kind, chosen.compile) == ("cpu", False)
    assert set(chosen.reasons) >= {"device", "precision", "compile", "channels_last", "threads"}


def test_bf16_on_cpu_is_the_users_choice() -> None:
    chosen = choose(Train(device="cpu", precision="bf16"), batch_norm=False)
    with chosen.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "seconds", "pays"), [("cpu", 1e6, False), ("cuda", 5.0, False), ("cuda", 3600.0, True)]
)
def test_compiling_has_to_pay(kind: str, seconds: float, pays: bool) -> None:
    chosen = device.Device(kind, "x", "fp32", False, False, 1)
    assert settle_compile(chosen, "auto", seconds).compile is pays
    assert settle_compile(chosen, False, seconds) is chosen


def on_cpu(threads: int) -> device.Device:
    return device.Device("cpu", "x", "fp32", False, False, threads, {"threads": "all"})


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The counts torch is set to, one after the other."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    counts: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    return counts


def test_threads_that_wait_for_each_other_are_given_up(threads: list[int]) -> None:
    speeds = iter([200.0, 900.0, 3000.0, 2500.0])
    settled, rate = settle_threads(on_cpu(8), Train(), lambda: next(speeds))
    assert (settled.threads, rate) == (2, 3000.0)
    assert threads == [4, 2, 1, 2]
    assert settled.reasons["threads"] == "measured images/s by threads: 1: 2,500, 2: 3,000, 4: 900, 8: 200"


def test_a_small_gain_keeps_the_count_and_so_the_last_bits(threads: list[int]) -> None:
    speeds = iter([1000.0, 1200.0, 1100.0])
    settled, rate = settle_threads(on_cpu(4), Train(), lambda: next(speeds))
    assert (settled.threads, rate) == (4, 1000.0)
    assert threads[-1] == 4


@pytest.mark.parametrize("train", [Train(threads=4), Train(deterministic=True)])
def test_nothing_is_tried_where_the_count_is_fixed(threads: list[int], train: Train) -> None:
    speeds = iter([1000.0])
    assert settle_threads(on_cpu(4), train, lambda: next(speeds)) == (on_cpu(4), 1000.0)
    assert threads == []


def test_the_count_is_that_of_spec_environment_and_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_count", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert most_threads(2)[0] == 2
    assert most_threads("auto") == (3, "as OMP_NUM_THREADS says")
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert most_threads("auto")[0] == 6


def test_waiting_is_brief_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    device.calm_waiting()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    device.calm_waiting()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    device.calm_waiting()
    assert os.environ["GOMP_SPINCOUNT"] == device.SPIN


class Recorder:
    """Copies that only say what they do."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def start(self, batch: int) -> str:
        self.log.append(f"start {batch}")
        return str(batch)

    def finish(self, copying: str) -> int:
        self.log.append(f"finish {copying}")
        return int(copying)


def test_copies_are_one_batch_ahead() -> None:
    recorder = Recorder()
    batches = one_ahead(iter([1, 2, 3]), recorder)
    assert next(batches) == 1
    assert recorder.log == ["start 1", "start 2", "finish 1"]
    assert list(batches) == [2, 3]
    assert recorder.log[3:] == ["start 3", "finish 2", "finish 3"]
    assert list(one_ahead(iter([]), recorder)) == []


def test_on_cpu_batches_come_as_they_are() -> None:
    batch = (torch.ones(2), torch.zeros(2))
    [brought] = device.Device("cpu", "test", "fp32", False, False, 1).ahead(iter([batch]))
    assert brought is batch


@pytest.mark.gpu
def test_on_a_gpu_batches_arrive_whole_and_in_order() -> None:
    gpu = device.Device("cuda", "test", "fp32", False, False, 1)
    sent = [(torch.full((1000, 1000), number).pin_memory(), torch.tensor([number])) for number in range(8)]
    for number, (images, labels) in enumerate(gpu.ahead(iter(sent))):
        assert images.is_cuda
        assert bool((images == number).all())
        assert labels.tolist() == [number]


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A P100, for which a torch for CUDA 13 has no code."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index=0: "Tesla P100-SXM2-16GB")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index=0: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _index=0: (15 * 2**30, 16 * 2**30))


@pytest.mark.usefixtures("old_gpu")
def test_a_gpu_without_code_is_refused_before_data_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("job.data.dataset.locate", lambda _spec: pytest.fail("data was looked for"))
    with pytest.raises(JobError) as refused:
        plan(parse("dataset: {name: cifar10}\nmodel: {name: tutorial_net}\n", "spec.yaml"), fetch=True)
    assert str(refused.value) == (
        "GPU Tesla P100-SXM2-16GB (sm_60): this build of torch has no code for it, only for sm_75, sm_80, sm_90; "
        "use an image whose torch was built for it (P100, V100: make image VARIANT=cu12), or train.device: cpu"
    )
    with pytest.raises(pytest.fail.Exception, match="data was looked for"):
        plan(parse("dataset: {name: cifar10}\nmodel: {name: tutorial_net}\ntrain: {device: cpu}\n", "x"), fetch=True)


@pytest.mark.usefixtures("old_gpu")
def test_the_doctor_tells_a_gpu_without_code() -> None:
    lines, fine = examine(None)
    assert not fine
    told = [
        line for line in lines if line.startswith("!!  GPU 0: GPU Tesla P100-SXM2-16GB (sm_60): this build of torch")
    ]
    assert len(told) == 1
    assert "VARIANT=cu12" in told[0]

"""The table of peak rates, and what is made of it."""

import pytest

from job.peaks import _table, peak, training_flops


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A10", "tf32", 62.5),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla V100-PCIE-16GB", "fp16", 112),
        ("Tesla P100-PCIE-16GB", "fp32", 9.3),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA GB200", "bf16", 2500),
        ("Tesla T4", "fp16", 65),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(name: str, precision: str, tflops: float) -> None:
    found = peak(name, precision)
    assert found is not None
    assert found.flops == pytest.approx(tflops * 1e12)
    assert found.source


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("Tesla T4", "bf16"),
        ("NVIDIA A1000", "bf16"),
        ("NVIDIA H100 NVL", "tf32"),
        ("NVIDIA H200 NVL", "bf16"),
        ("AMD EPYC", "fp32"),
    ],
)
def test_what_is_not_in_the_table_is_not_guessed(name: str, precision: str) -> None:
    assert peak(name, precision) is None


def test_every_row_has_a_source_and_tensor_cores_are_faster() -> None:
    for row in _table():
        rates = [row[precision] for precision in ("fp32", "tf32", "fp16") if precision in row]
        assert row["source"]
        assert rates == sorted(rates)
        assert row.get("bf16", row.get("fp16")) == row.get("fp16")


def test_training_takes_three_forward_passes() -> None:
    assert training_flops(1000, 5e6) == 15e9

"""What a run may cost, from the table of shapes."""

import pytest

from job.cloud.shapes import table, usd_per_hour
from job.errors import SpecError
from job.spec.schema import Resources


def test_every_shape_has_a_price_and_a_date() -> None:
    as_of, shapes = table()
    assert as_of.startswith("20")
    assert all(shape.usd_per_hour > 0 and shape.gpus > 0 for shape in shapes.values())


def test_preemptible_is_half() -> None:
    full, half = Resources(shape="VM.GPU3.1"), Resources(shape="VM.GPU3.1", preemptible=True)
    assert usd_per_hour(half) == pytest.approx(0.5 * (usd_per_hour(full) or 0))


def test_no_shape_no_price() -> None:
    assert usd_per_hour(Resources()) is None
    assert usd_per_hour(Resources(shape="VM.GPU.NEW.1")) is None


def test_a_cap_needs_a_known_price() -> None:
    with pytest.raises(
        SpecError, match=r"VM\.GPU\.A10 has no known price, and max_cost needs one; did you mean VM\.GPU\.A10"
    ):
        usd_per_hour(Resources(shape="VM.GPU.A10", max_cost=5.0))


def test_preemptible_where_oracle_has_none() -> None:
    with pytest.raises(SpecError, match=r"VM\.GPU\.A10\.1 is not offered as preemptible; only VM\.GPU2\.1"):
        usd_per_hour(Resources(shape="VM.GPU.A10.1", preemptible=True))


def test_only_vm_shapes_are_preemptible() -> None:
    assert {name for name, shape in table()[1].items() if shape.preemptible} == {
        "VM.GPU2.1", "VM.GPU3.1", "VM.GPU3.2", "VM.GPU3.4"
    }  # fmt: skip


def test_what_a_name_says_is_what_the_table_says() -> None:
    """VM shapes have neither local disks nor RDMA, and a name ends in its count of GPUs."""
    for name, shape in table()[1].items():
        assert int(name.rpartition(".")[2]) == shape.gpus
        if name.startswith("VM."):
            assert (shape.nvme_tb, shape.rdma_gbps) == (0, 0)
        assert shape.arch.startswith(("sm_", "gfx"))

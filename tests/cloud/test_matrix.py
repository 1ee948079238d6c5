"""Every cell is tried once; the report changes the order and leaves nothing out."""

from hypothesis import given
from hypothesis import strategies as st

from job.cloud.causes import Cause, Kind
from job.cloud.matrix import Cell, Closed, cells

DOMAINS = {"AD-1": ["FD-1", "FD-2"], "AD-2": ["FD-1"]}
SHAPES = ["small", "large"]
EVERY = cells(SHAPES, DOMAINS, {})


def test_without_a_report_the_order_is_that_of_the_spec() -> None:
    assert [str(cell) for cell in EVERY[:3]] == ["small in AD-1, FD-1", "small in AD-1, FD-2", "small in AD-2, FD-1"]
    assert [cell.shape for cell in EVERY] == ["small"] * 3 + ["large"] * 3


def test_a_domain_without_fault_domains_is_one_cell() -> None:
    assert cells(["small"], {"Uocm:AD-1": []}, {}) == [Cell("small", "Uocm:AD-1", None)]
    assert str(Cell("small", "Uocm:AD-1", None)) == "small in AD-1"


@given(st.dictionaries(st.sampled_from(EVERY), st.sampled_from(["AVAILABLE", "OUT_OF_HOST_CAPACITY", "NEW_WORD"])))
def test_the_report_only_suggests(report: dict[Cell, str]) -> None:
    ordered = cells(SHAPES, DOMAINS, report)
    assert sorted(map(str, ordered)) == sorted(map(str, EVERY))
    available = [cell for cell in ordered if report.get(cell) == "AVAILABLE"]
    full = [cell for cell in ordered if report.get(cell) == "OUT_OF_HOST_CAPACITY"]
    assert ordered[: len(available)] == available
    assert ordered[len(ordered) - len(full) :] == full
    assert available == [cell for cell in EVERY if cell in available], "within a rank, the spec's order"


def closing(kind: Kind) -> list[Cell]:
    closed = Closed()
    closed.add(EVERY[0], Cause(kind, ""))
    return list(closed.open(EVERY))


def test_a_cause_closes_what_it_reaches() -> None:
    assert closing("capacity") == EVERY
    assert closing("limit") == EVERY[2:], "the shape in that availability domain"
    assert closing("shape") == EVERY[2:]
    assert closing("authorisation") == []
    assert closing("refused") == []

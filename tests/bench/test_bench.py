"""The benchmarks' own arithmetic; what they measure is not for a test."""

import importlib
import json
from pathlib import Path

import pytest

from tests.bench import common, run, tutorial
from tests.bench.common import Ratio


@pytest.mark.parametrize(
    ("ratio", "held"),
    [
        (Ratio("speed", 2.0, 2.0), True),
        (Ratio("speed", 1.9, 2.0), False),
        (Ratio("memory", 700, 700, at_most=True), True),
        (Ratio("memory", 701, 700, at_most=True), False),
        (Ratio("shown only", 1.0), None),
    ],
)
def test_a_ratio_is_held_against_its_bar(ratio: Ratio, held: bool | None) -> None:
    assert ratio.held is held


def test_text_and_json_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common.finish("x", [Ratio("ours ÷ theirs", 2.5, 2.0)], {"a": [1.0]}, tmp_path / "x.json")
    assert capsys.readouterr().out == "x: ours ÷ theirs: 2.5×   (bar: at least 2, held)\n"
    found = json.loads((tmp_path / "x.json").read_text())
    assert (found["ratios"][0]["value"], found["ratios"][0]["held"], found["samples"]) == (2.5, True, {"a": [1.0]})
    run.table(tmp_path, ["x", "y"], ["y"])
    rows = capsys.readouterr().out.splitlines()
    assert "| x | ours ÷ theirs | 2.5× | ≥ 2, held |" in rows
    assert "| y | failed | | |" in rows


def test_every_benchmark_can_be_run_by_name() -> None:
    for name in run.names():
        assert callable(importlib.import_module(f"tests.bench.{name}").main), name


def test_the_ratios_of_the_tutorial() -> None:
    timings = [
        tutorial.Timing(tutorial.LAB, 100.0, 90.0, 0.54),
        tutorial.Timing("cifar10-fast.yaml", 8.0, 3.0, 0.65),
        tutorial.Timing("cifar10.yaml", 90.0, 80.0, 0.85),
        tutorial.Timing("cifar10-long.yaml", 240.0, 230.0, 0.89),
    ]
    found = [ratio.value for ratio in tutorial.ratios(tutorial.ROWS, timings)]
    assert found == [12.5, 30.0, 0.9, 2.4]

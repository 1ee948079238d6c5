"""Runs side by side: what is ahead is marked, what is equal is left out, and nothing in a name is an order."""

import json
from collections.abc import Callable
from pathlib import Path

from job.results import compare
from job.results.schema import Report, Seconds

Build = Callable[..., Report]


def test_the_table_shows_results_differences_and_classes(build: Build) -> None:
    slow = build(run_id="slow", spec={"optimizer": {"lr": 0.1, "name": "sgd"}}, seconds=Seconds(train=90.0))
    fast = build(run_id="fast", spec={"optimizer": {"lr": 0.2, "name": "sgd"}}, seconds=Seconds(train=45.5))
    text = compare.as_text([slow, fast])
    lines = {line.split("  ")[0]: line.split()[-2:] for line in text.splitlines() if line}
    assert text.splitlines()[0].split() == ["slow", "fast"]
    assert lines["training, s"] == ["45.5", "*"], "the best is marked"
    assert lines["optimizer.lr"] == ["0.1", "0.2"]
    assert "optimizer.name" not in lines, "equal keys are left out"
    assert "*" not in text.split("test accuracy")[1].splitlines()[0], "equals have no best"
    assert "accuracy by class" in text
    assert lines["plane"][0].endswith("%")


def test_a_run_that_failed_stands_beside_one_that_did_not(build: Build, partial: Report) -> None:
    text = compare.as_text([build(run_id="whole"), partial])
    assert "complete" in text
    assert partial.status in text
    assert json.loads(compare.as_json([build(), partial]))["result"]["test accuracy"][1] is None


def test_json_holds_the_numbers(build: Build) -> None:
    report = build(run_id="one")
    value = json.loads(compare.as_json([report, report]))
    assert value["runs"] == ["one", "one"]
    assert value["result"]["test accuracy"] == [report.accuracy] * 2
    assert value["per_class"]["plane"] == [report.per_class["plane"]] * 2
    assert value["spec"] == {}


def test_the_page_needs_nothing_and_runs_nothing(build: Build, hostile: tuple[str, ...], tmp_path: Path) -> None:
    reports = [build(names=hostile, run_id=name, spec={"name": name}) for name in hostile[:3]]
    compare.write_html(tmp_path / "page.html", reports)
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert "\u202e" not in page
    assert "<td" in page

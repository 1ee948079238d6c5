"""report.json: what it starts with, that it survives a round trip, and that whatever is no report is one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from job.errors import JobError
from job.results import schema
from job.results.metrics import Predictions, measure
from job.results.report import layout
from job.results.schema import Report, clean, read

Build = Callable[..., Report]


def save(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_it_starts_with_the_five_keys_of_the_contract(build: Build, partial: Report) -> None:
    for report in (build(), partial):
        keys = list(json.loads(layout(report.model_dump(mode="json"))))
        assert keys[:5] == ["schema_version", "run_id", "status", "accuracy", "per_class"]


def test_what_is_written_is_read_back(build: Build, partial: Report, tmp_path: Path) -> None:
    for report in (build(), partial):
        path = save(tmp_path / "report.json", layout(report.model_dump(mode="json")))
        assert read(path) == report


def test_a_line_for_each_row(build: Build) -> None:
    text = layout(build(names=["a", "b"]).model_dump(mode="json"))
    assert '\n    "confusion": [\n' in text
    assert '\n      "a": {"accuracy": ' in text


@pytest.mark.parametrize("value", [{}, [], {"a": [], "b": {}}, [[1, 2], [3, "[\n 4 ]"]], "text", None, {"é\n": [1.5]}])
def test_the_layout_is_json(value: Any) -> None:
    assert json.loads(layout(value)) == value


def test_every_field_says_what_it_is() -> None:
    records = [one for one in vars(schema).values() if isinstance(one, type) and issubclass(one, schema.Record)]
    assert len(records) > 15
    silent = [
        f"{record.__name__}.{name}"
        for record in records
        for name, field in record.model_fields.items()
        if not field.description
    ]
    assert silent == []


def test_numbers_that_are_none_become_null() -> None:
    epoch = schema.Epoch(
        epoch=1,
        train_loss=float("nan"),
        lr=float("inf"),
        seconds=1.0,
        images_per_second=None,
        evaluated_on=None,
        loss=None,
        accuracy=None,
    )
    assert (epoch.train_loss, epoch.lr) == (None, None)
    with pytest.raises(ValidationError, match="gap"):  # which cannot be null
        schema.Overfitting(gap=float("nan"), warning=None)


def test_numpy_and_broken_text_are_made_fit() -> None:
    assert clean({"a": np.float32(0.5), "b": np.arange(2), "c": [np.int64(3)], "d": (np.nan,)}) == {
        "a": 0.5,
        "b": [0, 1],
        "c": [3],
        "d": [None],
    }
    text = clean("x\udce9")  # how Python shows a file name that is not UTF-8
    assert text == "x\\udce9"
    text.encode()


def test_metrics_are_taken_over_whole(predictions: Callable[..., Predictions]) -> None:
    metrics = measure(predictions(3), ["a", "b", "c"])
    result = schema.TestResult.of(metrics)
    assert result.confusion == tuple(map(tuple, metrics.confusion.tolist()))
    assert result.per_class["b"].correct == metrics.per_class["b"].correct
    assert (result.accuracy, result.interval, result.ece) == (metrics.accuracy, metrics.interval, metrics.ece)
    assert schema.SplitResult.of(metrics).count == metrics.count


def test_the_headline_is_that_of_the_test_split(build: Build) -> None:
    with pytest.raises(ValidationError, match=r"accuracy differs from test\.accuracy"):
        build(accuracy=0.999)
    with pytest.raises(ValidationError, match=r"per_class differs from test\.per_class"):
        build(per_class={"plane": 1.0})


def test_a_picture_lies_in_its_place() -> None:
    for path in ("../../etc/passwd", "plots/mistakes/../../x.png", "/plots/mistakes/1.png", "plots/mistakes/1.png\n"):
        with pytest.raises(ValidationError, match="picture"):
            schema.Mistake(index=0, truth="a", predicted="b", probability=0.5, picture=path)


def edited(report: Report, **changes: Any) -> dict[str, Any]:
    return report.model_dump(mode="json") | changes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is damaged, not JSON"),
        ('{"schema_version": 1, "run', "is damaged, not JSON"),
        ("[" * 100_000, "is damaged, not JSON"),
        ("9" * 5000, "is damaged, not JSON"),
        ("[]", "is not a report of this job"),
        ('"text"', "is not a report of this job"),
        ('{"accuracy": 0.5}', "is not a report of this job"),
        ('{"schema_version": 2}', "has schema version '2', this program reads version 1"),
        ('{"schema_version": "x\\ny"}', "this program reads version 1"),
        ('{"schema_version": true, "run_id": 3}', "run_id: Input should be a valid string"),
        ('{"schema_version": 1}', "run_id: Field required (and "),
    ],
)
def test_what_is_no_report_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = save(tmp_path / "report.json", text)
    with pytest.raises(JobError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert says in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"accuracy": "much"}, "accuracy: Input should be a valid number"),
        ({"status": "great"}, "status: Input should be 'complete', 'interrupted' or 'failed'"),
        ({"started": "yesterday"}, "started: String should match pattern"),
        ({"from\nthe future": 1}, "from the future: Extra inputs are not permitted"),
    ],
)
def test_a_changed_report_says_which_key(build: Build, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = save(tmp_path / "report.json", edited(build(), **changes))
    with pytest.raises(JobError) as caught:
        read(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_matrix_that_lost_a_row_is_named(build: Build, tmp_path: Path) -> None:
    data = edited(build())
    data["test"]["confusion"].pop()
    with pytest.raises(JobError, match="confusion is not 4 by 4"):
        read(save(tmp_path / "report.json", data))


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="there is no report here; give the folder of a run"):
        read(tmp_path / "report.json")
    save(tmp_path / "file", "")
    with pytest.raises(JobError, match="there is no report here; give a run's folder"):
        read(tmp_path / "file" / "report.json")
    with pytest.raises(JobError, match="is a directory"):
        read(tmp_path)

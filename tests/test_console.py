"""What a run prints: the lab's lines in plain text, one object a line in JSON, a bar on a terminal."""

import io
import json

import pytest

from job import console
from job.events import (
    Begun,
    Ended,
    EpochEnded,
    Event,
    Note,
    Planned,
    Progress,
    Result,
    RunningLoss,
    Saved,
    Stored,
    Tuned,
)

EVENTS: list[Event] = [
    Begun("digits-1", "runs/digits-1", resumed=False),
    Planned((("data", "digits"), ("store", "runs"))),
    Note("3 images are grey", "warning"),
    Tuned((("resident", 12345.6, ""), ("2 workers, prefetch 2", None, "not needed")), "resident", "it never waits"),
    RunningLoss(1, 2000, 2.1234),
    Progress(1, 2, 10, 20, 1000.0, 75.0),
    EpochEnded(1, 2, 2.0, 0.1, 3.0, 1000.0, "validation", 1.5, 0.5),
    Saved("runs/digits-1/checkpoints/step-00000020.pt", 1, 0),
    Result(0.5512, (0.5414, 0.5609), 10000, 1.25, (("plane", 0.6), ("[bold]cat", None)), "last"),
    Ended("digits-1", 0.5512, 12.3, "runs/digits-1/report.html"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(kind: str, *events: Event) -> list[str]:
    out = io.StringIO()
    with console.make(kind, out) as screen:
        for event in events:
            screen.show(event)
    return out.getvalue().splitlines()


def test_the_running_loss_has_the_labs_form() -> None:
    assert shown("plain", RunningLoss(1, 2000, 2.1234)) == ["[1,  2000] loss: 2.123"]


def test_the_lag_of_the_store_is_shown() -> None:
    progress = Progress(1, 2, 10, 20, 1000.0, 75.0, upload="last durable checkpoint 40 s ago")
    line = console.progress_line(progress)
    assert line == "Epoch 1/2, step 10/20, 1,000 images/s, 1:15 left, last durable checkpoint 40 s ago"
    terminal = Terminal()
    with console.make("auto", terminal) as screen:
        screen.show(progress)
        screen.show(Stored("oci://bucket@space/run/checkpoints/step-00000020.pt", 1, 0))
    assert "last durable checkpoint 40 s ago" in terminal.getvalue()
    assert "Stored oci://bucket@space/run/checkpoints/step-00000020.pt" in terminal.getvalue()


def test_the_result_has_the_labs_form() -> None:
    assert shown("plain", EVENTS[8]) == [
        "Accuracy of the network on the 10000 test images: 55.12% (95 % interval 54.14% to 56.09%)",
        "Accuracy for class: plane is 60.0%",
    ]


def test_plain_lines_hold_no_control_codes() -> None:
    text = "\n".join(shown("plain", *EVENTS))
    assert "\x1b" not in text
    assert "Epoch 1/2: training loss 2.0000, validation loss 1.5000, validation accuracy 50.00%" in text
    assert text.splitlines()[-1] == "Report: runs/digits-1/report.html"


def test_a_pipe_gets_plain_lines() -> None:
    assert shown("auto", *EVENTS) == shown("plain", *EVENTS)


def test_json_is_one_object_a_line() -> None:
    lines = [json.loads(line) for line in shown("json", *EVENTS)]
    assert [line["event"] for line in lines] == [type(event).__name__ for event in EVENTS]
    assert lines[4] | {"time": 0} == {"event": "RunningLoss", "time": 0, "epoch": 1, "step": 2000, "loss": 2.1234}


def test_a_terminal_shows_everything_and_takes_names_as_text() -> None:
    out = Terminal()
    with console.make("auto", out) as screen:
        assert isinstance(screen, console.LiveConsole)
        for event in EVENTS:
            screen.show(event)
    text = out.getvalue()
    for expected in (
        "digits-1",
        "3 images are grey",
        "[1,  2000] loss: 2.123",
        "1000",
        "[bold]cat",
        "55.12%",
        "report.html",
    ):
        assert expected in text


@pytest.mark.parametrize(("seconds", "text"), [(5.04, "5.0 s"), (75.2, "1:15"), (3700.0, "1:01:40")])
def test_clock(seconds: float, text: str) -> None:
    assert console.clock(seconds) == text

"""The pages: self-contained, the same each time, and no name in them is ever more than text."""

import base64
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from numpy.typing import NDArray
from PIL import Image

from job.errors import JobError
from job.results import schema
from job.results.metrics import Predictions, measure
from job.results.report import LARGE, SMALL, render, write_report
from job.results.schema import Report, read
from job.results.words import NAME, shorten, shown
from job.runfolder import RunFolder

Build = Callable[..., Report]
Pictures = Callable[..., list[NDArray[np.uint8]]]
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
DOT = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP6DwABBQECz6AuzQAAAABJRU5ErkJggg==")
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, text outside of the style sheet, headings in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.style = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            self.style += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "digits-1")
    folder.make()
    return folder


@pytest.fixture
def written(folder: RunFolder, pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> Callable[[Report], Page]:
    """Writes a report and gives its page. The plots are dots: drawing them is tested elsewhere, and takes its time."""

    def dots(report: Report) -> dict[str, bytes]:
        names = ("per_class.png", "confusion.png", "calibration.png") if report.test is not None else ()
        return dict.fromkeys((*names, *(("curves.png",) if report.history else ())), DOT)

    def write(report: Report) -> Page:
        monkeypatch.setattr("job.results.plots.draw", dots)
        write_report(folder, report, pictures(report))
        return page(folder)

    return write


def page(folder: RunFolder) -> Page:
    return Page(folder.report("html").read_text(encoding="utf-8"))


def test_the_folder_holds_what_the_contract_names(build: Build, folder: RunFolder, pictures: Pictures) -> None:
    report = build(mistakes=2)
    write_report(folder, report, pictures(report))
    files = {path.relative_to(folder.root).as_posix() for path in folder.root.rglob("*") if path.is_file()}
    plots = {f"plots/{name}.png" for name in ("curves", "per_class", "confusion", "calibration")}
    mistakes = {"plots/mistakes/01.png", "plots/mistakes/02.png"}
    assert files == {"report.json", "report.md", "report.html", *plots, *mistakes}
    saved = read(folder.report("json"))
    assert [one.picture for one in saved.mistakes] == ["plots/mistakes/01.png", "plots/mistakes/02.png"]
    assert saved.model_copy(update={"mistakes": report.mistakes}) == report


def test_rendering_again_gives_the_same_bytes(build: Build, folder: RunFolder, pictures: Pictures) -> None:
    report = build()
    write_report(folder, report, pictures(report))
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    for path in before:
        if path.name != "report.json" and path.parent.name != "mistakes":
            path.unlink()
    render(folder)
    assert {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()} == before


def test_pictures_of_an_earlier_state_go(build: Build, partial: Report, folder: RunFolder, pictures: Pictures) -> None:
    for report in (build(mistakes=3), build(mistakes=1)):
        write_report(folder, report, pictures(report))
    assert [path.name for path in sorted((folder.plots / "mistakes").iterdir())] == ["01.png"]
    write_report(folder, partial, [])
    assert list(folder.plots.rglob("*.png")) == []


def test_the_page_loads_nothing_and_runs_nothing(build: Build, written: Callable[[Report], Page]) -> None:
    found = written(build())
    assert {tag for tag, _ in found.tags} & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "a",
    } == set()
    policies = [one["content"] for one in found.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [POLICY]
    sources = [str(value) for _, attributes in found.tags for name, value in attributes.items() if name == "src"]
    assert len(sources) == 4 + 4  # plots and mistakes
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    loading = {"href", "srcset", "data", "poster", "action", "background"}
    assert [
        name for _, attributes in found.tags for name in attributes if name in loading or name.startswith("on")
    ] == []
    assert "url(" not in found.style
    assert "@import" not in found.style


def test_the_page_can_be_listened_to(build: Build, written: Callable[[Report], Page]) -> None:
    found = written(build())
    assert found.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in found.all("img"))
    levels = [int(tag[1]) for tag, _ in found.tags if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    labels = {one["aria-labelledby"] for one in found.all("section")}
    assert labels == {one["id"] for one in found.all("h2")}
    assert all("scope" in one for one in found.all("th"))


def test_the_page_says_what_there_is_to_say(build: Build, written: Callable[[Report], Page]) -> None:
    report = build()
    assert report.test is not None
    low, high = report.test.interval
    text = written(report).text
    for said in (
        f"{report.accuracy:.1%}",
        f"95 % interval {low:.1%} to {high:.1%}, n = 400",
        f"{report.test.correct} of 400 test images are named correctly",
        "best on the validation part, from epoch 2 of 3",
        "the data leaks",
        "over-fitting: try augment.flip",
        "Training accuracy minus test accuracy: 15.0 points",
        "2 images are grey",
        "train/cat/1.png: truncated",
        "1 of the test images, pixel for pixel in the training data",
        "Batches of 64: brings 9,000 images/s",
        "starting and the rest",
        "the CPU's own",
        "seed: 0 # default",
        "betas: [0.9, 0.999] # default",
        "make setup",
    ):
        assert said in text, said
    assert "epochs: 3 # default" not in text


def test_a_run_that_failed_says_why(partial: Report, written: Callable[[Report], Page], folder: RunFolder) -> None:
    text = written(partial).text
    assert "The run failed before the test split was read" in text
    assert "epoch 1, step 3: the loss is nan; lower optimizer.lr" in text
    assert "the loss is nan" in folder.report("md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "changes",
    [
        {"names": ["no", "yes"]},
        {"names": [f"class {k}" for k in range(60)]},
        {"epochs": 1, "running_loss": (), "mistakes": 0},
        {"history": (), "running_loss": ()},
        {"train": None, "validation": None, "overfitting": None, "result": None, "loader": None},
        {"data": None, "model": None, "device": None, "environment": {}, "spec": {}, "reproduce": (), "warnings": ()},
        {"seconds": schema.Seconds(), "finished": None, "spec_sha256": None},
    ],
)
def test_whatever_is_missing_the_pages_are_whole(
    build: Build, written: Callable[[Report], Page], folder: RunFolder, changes: dict[str, Any]
) -> None:
    report = build(**changes)
    found = written(report)
    assert found.open == []
    assert f"{report.accuracy:.1%}" in found.text
    assert "None" not in found.text
    for kind in ("html", "md"):
        text = folder.report(kind).read_text(encoding="utf-8")
        assert "{{" not in text
        assert "{%" not in text


def test_classes_that_do_equally_well_are_counted(build: Build, written: Callable[[Report], Page]) -> None:
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    taken = np.array([0, 0, 1, 1, 2, 0, 3, 0])  # two classes whole, two by half
    metrics = measure(Predictions(np.eye(4, dtype=np.float32)[taken], labels), ["a", "b", "c", "d"])
    per_class = {name: one.accuracy for name, one in metrics.per_class.items()}
    test = schema.TestResult.of(metrics)
    text = written(build(accuracy=metrics.accuracy, per_class=per_class, test=test)).text
    assert "It is best at 2 classes alike (100.0%) and weakest at 2 classes alike (50.0%)." in text


def test_a_class_without_test_images_is_said_to_have_none(build: Build, written: Callable[[Report], Page]) -> None:
    whole = build()
    assert whole.test is not None
    empty = schema.ClassResult(accuracy=None, count=0, correct=0)
    per_class = {**whole.test.per_class, "empty": empty}
    confusion = (*((*row, 0) for row in whole.test.confusion), (0,) * 5)
    test = whole.test.model_copy(update={"per_class": per_class, "confusion": confusion})
    report = whole.model_copy(update={"test": test, "per_class": {**whole.per_class, "empty": None}})
    text = written(report).text
    assert "no test image" in text
    assert "weakest at empty" not in text


def test_hostile_names_are_text_in_html(
    build: Build, hostile: tuple[str, ...], written: Callable[[Report], Page]
) -> None:
    usual = {tag for tag, _ in written(build()).tags}
    data = build().data
    assert data is not None
    source = "<img src=x onerror=alert(1)>{{ 7*7 }}"
    found = written(build(names=hostile, data=data.model_copy(update={"source": source}), warnings=hostile))
    assert {tag for tag, _ in found.tags} <= usual
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert source in found.text
    for name in hostile:
        assert " ".join(shown(shorten(name, NAME)).split()) in found.text, name
        assert " ".join(shown(name).split()) in found.text, name  # among the warnings, in full
    assert "\u202e" not in found.text


def test_hostile_names_are_text_in_markdown(
    build: Build, hostile: tuple[str, ...], written: Callable[[Report], Page], folder: RunFolder
) -> None:
    written(build(names=hostile, warnings=hostile, environment=dict(zip(hostile, hostile, strict=True))))
    tokens = MarkdownIt("commonmark").enable("table").parse(folder.report("md").read_text(encoding="utf-8"))
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in [*tokens, *inline]}
    assert kinds & {"html_block", "html_inline", "link_open", "em_open", "code_inline", "fence", "s_open"} == set()
    images = [str(child.attrs["src"]) for child in inline if child.type == "image"]
    assert len(images) == 4 + 4
    assert all((folder.root / image).is_file() for image in images)
    lines = ["".join(child.content for child in token.children or ()) for token in tokens if token.type == "inline"]
    for name in hostile:
        assert lines.count(" ".join(shown(name).split())) >= 3, name  # class, warning, environment (twice)


def test_the_markdown_has_a_section_for_each_part(
    build: Build, written: Callable[[Report], Page], folder: RunFolder
) -> None:
    report = build()
    written(report)
    text = folder.report("md").read_text(encoding="utf-8")
    assert text.startswith(f"# digits: {report.accuracy:.1%} test accuracy\n")
    assert "> [!WARNING]\n> - the data leaks\n" in text
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    tables = sum(token.type == "table_open" for token in tokens)
    assert tables == 9  # splits, classes, confusions, mistakes, data, use, time, loader, environment
    assert sum(token.type == "code_block" for token in tokens) == 2  # the spec, how to run it again


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((8, 8, 3), (96, 96)), ((28, 28, 1), (112, 112)), ((32, 16, 3), (48, 96)), ((600, 300, 3), (128, 256))],
)
def test_pictures_come_at_a_size_the_eye_can_use(
    build: Build, folder: RunFolder, shape: tuple[int, int, int], expected: tuple[int, int]
) -> None:
    picture = np.zeros(shape, np.uint8)
    picture[: shape[0] // 2] = 255
    write_report(folder, build(mistakes=1), [picture])
    with Image.open(folder.plots / "mistakes/01.png") as image:
        assert image.size == expected  # width, height
        assert SMALL <= max(image.size) <= LARGE
        assert image.mode == ("L" if shape[2] == 1 else "RGB")
        smoothed = set(np.unique(np.asarray(image)).tolist()) != {0, 255}
        assert smoothed == (max(shape) > LARGE)


def test_a_lost_picture_is_no_reason_to_stop(build: Build, folder: RunFolder, pictures: Pictures) -> None:
    report = build(mistakes=2)
    write_report(folder, report, pictures(report))
    (folder.plots / "mistakes/02.png").unlink()
    render(folder)
    assert f"image {report.mistakes[1].index}" in page(folder).text
    assert len(page(folder).all("img")) == 4 + 1


def test_a_report_of_another_version_is_refused(folder: RunFolder) -> None:
    folder.report("json").write_text(json.dumps({"schema_version": 99}), encoding="utf-8")
    with pytest.raises(JobError, match="has schema version '99', this program reads version 1"):
        render(folder)
    assert not folder.report("html").exists()


def test_a_home_that_cannot_be_written_is_no_news(build: Build, folder: RunFolder, pictures: Pictures) -> None:
    """matplotlib would tell of it at each run; torch has no business here at all."""
    report = build(mistakes=0)
    write_report(folder, report, pictures(report))
    program = (
        "import sys, pathlib; from job.results.report import render; from job.runfolder import RunFolder; "
        "render(RunFolder(pathlib.Path(sys.argv[1]))); "
        "assert not {'torch', 'matplotlib.pyplot', 'scipy', 'rich'} & set(sys.modules)"
    )
    unwritable = {"HOME": "/proc/none", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": "", "MPLCONFIGDIR": ""}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(folder.root)],
        env={**os.environ, **unwritable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

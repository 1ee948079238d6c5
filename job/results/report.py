"""A run's report: report.json and its pictures written once, the pages made from them as often as wanted.

    write_report(folder, report, pictures)   # plots/mistakes/NN.png, report.json, then render
    render(folder)                           # report.json → plots/*.png, report.md, report.html

report.html needs no other file and loads nothing: images are data URIs and its policy forbids all else.
"""

import base64
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from job.results import words
from job.results.schema import Report, read
from job.results.view import CALIBRATED, view
from job.runfolder import RunFolder, atomic, disk_errors, write_text

TEMPLATES = Path(__file__).parent / "templates"
PLOTS = ("curves.png", "per_class.png", "confusion.png", "calibration.png")
SMALL, LARGE = 96, 256  # pixels: smaller pictures are enlarged for the eye, larger ones shrunk for the page
SCALE = 1.3  # pixels of a plot for each of the page, so that it is sharp on finer screens


@dataclass(frozen=True)
class Picture:
    """A PNG for embedding."""

    uri: str
    width: int  # on the page
    height: int


def write_report(folder: RunFolder, report: Report, pictures: Sequence[NDArray[np.uint8]]) -> None:
    """Writes everything a report consists of. `pictures` (H, W, C) show report.mistakes, in their order."""
    assert len(pictures) == len(report.mistakes)
    mistakes = folder.plots / "mistakes"
    with disk_errors(mistakes):
        mistakes.mkdir(parents=True, exist_ok=True)
    named = []
    for number, (mistake, picture) in enumerate(zip(report.mistakes, pictures, strict=True), 1):
        path = mistakes / f"{number:02d}.png"
        _write(path, _small_png(picture))
        named.append(mistake.model_copy(update={"picture": path.relative_to(folder.root).as_posix()}))
    report = report.model_copy(update={"mistakes": tuple(named)})
    _remove(set(mistakes.glob("*.png")) - {folder.root / str(mistake.picture) for mistake in named})
    write_text(folder.report("json"), layout(report.model_dump(mode="json")) + "\n")
    render(folder)


def render(folder: RunFolder) -> None:
    """Plots and pages from report.json. The same input gives the same bytes."""
    # matplotlib tells of a read-only home and of building its font list at every run; it copes with both by itself
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from job.results import plots

    report = read(folder.report("json"))
    drawn = plots.draw(report)
    with disk_errors(folder.plots):
        folder.plots.mkdir(parents=True, exist_ok=True)
    for name, png in drawn.items():
        _write(folder.plots / name, png)
    _remove({folder.plots / name for name in PLOTS if name not in drawn})
    pictures = {name: _picture(png, SCALE) for name, png in drawn.items()}
    for mistake in report.mistakes:
        if mistake.picture is not None and (path := folder.root / mistake.picture).is_file():
            pictures[mistake.picture] = _picture(path.read_bytes(), 1)
    write_text(folder.report("md"), _page("report.md.jinja", report, pictures))
    write_text(folder.report("html"), _page("report.html.jinja", report, pictures))


def layout(value: Any, indent: str = "") -> str:
    """JSON with a line for each innermost list or object: a confusion matrix keeps its rows."""
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if not any(isinstance(item, dict | list) for item in items):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    deeper = indent + "  "
    lines = [layout(item, deeper) for item in items]
    if isinstance(value, dict):
        lines = [f"{json.dumps(key, ensure_ascii=False)}: {line}" for key, line in zip(value, lines, strict=True)]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{deeper}" + f",\n{deeper}".join(lines) + f"\n{indent}{closing}"


def _page(template: str, report: Report, pictures: dict[str, Picture]) -> str:
    environment = _html() if template.endswith(".html.jinja") else _markdown()
    lines = words.spec_lines(report.spec, report.spec_defaults)
    marked = [f"{line}  # default" if default else line for line, default in lines]
    return environment.get_template(template).render(
        report=report,
        view=view(report),
        pictures=pictures,
        spec_lines=lines,
        spec_block=words.indented(marked),
        reproduce_block=words.indented(list(report.reproduce)),
        CALIBRATED=CALIBRATED,
    )


@cache
def _html() -> Environment:
    """Every value is escaped, and shown on one line without invisible orders."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: words.shown(value) if type(value) is str else value,
    )
    return _with_filters(environment)


@cache
def _markdown() -> Environment:
    """Every value is escaped for Markdown."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,  # noqa: S701 - finalize escapes; the rules of HTML are not those of Markdown
        undefined=StrictUndefined,
        finalize=words.markdown,
    )
    return _with_filters(environment)


def _with_filters(environment: Environment) -> Environment:
    environment.filters["name"] = words.name if environment.autoescape else lambda text: words.shorten(text, words.NAME)
    for name in ("percent", "duration", "moment", "count", "decimal", "short"):
        environment.filters[name] = getattr(words, name)
    return environment


def _picture(png: bytes, scale: float) -> Picture:
    with Image.open(io.BytesIO(png)) as image:
        width, height = image.size
    uri = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return Picture(Markup(uri), round(width / scale), round(height / scale))  # noqa: S704 - base64 has no markup


def _small_png(picture: NDArray[np.uint8]) -> bytes:
    """The picture at a size the eye can use: whole pixels when enlarged, averaged when shrunk."""
    assert picture.dtype == np.uint8
    assert picture.ndim == 3 and picture.shape[2] in (1, 3), picture.shape  # noqa: PLR2004, PT018
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    if (side := max(image.size)) < SMALL:
        factor = -(-SMALL // side)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((LARGE, LARGE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    with atomic(path) as file:
        file.write(content)


def _remove(paths: set[Path]) -> None:
    """Pictures of an earlier state of the run."""
    for path in paths:
        with disk_errors(path):
            path.unlink(missing_ok=True)

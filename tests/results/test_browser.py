"""The page in a real browser: nothing is refused, nothing is missing, nothing sticks out."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, sync_playwright

from job.results.report import write_report
from job.results.schema import Report
from job.runfolder import RunFolder

CHROMIUM = Path("/usr/bin/chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Debian's chromium in {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("case", ["usual", "hostile", "many", "partial"])
def test_the_page_in_a_browser(
    browser: Browser,
    build: Callable[..., Report],
    partial: Report,
    hostile: tuple[str, ...],
    pictures: Callable[..., list[NDArray[np.uint8]]],
    tmp_path: Path,
    case: str,
    width: int,
) -> None:
    names = {
        "usual": ["plane", "car", "bird", "cat"],
        "hostile": hostile,
        "many": [f"a class with a very long name, number {k} of many" for k in range(100)],
    }
    report = partial if case == "partial" else build(names=names[case])
    folder = RunFolder(tmp_path / "run")
    folder.make()
    write_report(folder, report, pictures(report))
    page = browser.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(folder.report("html").as_uri())
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true })")
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [folder.report("html").as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    images = page.eval_on_selector_all("img", "all => all.map(one => one.complete && one.naturalWidth > 0)")
    assert images == [True] * (0 if case == "partial" else 8)
    assert page.inner_text("h1") == report.name
    headings = page.eval_on_selector_all("h2", "all => all.map(one => one.innerText)")
    wanted = (
        {"Test accuracy"}
        if case == "partial"
        else {"Learning curves", "Accuracy by class", "Most confident mistakes", "How well the device was used"}
    )
    assert wanted <= set(headings)
    page.close()

"""Runs side by side: results, costs in time, the keys of the spec that differ, accuracy by class.

compare(reports) → Table, as text, JSON or a page of its own
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from job.results import words
from job.results.schema import Report
from job.runfolder import write_text

PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Runs side by side</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1rem .3rem 0; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th:first-child { text-align: left; font-weight: 400; }
thead th, .best { font-weight: 600; }
caption { text-align: left; font-weight: 600; padding: 1.2rem 0 .3rem; }
</style></head><body><h1>Runs side by side</h1>
{% for table in tables if table.rows %}<div tabindex="0"><table><caption>{{ table.title }}</caption>
<thead><tr><th></th>{% for run in runs %}<th scope="col">{{ run }}</th>{% endfor %}</tr></thead><tbody>
{% for row in table.rows %}<tr><th scope="row">{{ row.name }}</th>
{% for value in row.shown %}<td{% if loop.index0 == row.best %} class="best"{% endif %}>{{ value }}</td>{% endfor %}
</tr>{% endfor %}</tbody></table></div>
{% endfor %}</body></html>
"""


@dataclass(frozen=True)
class Row:
    """One thing, a value for each run; `best` is the place of the one that is ahead alone."""

    name: str
    values: tuple[Any, ...]
    shown: tuple[str, ...]
    best: int | None = None


@dataclass(frozen=True)
class Table:
    """Rows that belong together."""

    title: str
    rows: tuple[Row, ...]


def tables(reports: Sequence[Report]) -> list[Table]:
    """What two or more runs came to, and where they differ; rows that say nothing are left out."""
    return [
        Table("result", tuple(row for row in _results(reports) if any(value is not None for value in row.values))),
        Table("spec, where it differs", tuple(_differences(reports))),
        Table("accuracy by class", tuple(_classes(reports))),
    ]


def as_text(reports: Sequence[Report]) -> str:
    """A table for the terminal; an asterisk marks the best."""
    heads = [report.run_id for report in reports]
    found = [table for table in tables(reports) if table.rows]
    marked = [
        (table.title, [(row.name, [f"{v}{' *' if k == row.best else ''}" for k, v in enumerate(row.shown)])
                       for row in table.rows])
        for table in found
    ]  # fmt: skip
    first = max(len(name) for _, rows in marked for name, _ in rows)
    widths = [
        max(len(words.shown(head)), *(len(cells[k]) for _, rows in marked for _, cells in rows))
        for k, head in enumerate(heads)
    ]
    lines = ["  ".join([" " * first, *(words.shown(h).rjust(w) for h, w in zip(heads, widths, strict=True))])]
    for title, rows in marked:
        lines += ["", title]
        lines += [
            "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
            for name, cells in rows
        ]
    return "\n".join(line.rstrip() for line in lines)


def as_json(reports: Sequence[Report]) -> str:
    """{"runs": […], "result": {name: [value a run]}, …}"""
    value: dict[str, Any] = {"runs": [report.run_id for report in reports]}
    for key, table in zip(("result", "spec", "per_class"), tables(reports), strict=True):
        value[key] = {row.name: list(row.values) for row in table.rows}
    return json.dumps(value, indent=2, ensure_ascii=False)


def write_html(path: Path, reports: Sequence[Report]) -> None:
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_one_line)
    page = environment.from_string(PAGE)
    write_text(path, page.render(tables=tables(reports), runs=[report.run_id for report in reports]))


def _results(reports: Sequence[Report]) -> list[Row]:
    intervals = [report.accuracy_interval for report in reports]
    between = tuple("" if pair is None else f"{pair[0]:.2%}–{pair[1]:.2%}" for pair in intervals)
    speeds = [[epoch.images_per_second for epoch in report.history] for report in reports]
    fastest = [max((speed for speed in run if speed is not None), default=None) for run in speeds]
    return [
        _plain("status", [report.status for report in reports]),
        _number("test accuracy", [report.accuracy for report in reports], "{:.2%}", best=max),
        Row("95 % interval", tuple(intervals), between),
        _number("test loss", [None if r.test is None else r.test.loss for r in reports], "{:.4f}", best=min),
        _number("train accuracy", [None if r.train is None else r.train.accuracy for r in reports], "{:.2%}"),
        _plain("epochs", [len(report.history) or None for report in reports]),
        _number("training, s", [report.seconds.train for report in reports], "{:,.1f}", best=min),
        _number("total, s", [report.seconds.total for report in reports], "{:,.1f}", best=min),
        _number("images/s", fastest, "{:,.0f}", best=max),
        _number("parameters", [None if r.model is None else r.model.parameters for r in reports], "{:,}"),
        _plain("device", [None if r.device is None else r.device.name for r in reports]),
        _plain("precision", [None if r.device is None else r.device.precision for r in reports]),
    ]


def _differences(reports: Sequence[Report]) -> list[Row]:
    flat = [_flat(report.spec or {}, "") for report in reports]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [_plain(key, [one.get(key) for one in flat]) for key in keys]
    return [row for row in rows if len(set(row.shown)) > 1]


def _classes(reports: Sequence[Report]) -> list[Row]:
    names = dict.fromkeys(name for report in reports for name in report.per_class)
    return [_number(name, [report.per_class.get(name) for report in reports], "{:.1%}", best=max) for name in names]


def _plain(name: str, values: Sequence[Any]) -> Row:
    return Row(name, tuple(values), tuple("" if value is None else words.shown(str(value)) for value in values))


def _number(name: str, values: Sequence[float | None], form: str, best: Any = None) -> Row:
    shown = tuple("" if value is None else form.format(value) for value in values)
    known = [value for value in values if value is not None]
    ahead = None
    if best is not None and len(known) > 1 and known.count(best(known)) == 1:
        ahead = list(values).index(best(known))
    return Row(words.shown(name), tuple(values), shown, ahead)


def _flat(values: dict[str, Any], above: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return found


def _one_line(value: object) -> object:
    return words.shown(value) if type(value) is str else value

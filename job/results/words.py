"""Numbers and foreign text as a reader sees them: percentages, times, names that may contain anything.

Class names come from folder names and data files, so they are text and never markup: HTML escapes them through
jinja2's autoescape, Markdown through `markdown` here, and both show control characters instead of obeying them.
"""

import re
import unicodedata
from typing import Any

import yaml
from markupsafe import Markup

BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # would turn the text around them too
NAME = 60  # characters of a class name on a page
ARROWS = {"\n": "↵", "\t": "⇥"}
PUNCTUATION = re.compile(r"([\\`*_{}\[\]<>|#!~$])")


def shown(text: str) -> str:
    """One line without invisible orders: ↵ for a new line, ⟨U+202E⟩ for a change of direction."""
    text = BIDI.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)
    return "".join(_visible(character) for character in text)


def markdown(value: Any) -> Any:
    """A value as text that GitHub's Markdown shows as it is. Markup is passed on."""
    if isinstance(value, Markup):
        return value
    text = PUNCTUATION.sub(r"\\\1", shown(str(value)).replace("&", "&amp;"))
    text = re.sub(r"^\s+", " ", text)  # no code block
    text = re.sub(r"^(\s*)([-+=])(?=\s|[-+=]|$)", r"\1\\\2", text)  # no list, no underline of a heading
    text = re.sub(r"^(\s*\d+)([.)])(?=\s|$)", r"\1\\\2", text)
    return text.replace("://", ":&#47;&#47;").replace("www.", "www&#46;").replace("@", "&#64;")


def shorten(text: str, limit: int) -> str:
    """Cut in the middle: long names that differ, differ at an end."""
    tail = limit * 2 // 5
    return text if len(text) <= limit else f"{text[: limit - tail - 1].rstrip()}…{text[-tail:].lstrip()}"


def name(text: str) -> Markup:
    """A class name in HTML: its direction is its own, its full length is in the tooltip."""
    title = "" if len(text) <= NAME else Markup(' title="{}"').format(shown(text))
    return Markup("<bdi{}>{}</bdi>").format(title, shown(shorten(text, NAME)))


def indented(lines: list[str]) -> Markup:
    """A Markdown code block, in which nothing is markup."""
    return Markup("\n".join(f"    {shown(line)}" for line in lines))  # noqa: S704 - literal by indentation


def percent(share: float | None, digits: int = 1) -> str:
    """0.8412 → 84.1%. Only all of them is 100%, only none is 0%."""
    if share is None:
        return "–"
    text, step = f"{share:.{digits}%}", 10 ** -(digits + 2)
    if share < 1 and text == f"{1:.{digits}%}":
        return f">{1 - step:.{digits}%}"
    if share > 0 and text == f"{0:.{digits}%}":
        return f"<{step:.{digits}%}"
    return text


def duration(seconds: float | None) -> str:
    """1.25 → 1.2 s, 199 → 3 min 19 s, 7500 → 2 h 05 min."""
    if seconds is None:
        return "–"
    if round(seconds, 1) < 60:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"


def moment(iso: str | None) -> str:
    """2025-11-24T04:12:07Z → 2025-11-24 04:12 UTC."""
    return "–" if iso is None else f"{iso[:10]} {iso[11:16]} UTC"


def count(number: float | None) -> str:
    """12345.6 → 12,346."""
    return "–" if number is None else f"{number:,.0f}"


def decimal(number: float | None, digits: int = 3) -> str:
    return "–" if number is None else f"{number:.{digits}f}"


def short(number: float | None) -> str:
    """Three significant digits: 0.000123, 76.3, 1.4e-05."""
    return "–" if number is None else f"{number:.3g}"


def spec_lines(spec: dict[str, Any], defaults: tuple[str, ...]) -> list[tuple[str, bool]]:
    """The spec as YAML, a line a key, and whether the line is a default that nobody set."""
    return _spec_lines(spec, frozenset(defaults), "", "")


def _spec_lines(spec: dict[str, Any], defaults: frozenset[str], path: str, indent: str) -> list[tuple[str, bool]]:
    lines = []
    for key, value in spec.items():
        dotted = f"{path}{key}"
        default = dotted in defaults
        if isinstance(value, dict) and value:
            within = defaults | {f"{dotted}.{name}" for name in value} if default else defaults
            below = _spec_lines(value, within, f"{dotted}.", indent + "  ")
            lines += [(f"{indent}{key}:", all(unset for _, unset in below)), *below]
        else:
            lines.append((f"{indent}{key}: {_scalar(value)}", default))
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, str) and not value.isprintable():
        return yaml.safe_dump(value, default_style='"', width=10**9).strip()
    dumped = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return dumped.removesuffix("...\n").strip()


def _visible(character: str) -> str:
    if character in ARROWS:
        return ARROWS[character]
    return f"⟨U+{ord(character):04X}⟩" if unicodedata.category(character) in ("Cc", "Zl", "Zp") else character

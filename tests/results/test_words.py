"""What a reader sees: numbers that do not round to a lie, and foreign text that stays text."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from job.results import words

GITHUB = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (0.8412, 1, "84.1%"),
        (0.8412, 2, "84.12%"),
        (1.0, 1, "100.0%"),
        (0.99999, 1, ">99.9%"),
        (0.99999, 2, ">99.99%"),
        (0.0, 1, "0.0%"),
        (0.00001, 1, "<0.1%"),
        (None, 1, "–"),
    ],
)
def test_only_all_is_a_hundred_percent(share: float | None, digits: int, text: str) -> None:
    assert words.percent(share, digits) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.25, "1.2 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (199, "3 min 19 s"), (7500, "2 h 05 min"), (None, "–")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


def test_numbers() -> None:
    assert words.count(12345.6) == "12,346"
    assert words.short(0.000012345) == "1.23e-05"
    assert words.decimal(0.25) == "0.250"
    assert words.moment("2025-11-24T04:12:07Z") == "2025-11-24 04:12 UTC"
    assert [words.count(None), words.short(None), words.decimal(None), words.moment(None)] == ["–"] * 4


def test_invisible_orders_are_shown() -> None:
    assert words.shown("a\nb\tc\x00d\u2028e") == "a↵b⇥c⟨U+0000⟩d⟨U+2028⟩e"
    assert words.shown("evil\u202egnp.exe") == "evil⟨U+202E⟩gnp.exe"
    assert words.shown("שלום, 猫, 👩\u200d🔬") == "שלום, 猫, 👩\u200d🔬"  # a joiner is part of what is written


def test_long_names_keep_both_ends() -> None:
    short = words.shorten("a very long name of a class, number 17", 20)
    assert len(short) <= 20
    assert short.startswith("a very")
    assert short.endswith("17")
    assert words.shorten("x" * 20, 20) == "x" * 20


def test_a_name_in_html_is_escaped_isolated_and_whole_in_its_tooltip() -> None:
    assert words.name("<b>") == "<bdi>&lt;b&gt;</bdi>"
    name = words.name('"' + "<" * 100)
    assert name.startswith('<bdi title="&#34;&lt;')
    assert name.count("&lt;") == 100 + words.NAME - 2


def text_of(markdown: str) -> str:
    return " ".join(" ".join(_text(token) for token in GITHUB.parse(markdown)).split())


def _text(token: Token) -> str:
    assert token.type not in ("html_block", "html_inline", "link_open", "em_open", "strong_open", "s_open", "image")
    own = token.content if token.type in ("text", "code_inline") else ""
    if token.type in ("softbreak", "hardbreak", "fence", "code_block"):
        pytest.fail(f"{token.type}: {token.content}")
    return own + "".join(_text(child) for child in token.children or ())


ANY_TEXT = st.one_of(
    st.text(),
    st.text(alphabet="\\`*_{}[]()<>#+-.!|~$&=:/@ \n\t01aw;"),
    st.lists(
        st.sampled_from(["<b>", "**", "](", "&lt;", "~~", "1. ", "- ", "---", "    ", "http://", "|", "`", "\n"])
    ).map("".join),
)


@given(ANY_TEXT)
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    plain = " ".join(words.shown(text).split())
    escaped = words.markdown(text)
    assert "\n" not in escaped
    assert text_of(f"before {escaped} after") == f"before {plain} after".replace("  ", " ")
    assert text_of(f"- {escaped}") == plain
    cells = text_of(f"| a | b |\n| --- | --- |\n| {escaped} | end |")
    assert cells == " ".join(f"a b {plain} end".split())


def test_markup_is_passed_on() -> None:
    assert words.markdown(Markup("**bold**")) == "**bold**"
    assert words.markdown(3) == "3"


def test_a_code_block_cannot_be_left() -> None:
    block = words.indented(["a\n```\n# heading", "</pre>"])
    tokens = GITHUB.parse(f"text\n\n{block}\n\ntext")
    assert [token.type for token in tokens if token.type in ("code_block", "heading_open", "html_block")] == [
        "code_block"
    ]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (None, "key: null"),
        (True, "key: true"),
        (1e-5, "key: 1.0e-05"),
        ("auto", "key: auto"),
        ("no", "key: 'no'"),
        ("a\nb", 'key: "a\\nb"'),
        ([0.9, 0.999], "key: [0.9, 0.999]"),
        ([], "key: []"),
        ({}, "key: {}"),
    ],
)
def test_the_spec_is_shown_as_yaml(value: Any, line: str) -> None:
    assert words.spec_lines({"key": value}, ()) == [(line, False)]


def test_defaults_are_marked_by_key_and_by_section() -> None:
    spec = {"name": "x", "train": {"epochs": 2, "seed": 0}, "stop": {"patience": None}, "a": {"b": {"c": 1}}}
    assert words.spec_lines(spec, ("train.seed", "stop", "a")) == [
        ("name: x", False),
        ("train:", False),
        ("  epochs: 2", False),
        ("  seed: 0", True),
        ("stop:", True),
        ("  patience: null", True),
        ("a:", True),
        ("  b:", True),
        ("    c: 1", True),
    ]

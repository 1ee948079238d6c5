"""YAML text → a tree of plain values in which every key and value knows its line and column.

Safe by construction: the tree is built from PyYAML's events, so no tag is ever looked up and nothing but mappings,
lists and scalars can come out. Aliases and merge keys (`<<: *base`) work; an alias can only name an anchor that is
complete, so none can hold itself, and the nodes they stand for are counted, so few lines cannot stand for millions.

Mistakes are collected, not raised; what is syntactically no YAML ends the reading with one more.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import yaml

from job.errors import JobError
from job.spec.scalars import BadReference, expand, resolve

DEEPEST = 16  # levels; a spec has four
MOST_NODES = 2_000  # values with aliases followed; a spec has a hundred. Also bounds how deep aliases can nest
LONGEST_SHOWN = 60
BROKEN: Final = object()  # the value of what has already been reported


@dataclass(frozen=True)
class Place:
    """Where something stands: line and column of a file, or, with line 0, a whole `--set`."""

    origin: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.origin}:{self.line}:{self.column}" if self.line else self.origin


@dataclass(frozen=True)
class Problem:
    """One mistake; `key` is dotted and may be empty."""

    place: Place
    key: str
    what: str
    cure: str

    def error(self) -> JobError:
        return JobError(str(self.place), f"{self.key}: {self.what}" if self.key else self.what, self.cure)


@dataclass(frozen=True)
class Node:
    """A value: dict or list of nodes, a scalar, or BROKEN."""

    value: Any
    place: Place
    key: Place | None = None  # where its key stands
    text: str = ""  # a scalar as written
    quoted: bool = False
    size: int = 1  # nodes in it

    def plain(self) -> Any:
        """The bare Python values."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value


class Reader:
    """Reads one text; `problems` holds what was wrong with it."""

    def __init__(self, origin: Place, environ: Mapping[str, str]) -> None:
        self.origin, self.environ = origin, environ
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node] = {}
        self.count = 0
        self.events: Iterator[yaml.Event] = iter(())

    def read(self, text: str, key: str = "") -> Node:
        """The tree; BROKEN at its top where the text is no YAML. `key` is the dotted name of what is read."""
        try:
            self.events = yaml.parse(text, Loader=yaml.SafeLoader)
            return self._document(key)
        except _Unreadable as error:
            self.problems.append(error.problem)
        except yaml.MarkedYAMLError as error:
            self.problems.append(self._syntax(error, text))
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
            what = f"the character U+{ord(text[error.position]):04X} cannot stand in YAML"
            self.problems.append(Problem(self._at(line, column), key, what, "remove it; a spec is plain text"))
        return Node(BROKEN, self._at(1, 1))

    def _document(self, key: str) -> Node:
        next(self.events)  # the stream starts
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return Node(None, self._at(1, 1))
        root = self._node(next(self.events), key, 0)
        next(self.events)  # the document ends
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            cure = "keep one spec a file and remove the line ---"
            raise _Unreadable(Problem(self._place(event.start_mark), key, "a second document begins here", cure))
        return root

    def _node(self, event: Any, key: str, depth: int) -> Node:
        place = self._place(event.start_mark)
        self.count += 1
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), place, key)
        if depth > DEEPEST or self.count > MOST_NODES:
            what = "nested too deeply" if depth > DEEPEST else f"more than {MOST_NODES:,} values"
            raise _Unreadable(Problem(place, key, what, "a spec is a few sections of a few keys"))
        before = self.count
        if isinstance(event, yaml.MappingStartEvent):
            node = Node(self._mapping(key, depth), place)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Node(self._list(key, depth), place)
        else:
            node = self._scalar(event, place, key)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            cure = "remove it; text goes in quotes, everything else is known by its form"
            self.problems.append(Problem(place, key, f"the tag {shown(tag)} is not allowed", cure))
            node = replace(node, value=BROKEN)
        node = replace(node, size=1 + self.count - before)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, name: str, place: Place, key: str) -> Node:
        node = self.anchors.get(name)
        if node is None:
            what = f"*{shown(name)} stands for nothing: no complete value above is marked &{shown(name)}"
            self.problems.append(Problem(place, key, what, f"mark one with &{shown(name)}, or put text in quotes"))
            return Node(BROKEN, place)
        self.count += node.size
        if self.count > MOST_NODES:
            what = f"with its aliases followed the spec has more than {MOST_NODES:,} values"
            raise _Unreadable(Problem(place, key, what, "write out what is meant"))
        return node

    def _list(self, key: str, depth: int) -> list[Node]:
        nodes: list[Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            nodes.append(self._node(event, f"{key}[{len(nodes)}]", depth + 1))
        return nodes

    def _mapping(self, prefix: str, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            place = self._place(event.start_mark)
            if not isinstance(event, yaml.ScalarEvent):
                raise _Unreadable(Problem(place, prefix, "a key must be a word", "write key: value"))
            name = str(event.value)
            key = f"{prefix}.{shown(name)}" if prefix else shown(name)
            node = replace(self._node(next(self.events), key, depth + 1), key=place)
            if name == "<<" and event.implicit[0]:
                merged = {**self._merge(node, key), **merged}
            elif name in found:
                first = found[name].key
                where = f" on line {first.line}" if first is not None and first.line else ""
                self.problems.append(Problem(place, key, f"given twice, first{where}", "keep one of them"))
            else:
                found[name] = node
        return {**merged, **found}

    def _merge(self, node: Node, key: str) -> dict[str, Node]:
        parts = node.value if isinstance(node.value, list) else [node]
        merged: dict[str, Node] = {}
        for part in parts:
            if isinstance(part.value, dict):
                merged = {**part.value, **merged}
            elif part.value is not BROKEN:
                self.problems.append(Problem(part.place, key, "only sections can be merged", "write <<: *anchor"))
        return merged

    def _scalar(self, event: Any, place: Place, key: str) -> Node:
        text, quoted = str(event.value), not event.implicit[0]
        try:
            value = expand(text, self.environ) if "${" in text else text
        except BadReference as error:
            self.problems.append(Problem(place, key, error.what, error.cure))
            return Node(BROKEN, place, text=text, quoted=quoted)
        return Node(value if quoted else resolve(value), place, text=text, quoted=quoted)

    def _place(self, mark: Any) -> Place:
        return self._at(mark.line + 1, mark.column + 1)

    def _at(self, line: int, column: int) -> Place:
        return replace(self.origin, line=line, column=column) if self.origin.line else self.origin

    def _syntax(self, error: yaml.MarkedYAMLError, text: str) -> Problem:
        mark = error.problem_mark or error.context_mark
        said = f"{error.context or ''}; {error.problem or ''}"
        what, cure = next((words for sign, words in SYNTAX if re.search(sign, said)), (f"not YAML: {said}", LOOK))
        if "quoted scalar" in said and "end of stream" in said:
            mark = error.context_mark
        assert mark is not None
        if text[mark.index - 1 : mark.index + 1] == "${":
            what, cure = "within { } or [ ] a ${…} needs quotes", 'write "${NAME:default}"'
        return Problem(self._place(mark), "", what, cure)


class _Unreadable(Exception):
    """Reading cannot go on."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


def shown(text: str) -> str:
    """On one line and not too long, whatever it holds."""
    text = "".join(character if character.isprintable() else "�" for character in text)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"


LOOK = "look at this line and the one above it"
SYNTAX = [  # PyYAML's complaint → what is wrong, what to do
    (r"'\\t' that cannot start", ("a tab where only spaces can be", "indent with spaces")),
    (r"character '(@|`|%)' that cannot", ("text cannot begin with this character", "put it in quotes")),
    (r"character .* that cannot start", ("this character cannot stand here", "put the text in quotes")),
    (
        r"mapping values are not allowed",
        ("a colon too many, or a line indented too far", "put text with ': ' in quotes"),
    ),
    (r"block mapping; expected <block end>", ("this line does not line up with the keys above it", "indent it alike")),
    (r"block collection; expected <block end>", ("this line does not line up with the list above it", "indent alike")),
    (r"flow mapping; expected ',' or '}'", ("a { without its }, or a missing comma", "write {key: value, key: value}")),
    (r"flow sequence; expected ',' or '\]'", ("a [ without its ], or a missing comma", "write [value, value]")),
    (r"could not find expected ':'", ("a line without its colon", "write key: value")),
    (r"quoted scalar.*(end of stream|document separator)", ("a quote that is never closed", "close it")),
    (r"unknown escape character|escape sequence", ("a backslash that means nothing here", "use 'single' quotes")),
    (r"expected alphabetic or numeric", ("a bare * or &", "put the text in quotes")),
    (r"duplicate anchor", ("an anchor of this name exists already", "choose another name")),
    (r"expected the node content", ("a value is missing before this", "write key: value")),
    (r"sequence entries are not allowed", ("a list cannot begin here", "begin it on a line of its own")),
    (r"undefined tag|a tag", ("a tag", "remove it; text that begins with ! goes in quotes")),
    (
        r"directive|%YAML|document start",
        ("this line begins a document that is not a spec", "remove lines with % and ---"),
    ),
]

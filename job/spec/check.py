"""A tree of values against the schema: a Spec, or every mistake in it, each with its place.

pydantic decides what is wrong; the words are ours (`job.spec.words`), one line a key however many alternatives the
key has. Rules over several keys are tried even beside other mistakes, with defaults standing in for broken keys.
"""

from typing import Any

from pydantic import ValidationError

from job.spec import words
from job.spec.schema import Section, Spec, contradictions
from job.spec.yaml_tree import BROKEN, Node, Place, Problem, shown

STAND_IN = {"dataset": {"name": "cifar10"}, "model": {"name": "tutorial_net"}}  # for required keys in error
TOO_SMALL = ("greater_than", "greater_than_equal")
TOO_LARGE = ("less_than", "less_than_equal")
LENGTHS = ("too_short", "too_long")


def check(root: Node) -> tuple[Spec | None, list[Problem]]:
    """The spec, or None and the reasons."""
    if root.value is BROKEN:
        return None, []
    if not isinstance(root.value, dict):
        what = f"{'a list' if isinstance(root.value, list) else 'text'} where a spec should be"
        return None, [Problem(root.place, "", what, "write key: value lines, beginning with dataset: and model:")]
    return _Checker(root).check()


class _Checker:
    """`broken` holds the dotted keys whose values are unknown because something is wrong with them."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.problems: list[Problem] = []
        self.broken: set[str] = set()

    def check(self) -> tuple[Spec | None, list[Problem]]:
        values = self._known(self.root, Spec, "")
        try:
            spec = Spec.model_validate(values)
            return (None if self.broken or self.problems else spec), self.problems
        except ValidationError as error:
            self._translate(error)
        self._contradictions(values)
        return None, self.problems

    def _known(self, node: Node, model: type[Section], section: str) -> dict[str, Any]:
        """Plain values of the keys that exist; notes those that do not, and those already reported."""
        values: dict[str, Any] = {}
        for name, child in node.value.items():
            key = f"{section}.{name}" if section else name
            if name not in model.model_fields:
                self._unknown(child, model, section, name)
            elif _has_broken(child):
                self.broken.add(key)
            else:
                below = words.section_of(model.model_fields[name].annotation)
                if below is not None and child.value is None and "anyOf" not in words.schema_of(key):
                    values[name] = {}  # `loader:` with nothing below it is a section with nothing in it
                elif below is not None and isinstance(child.value, dict):
                    values[name] = self._known(child, below, key)
                else:
                    values[name] = child.plain()
        return values

    def _unknown(self, node: Node, model: type[Section], section: str, name: str) -> None:
        listed = f"keys of {section or 'the spec'}: {', '.join(model.model_fields)}"
        meant = words.meant_key(section, name)
        self.broken.update(meant)
        place = node.key or node.place
        if place.line:  # in a file the key stands under its section; --set needs it in full
            meant = [key.rpartition(".")[2] if key.rpartition(".")[0] == section else key for key in meant]
        cure = f"did you mean {words.either(meant)}? ({listed})" if meant else listed
        key = f"{section}.{shown(name)}" if section else shown(name)
        self.problems.append(Problem(place, key, "not a key", cure))

    def _translate(self, error: ValidationError) -> None:
        """pydantic's errors, grouped by key."""
        by_key: dict[str, tuple[Node | None, set[str]]] = {}
        for one in error.errors(include_url=False, include_context=False, include_input=False):
            if one["loc"]:  # that of the whole spec is a contradiction: those are asked for by themselves
                key, node = self._find(one["loc"], one["type"] == "missing")
                by_key.setdefault(key, (node, set()))[1].add(one["type"])
        for key, (node, kinds) in by_key.items():
            inner = any(other.startswith((f"{key}.", f"{key}[")) for other in by_key)  # another alternative's error
            if key in self.broken or inner:
                continue
            self.broken.add(key.partition("[")[0])
            schema = words.schema_of(key)
            if node is None:
                self.problems.append(Problem(self._parent(key), key, "missing", words.missing(key, schema)))
            else:
                place = node.key if node.value is None and not node.text and node.key is not None else node.place
                what, cure = _what(node, kinds, schema), words.advice(node, key, schema)
                self.problems.append(Problem(place, key, what, cure))

    def _find(self, location: tuple[int | str, ...], missing: bool) -> tuple[str, Node | None]:
        """The dotted key of pydantic's location, which also names the alternatives of a union: those are passed by."""
        node, key = self.root, ""
        for part in location[:-1] if missing else location:
            if isinstance(part, str) and isinstance(node.value, dict) and part in node.value:
                node, key = node.value[part], f"{key}.{part}" if key else part
            elif isinstance(part, int) and isinstance(node.value, list):
                node, key = node.value[part], f"{key}[{part}]"
        if missing:
            return f"{key}.{location[-1]}" if key else str(location[-1]), None
        return key, node

    def _parent(self, key: str) -> Place:
        """Where to say that a key is missing: at its section, or at the top."""
        node = self.root.value.get(key.partition(".")[0])
        return self.root.place if node is None else node.key or node.place

    def _contradictions(self, values: dict[str, Any]) -> None:
        sections: dict[str, Any] = {}
        for name, field in Spec.model_fields.items():
            model = words.section_of(field.annotation)
            if model is not None:
                part = values.get(name)
                whole = _without(part if isinstance(part, dict) else {}, self.broken, f"{name}.")
                sections[name] = model.model_validate({**STAND_IN.get(name, {}), **whole})
        every = words.dotted_keys()
        for key, what, cure in contradictions(Spec.model_construct(**sections)):
            named = {key, *(other for other in every if "." in other and other in f"{what} {cure}")}
            if not any(f"{name}.".startswith(f"{broken}.") for name in named for broken in self.broken):
                self.problems.append(Problem(self._key_place(key), key, what, cure))

    def _key_place(self, key: str) -> Place:
        """The key's, or its section's where the key has its default."""
        node = self.root
        for part in key.split("."):
            if not isinstance(node.value, dict) or part not in node.value:
                break
            node = node.value[part]
        return node.key or node.place


def _what(node: Node, kinds: set[str], schema: dict[str, Any]) -> str:
    """What is wrong, from the kinds of pydantic's errors; of several alternatives' the nearest miss."""
    written = shown(node.text)
    if kinds & {*TOO_SMALL, *TOO_LARGE}:
        return f"{written} is too {'small' if kinds & {*TOO_SMALL} else 'large'}"
    if "finite_number" in kinds:
        return f"{written} is not finite"
    if kinds & {*LENGTHS}:
        return f"a list of {len(node.value)}"
    if "string_unicode" in kinds:
        return "half a character (a lone surrogate)"
    return words.found(node, schema)


def _has_broken(node: Node) -> bool:
    """Whether the value, apart from sections, whose keys are looked at one by one, holds something reported."""
    return node.value is BROKEN or (isinstance(node.value, list) and any(map(_has_broken, node.value)))


def _without(values: dict[str, Any], broken: set[str], prefix: str) -> dict[str, Any]:
    """The values whose keys are not broken."""
    return {
        name: _without(value, broken, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in values.items()
        if prefix + name not in broken
    }

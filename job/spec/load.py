"""A YAML file → a frozen, checked Spec. Every mistake at once, a line each: `file:line:column: key: what; cure`.

    loaded = load("spec.yaml", ["train.epochs=5"])

How values are read, and what `${NAME:default}` does: `job.spec.scalars`. What keys there are: `job.spec.schema`.
Of two overrides of one key the later counts.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from job.errors import SpecError, UsageError
from job.spec.check import check
from job.spec.scalars import escape, resolve
from job.spec.schema import Spec
from job.spec.yaml_tree import Node, Place, Problem, Reader, shown

LONGEST = 128 * 1024  # bytes; a spec has two or three thousand
SAMPLE = "job/spec/samples/digits.yaml"


@dataclass(frozen=True)
class Loaded:
    """A spec and where it came from."""

    spec: Spec
    defaults: tuple[str, ...]
    """Dotted keys that neither the file nor an override names."""
    path: str
    text: str
    """As it stands in the file."""


def load(path: str | Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Loaded:
    """Reads, overrides and checks a file. SpecError lists all mistakes; UsageError: no such file, or a bad override."""
    return parse(_text(Path(path)), str(path), overrides, environ)


def parse(text: str, origin: str, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Loaded:
    """The same from text; `origin` is what errors call it."""
    environ = os.environ if environ is None else environ
    settings = [_split(override) for override in overrides]
    reader = Reader(Place(origin, 1, 1), environ)
    tree, problems = reader.read(text), reader.problems
    if tree.value is None and not tree.text:
        if not settings:
            raise SpecError([Problem(tree.place, "", "the spec is empty", "it needs dataset and model").error()])
        tree = replace(tree, value={})
    for place, key, value in settings:
        override = Reader(place, environ)
        node = replace(override.read(value, key), key=place)
        problems += override.problems
        tree = _put(tree, key.split("."), node)
    spec, found = check(tree)
    problems += found
    if spec is None or problems:
        # By place; overrides, which have none, after the file and in their order.
        order = sorted(problems, key=lambda one: (one.place.line == 0, one.place.line, one.place.column))
        raise SpecError([problem.error() for problem in order])
    return Loaded(spec, tuple(key for key, _ in _leaves(resolved(spec)) if not _given(tree, key)), origin, text)


def json_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of the spec: what editors complete, explain and check by."""
    schema = Spec.model_json_schema()
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:gpu-job:spec", "title": "Job spec"}
    definitions = {name: _tidy(section) for name, section in schema.pop("$defs").items()}
    return {**about, **_tidy(schema), "$defs": definitions}


def resolved(spec: Spec) -> dict[str, Any]:
    """Every key with its value in the form in which YAML holds it: 7200.0 seconds are '2h'."""
    return spec.model_dump()


def dump(spec: Spec) -> str:
    """The whole spec as YAML; `load` reads it back as an equal spec, whatever the environment."""
    return yaml.dump(resolved(spec), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)


def spec_hash(spec: Spec) -> str:
    """SHA-256, in hex, of the resolved spec: equal for equal specs, however they were written."""
    canonical = json.dumps(resolved(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def difference(a: Spec, b: Spec) -> list[tuple[str, Any, Any]]:
    """(dotted key, value in a, value in b) for every key in which they differ."""
    return list(_differences(resolved(a), resolved(b), ""))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if len(data) > LONGEST:
        raise UsageError(str(path), f"larger than {LONGEST // 1024} KiB", "a spec is a page of YAML; name that file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig")
        place = Place(str(path), before.count("\n") + 1, len(before) - before.rfind("\n"))
        what = f"byte 0x{data[error.start]:02X} is not UTF-8 text"
        raise SpecError([Problem(place, "", what, "save the file as UTF-8, or name a YAML file").error()]) from None


def _unreadable(path: Path, error: OSError | ValueError) -> UsageError:
    if isinstance(error, FileNotFoundError):
        import difflib

        there = [str(other) for other in path.parent.glob("*.y*ml")]
        near = difflib.get_close_matches(str(path), there, n=1)
        return UsageError(str(path), "no such file", f"did you mean {near[0]}?" if near else f"try {SAMPLE}")
    if isinstance(error, IsADirectoryError):
        names = sorted(other.name for other in path.glob("*.y*ml"))
        return UsageError(
            str(path), "a folder", f"name a file in it: {', '.join(names[:8])}" if names else f"try {SAMPLE}"
        )
    if isinstance(error, PermissionError):
        return UsageError(str(path), "may not be read", f"chmod u+r {path}, or run as its owner")
    return UsageError(str(path), f"cannot be read ({getattr(error, 'strerror', None) or error})", "check the path")


def _split(override: str) -> tuple[Place, str, str]:
    """`a.b=value` → its place in errors, the key, the value's YAML."""
    key, equals, value = override.partition("=")
    place = Place(f"--set {shown(override)}")
    if not equals or not key.strip():
        what = "no value" if key.strip() else "no key"
        raise UsageError(str(place), what, "write --set KEY=VALUE, for example --set train.epochs=5")
    return place, key.strip(), value


def _put(tree: Node, keys: list[str], new: Node) -> Node:
    """The tree with `new` at a dotted key."""
    if not keys:
        return new
    if tree.value is not None and tree.value != "auto" and not isinstance(tree.value, dict):
        return tree  # not a section: what stands there is wrong and is reported already
    below = tree.value if isinstance(tree.value, dict) else {}
    child = below.get(keys[0], Node(None, new.place, key=new.key))
    return replace(tree, value={**below, keys[0]: _put(child, keys[1:], new)})


def _given(tree: Node, key: str) -> bool:
    """Whether the file or an override names the dotted key or a section around it as a whole."""
    node = tree
    for name in key.split("."):
        if not isinstance(node.value, dict) or name not in node.value:
            return False
        node = node.value[name]
    return True


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a section."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for name in {**a, **b}:
        one, other = a.get(name), b.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield prefix + name, one, other


def _tidy(schema: Any) -> Any:
    """Without the titles pydantic makes up from the keys' names."""
    if isinstance(schema, list):
        return [_tidy(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: _tidy(part) for name, part in schema.items() if name != "title" or isinstance(part, dict)}


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes where `scalars.resolve` would read something else, and escapes `${`."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if resolve(text) == text else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", escape(text), style=style)


_Dumper.add_representer(str, _text_node)

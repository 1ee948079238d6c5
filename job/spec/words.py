"""The words of a spec error: what a key allows, what was found instead, and what was probably meant."""

import difflib
import functools
from collections.abc import Iterable
from typing import Any, get_args

from job.spec.scalars import resolve
from job.spec.schema import Section, Spec
from job.spec.yaml_tree import Node, shown

ALIKE = 0.6  # difflib's ratio from which a word counts as a misspelling of another
AT_HOME = 0.15  # head start of a key of the same section

# What neighbours of this job call our keys and values: not misspelt, so no likeness would find them.
KEYS_ELSEWHERE = {
    "amp": "train.precision",
    "arch": "model.name",
    "data": "dataset",
    "early_stopping": "stop.patience",
    "learning_rate": "optimizer.lr",
    "lr_scheduler": "schedule",
    "max_epochs": "train.epochs",
    "network": "model",
    "num_epochs": "train.epochs",
    "output": "store.uri",
    "output_dir": "store.uri",
    "pretrained": "model.weights",
    "scheduler": "schedule",
    "spot": "resources.preemptible",
    "val_split": "dataset.validation",
    "workers": "loader.num_workers",
}
VALUES_ELSEWHERE = {
    "gpu": "cuda",
    "float32": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "linear": "onecycle",
    "multistep": "step",
    "y": "true",
    "n": "false",
}


def section_of(annotation: Any) -> type[Section] | None:
    """The section that an annotation is, or has among its alternatives."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)


def dotted_keys(model: type[Section] = Spec, prefix: str = "") -> list[str]:
    """Every key there is, sections before what is in them."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if below := section_of(field.annotation):
            keys += dotted_keys(below, f"{prefix}{name}.")
    return keys


def meant_key(section: str, name: str) -> list[str]:
    """The dotted keys that an unknown `name` in `section` may stand for, best first; none if nothing is like it."""
    scored = []
    for key in dotted_keys():
        home, _, leaf = key.rpartition(".")
        near = AT_HOME if home == section else 0.0
        likeness = difflib.SequenceMatcher(None, name.lower().replace("-", "_"), leaf).ratio()
        if KEYS_ELSEWHERE.get(name) == key:
            likeness = 1.0
        # Away from home only what is nearly the same word: a likeness by chance would send the reader astray.
        if likeness + near >= (ALIKE if near else ALIKE + 2 * AT_HOME):
            scored.append((likeness + near, key))
    best = max((score for score, _ in scored), default=0.0)
    return [key for score, key in scored if score == best]


def either(options: Iterable[str]) -> str:
    """a, b or c."""
    *most, last = options
    long = any(" " in option for option in (*most, last))
    return f"{', '.join(most)}{', or ' if long else ' or '}{last}" if most else last


@functools.cache
def definitions() -> dict[str, Any]:
    return Spec.model_json_schema()


def schema_of(key: str) -> dict[str, Any]:
    """The JSON Schema of a dotted key, an index being `[0]` after it; {} where there is none."""
    schema = definitions()
    for part in key.replace("[", ".[").split(".") if key else []:
        kinds = [_follow(option) for option in alternatives(schema)]
        if part.startswith("["):
            schema = next((kind["items"] for kind in kinds if "items" in kind), {})
        else:
            schema = next((kind["properties"].get(part, {}) for kind in kinds if "properties" in kind), {})
    return schema


def alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [_follow(option) for option in _follow(schema).get("anyOf", [schema])]


def allowed(schema: dict[str, Any]) -> str:
    """What a value may be, in words."""
    return either(option for kind in alternatives(schema) for option in _options(kind))


def words_of(schema: dict[str, Any]) -> list[str]:
    """The fixed words a value may be: its enum, auto, true and false."""
    found: list[str] = []
    for kind in alternatives(schema):
        found += kind.get("enum", [kind["const"]] if "const" in kind else [])
        found += ["true", "false"] if kind.get("type") == "boolean" else []
    return found


def meant_value(value: str, words: list[str]) -> str | None:
    """The word of `words` that `value` probably is."""
    plain = value.lower().replace("-", "_")
    if VALUES_ELSEWHERE.get(plain) in words:
        return VALUES_ELSEWHERE[plain]
    return next(iter(difflib.get_close_matches(plain, words, n=1, cutoff=ALIKE)), None)


def found(node: Node, schema: dict[str, Any]) -> str:
    """What stands there, in words that say why it does not fit."""
    value, types = node.value, _types(schema)
    text = f'"{shown(value)}"' if isinstance(value, str) else shown(node.text)
    if node.text and "${" in node.text:
        text += f" (from {shown(node.text)})"
    match value:
        case None:
            return "empty" if not node.text else "null is no value here"
        case dict():
            return "a section"
        case list():
            return "a list"
        case bool():
            return f"{text} means {str(value).lower()}" if node.text.lower() not in ("true", "false") else f"{text}"
        case str():
            fixed = not types - {"null"} and words_of(schema)
            fits = "string" in types and not fixed
            return f"{text} has another form" if fits and value else f"{text} is {'not known' if fixed else 'text'}"
        case int():
            return f"{text} is a number"
        case _:
            return f"{text} is {'not a whole number' if 'integer' in types else 'a number'}"


def advice(node: Node, key: str, schema: dict[str, Any]) -> str:
    """What to write instead."""
    value, types, options = node.value, _types(schema), f"allowed: {allowed(schema)}"
    if value is None and "default" in schema:
        return f"{options}; without the key it is {_default(schema)}"
    if isinstance(value, str):
        unquoted = resolve(value) if node.quoted else None
        if unquoted is not None and not isinstance(unquoted, str) and _type(unquoted) & types:
            return f"remove the quotes ({options})"
        if meant := meant_value(value, words_of(schema)):
            return f"did you mean {meant}? ({options})"
        first = next(iter(_follow(schema).get("properties", {})), "")
        if first in ("name", "uri", "shape"):
            return f"write {key}: {{{first}: {shown(value)}}}"
    if isinstance(value, bool | int | float) and "string" in types and not _type(value) & types:
        return f'text goes in quotes: "{shown(node.text)}"'
    return options


def missing(key: str, schema: dict[str, Any]) -> str:
    """What to add for a key that must be there."""
    kind = _follow(schema)
    if "properties" in kind:
        example = {name: _follow(schema_of(f"{key}.{name}")) for name in kind.get("required", [])}
        inside = ", ".join(f"{name}: {(words_of(below) or ['resnet9'])[0]}" for name, below in example.items())
        return f"every spec has one, for example {key}: {{{inside}}}"
    return f"allowed: {allowed(schema)}" if words_of(schema) else str(schema.get("description", allowed(schema)))


def _follow(schema: dict[str, Any]) -> dict[str, Any]:
    """What a reference refers to."""
    reference = schema.get("$ref")
    return definitions()["$defs"][reference.rpartition("/")[2]] if reference else schema


def _types(schema: dict[str, Any]) -> set[str]:
    """JSON types of what is not a fixed word."""
    kinds = [kind for kind in alternatives(schema) if "enum" not in kind and "const" not in kind]
    listed = [kind.get("type", []) for kind in kinds]
    return {name for names in listed for name in ([names] if isinstance(names, str) else names)}


def _type(value: bool | int | float) -> set[str]:
    return {"boolean"} if isinstance(value, bool) else {"number", *(["integer"] if isinstance(value, int) else [])}


def _options(kind: dict[str, Any]) -> list[str]:
    if "patternErrorMessage" in kind:
        return [str(kind["patternErrorMessage"])]
    if "enum" in kind or "const" in kind:
        return [str(word) for word in kind.get("enum", [kind.get("const")])]
    match kind.get("type"):
        case "boolean":
            return ["true", "false"]
        case "integer":
            return [_range("a whole number", kind)]
        case "number":
            return [_range("a number", kind)]
        case "array":
            count = f"{kind['minItems']} entries" if "minItems" in kind else "entries"
            return [f"a list of {count}, each {allowed(kind['items'])}"]
        case "object":
            return [f"a section with the keys {', '.join(kind['properties'])}"]
        case "null":
            return ["null"]
        case _:
            return ["text"]


def _range(noun: str, kind: dict[str, Any]) -> str:
    low, above = kind.get("minimum"), kind.get("exclusiveMinimum")
    high, below = kind.get("maximum"), kind.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{noun} from {low} to {high}" if low != high else f"{low}"
    lower = f"of at least {low}" if low is not None else f"above {above}" if above is not None else ""
    upper = f"at most {high}" if high is not None else f"below {below}" if below is not None else ""
    return " ".join(filter(None, (noun, " and ".join(filter(None, (lower, upper))))))


def _default(schema: dict[str, Any]) -> str:
    default = schema["default"]
    return str(default).lower() if isinstance(default, bool) else str(default)

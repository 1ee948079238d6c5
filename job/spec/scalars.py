"""What a value in a spec means: numbers, truth values, empty, text; and `${NAME:default}` from the environment.

Unquoted values follow the core schema of YAML 1.2, which has none of YAML 1.1's traps but one:

- `1e-3` is a number (in YAML 1.1 it is text), `010` is ten (not eight), `0o17` and `0x1f` are numbers;
- `12:30` (750 in YAML 1.1) and `2025-01-31` (a date) are text, and so is `1_000` (1000);
- `yes`, `no`, `on` and `off` stay truth values as in YAML 1.1: people write `flip: yes`. A key that asks for text
  refuses them and says to put them in quotes.

Anything in quotes is text. `${NAME}` takes a variable that must be set, `${NAME:default}` has a default (also for a
variable that is set but empty), `$${` is a plain `${`. What comes in that way is read like any unquoted value, so
`epochs: ${EPOCHS:2}` is a number, but it is never read as YAML: no variable can add a key or a section, and
a `${…}` within it stays as it is. In quotes it stays text: `"${EPOCHS:2}"`.
"""

import re
from collections.abc import Mapping

NULLS = {"", "~", "null", "Null", "NULL"}
TRUTH = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
LONGEST_INTEGER = 250  # digits; beyond lies what no key allows and float() cannot hold
REFERENCE = re.compile(r"\$\$\{|\$\{(?P<inside>[^}]*)(?P<end>\}?)")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class BadReference(Exception):
    """A `${…}` that stands for nothing."""

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(what, cure)
        self.what, self.cure = what, cure


def resolve(text: str) -> bool | int | float | str | None:
    """The value of unquoted text."""
    if text in NULLS:
        return None
    if text.lower() in TRUTH and text in (text.lower(), text.title(), text.upper()):
        return TRUTH[text.lower()]
    if INTEGER.fullmatch(text) and len(text) <= LONGEST_INTEGER:
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan") if text[-1].isalpha() else text)
    return text


def expand(text: str, environ: Mapping[str, str]) -> str:
    """`text` with every `${…}` replaced, once. BadReference where that cannot be."""
    return REFERENCE.sub(lambda found: _value(found, environ), text)


def escape(text: str) -> str:
    """Text that `expand` turns back into `text`."""
    return text.replace("${", "$${")


def _value(found: re.Match[str], environ: Mapping[str, str]) -> str:
    if found[0] == "$${":
        return "${"
    if not found["end"]:
        raise BadReference("a ${ without its }", "write ${NAME} or ${NAME:default}, or $${ for a plain ${")
    name, colon, default = found["inside"].partition(":")
    if not NAME.fullmatch(name):
        raise BadReference(f"{found[0]} does not name a variable", "write ${NAME} or ${NAME:default}")
    if default.startswith("-"):  # the shell's habit; taken literally, ${EPOCHS:-2} would be minus two
        raise BadReference(f"{found[0]} is the shell's way", f"write ${{{name}:{default[1:]}}}, without the dash")
    if colon:
        return environ.get(name) or default
    if name not in environ:
        cure = f"set {name} in the environment, or give a default: ${{{name}:…}}"
        raise BadReference(f"the environment variable {name} is not set", cure)
    return environ[name]

"""The rules of the house that no other tool checks: docstrings, clean files, light verbs, locks, make targets."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "job").rglob("*.py"))
SAMPLES = sorted((ROOT / "job/spec/samples").glob("*.yaml"))
LARGEST = 1_000_000  # bytes of a file in git; pictures of a report fit, data sets and weights do not
HEAVY = ("torch", "torchvision", "numpy", "scipy", "sklearn", "matplotlib", "PIL", "oci", "rich", "jinja2")

# Built from pieces, so that this file does not hold what it looks for.
SECRETS = {
    "private key": re.compile(r"-----BEGIN [A-Z ]*" + "PRIVATE KEY-----"),
    "AWS key": re.compile(r"\bAKIA" + r"[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(r"\bgh[pousr]_" + r"[A-Za-z0-9]{36}\b"),
    "OCID of a real resource": re.compile(r"\bocid1\.[a-z0-9]+\.oc1\.[a-z0-9-]*\." + r"[a-z0-9]{60}\b"),
}
INDEXES = re.compile(r"pypi\." + r"org|files\.python" + r"hosted|registry\." + r"npmjs|--(extra-)?index-" + "url[ =]h")
PLACES = re.compile(r"\.\./" + r"shared|/(home|Users)/[a-z]+/|/root" + "/")


def tracked() -> list[Path]:
    """Files in git, or everything in an unpacked archive, where git has nothing to say."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def texts() -> list[tuple[str, str]]:
    """Name and content of each tracked text file."""
    found = []
    for path in tracked():
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            found.append((str(path.relative_to(ROOT)), content.decode("utf-8")))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    if path.name == "__init__.py":
        assert source == "", "re-exports are how import cycles begin"
    else:
        assert ast.get_docstring(ast.parse(source)), "begins with a docstring"


def test_no_file_is_large() -> None:
    assert [str(path) for path in tracked() if path.stat().st_size > LARGEST] == []


def test_no_file_holds_a_secret() -> None:
    found = [f"{name}: {what}" for name, text in texts() for what, pattern in SECRETS.items() if pattern.search(text)]
    assert found == []


@pytest.mark.parametrize(
    ("what", "sample"),
    [
        ("private key", "-----BEGIN RSA " + "PRIVATE KEY-----"),
        ("AWS key", "AKIA" + "ABCDEFGHIJKLMNOP"),
        ("GitHub token", "ghp_" + "a1" * 18),
        ("OCID of a real resource", "ocid1.tenancy.oc1.." + "a1b2c3" * 10),
    ],
)
def test_the_patterns_know_a_secret(what: str, sample: str) -> None:
    assert SECRETS[what].search(f"key = {sample}")


def test_no_file_names_a_package_index() -> None:
    assert [name for name, text in texts() if INDEXES.search(text)] == []


def test_no_file_names_a_place_on_the_machine_it_was_made_on() -> None:
    assert [name for name, text in texts() if PLACES.search(text) and name != ".ci/run"] == []


def test_shell_scripts_stop_at_the_first_error() -> None:
    scripts = [(name, text) for name, text in texts() if re.match(r"#!.*\b(ba)?sh\b", text)]
    assert scripts, ".ci/run is one"
    assert [name for name, text in scripts if "set -eu" not in text] == []


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_a_sample_tells_editors_its_schema(sample: Path) -> None:
    first = sample.read_text(encoding="utf-8").splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named, first
    assert (sample.parent / named[1]).is_file(), "the file named there exists"


def loaded_by(*arguments: str) -> set[str]:
    """Top-level packages in memory after `python -m job ARGUMENTS`, which must succeed."""
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['job', *{list(arguments)!r}]\n"
        "try:\n"
        "    runpy.run_module('job', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "print('\\n', *{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("arguments", "also_absent"),
    [
        (["--help"], ["pydantic", "yaml"]),
        (["run", "--help"], ["pydantic", "yaml"]),
        (["schema"], []),
        (["validate", "job/spec/samples/digits.yaml"], []),
    ],
    ids=["help", "run-help", "schema", "validate"],
)
def test_light_verbs_load_nothing_heavy(arguments: list[str], also_absent: list[str]) -> None:
    modules = loaded_by(*arguments)
    assert "job" in modules
    assert modules.isdisjoint([*HEAVY, *also_absent]), sorted(modules & {*HEAVY, *also_absent})


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+) \\$", lock.read_text(encoding="utf-8"), flags=re.MULTILINE))


def asked_by_us(lock: Path) -> set[str]:
    """Packages that the lock has because pyproject.toml names them."""
    stanzas = re.split(r"^(?=[a-z0-9])", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {stanza.partition("==")[0] for stanza in stanzas if "gpu-job (pyproject.toml)" in stanza}


@pytest.mark.parametrize(("lock", "extra"), [("requirements.txt", None), ("requirements-dev.txt", "dev")])
def test_the_lock_is_that_of_pyproject(lock: str, extra: str | None) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + ([] if extra is None else project["optional-dependencies"][extra])
    wanted = {requirement.name.lower(): requirement for requirement in map(Requirement, lines)}
    pinned = pins(ROOT / lock)
    assert set(wanted) == asked_by_us(ROOT / lock), "run make lock"
    assert [name for name, wish in wanted.items() if not wish.specifier.contains(pinned[name])] == [], "run make lock"


def test_the_locks_agree_and_every_pin_has_a_hash() -> None:
    run, development = pins(ROOT / "requirements.txt"), pins(ROOT / "requirements-dev.txt")
    assert run
    assert run.items() <= development.items(), "what is tested is what runs"
    for lock in ("requirements.txt", "requirements-dev.txt"):
        text = (ROOT / lock).read_text(encoding="utf-8")
        assert len(re.findall(r"^[a-z0-9._-]+==", text, flags=re.MULTILINE)) == len(pins(ROOT / lock))
        assert len(re.findall(r" \\\n    --hash=sha256:[0-9a-f]{64}", text)) >= len(pins(ROOT / lock))
        assert "://" not in text, "a lock names no index"


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^\.PHONY: (\S+)$", makefile, flags=re.MULTILINE))


def test_make_alone_prints_every_target() -> None:
    shown = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z-]+) ", shown, flags=re.MULTILINE)) == targets()
    assert re.findall(r"^([A-Z]\w+)$", shown, flags=re.MULTILINE) == ["Use", "Container", "Check", "Measure"]


def test_the_readme_and_ci_name_targets_that_exist() -> None:
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run", ".github/workflows/ci.yml"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        commands = [re.match(r"[`\s-]*(?:run: )?make ([a-z-]+)\b", line) for line in lines]
        assert {command[1] for command in commands if command} <= targets(), name


def test_actions_are_pinned_and_may_only_read() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    used = re.findall(r"uses: (\S+) *(#.*)?", workflow)
    assert used
    assert [action for action, version in used if not re.search(r"@[0-9a-f]{40}$", action) or not version] == []
    assert re.findall(r"permissions:\n((?: +\S.*\n)+)", workflow) == ["  contents: read\n"]


def test_package_data_is_declared() -> None:
    """What the code reads beside itself is also there in an installed copy."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    globs = declared["tool"]["setuptools"]["package-data"]["job"]
    matched = {path for pattern in globs for path in (ROOT / "job").glob(pattern)}
    beside = {path for path in tracked() if path.is_relative_to(ROOT / "job") and path.suffix != ".py"}
    assert beside
    assert beside - matched == set()

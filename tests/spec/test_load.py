"""The spec reader: what it says of each mistake, and that it says all of them, in their places, in our words."""

import contextlib
import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.errors import JobError, SpecError, UsageError
from job.spec.load import difference, dump, json_schema, load, parse, resolved, spec_hash
from job.spec.schema import Spec, parse_duration, parse_size, show_duration, show_size

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted((ROOT / "job/spec/samples").glob("*.yaml"))
BASE = "dataset: {name: digits}\nmodel: {name: resnet9}\n"
PLAIN_STOP = (
    "early stopping needs a validation part: the test split never chooses; set dataset.validation, for example to 0.1"
)

# The contract's example, as it stands in the design.
EXAMPLE = """
name: cifar10-tutorial
dataset:  {name: cifar10, root: data, mirror: null, subset: null, validation: 0.0, split: {train: 0.8, seed: 0}}
loader:   {batch_size: 64, num_workers: auto, pin_memory: auto, prefetch_factor: auto, resident: auto}
augment:  {flip: true, crop_padding: 4, cutout: 0}
model:    {name: tutorial_net}
optimizer: {name: sgd, lr: 0.001, momentum: 0.9, weight_decay: 0.0}
schedule: {name: constant}
train:    {epochs: 2, precision: auto, compile: auto, channels_last: auto, seed: 0, log_every: 2000, evaluate_every: 1}
stop:     {patience: null, min_delta: 0.0}
checkpoint: {every: 1, keep: 3, resume: auto}
store:    {uri: runs}                       # a folder, or oci://BUCKET@NAMESPACE/PREFIX
resources: {shape: VM.GPU.A10.1, nodes: 1, preemptible: false, max_duration: 2h, max_cost: null}
"""


def read(text: str, *overrides: str, **environ: str) -> Spec:
    return parse(text, "s.yaml", overrides, environ).spec


def refusal(text: str, *overrides: str, **environ: str) -> list[str]:
    with pytest.raises((SpecError, UsageError)) as caught:
        read(text, *overrides, **environ)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "s.yaml:1:1: the spec is empty; it needs dataset and model"),
        (
            "- a",
            "s.yaml:1:1: a list where a spec should be; write key: value lines, beginning with dataset: and model:",
        ),
        ("a: [1,2", "s.yaml:1:8: a [ without its ], or a missing comma; write [value, value]"),
        (BASE + "a: b: c", "s.yaml:3:5: a colon too many, or a line indented too far; put text with ': ' in quotes"),
        (BASE + "train:\n\tepochs: 3", "s.yaml:4:1: a tab where only spaces can be; indent with spaces"),
        (BASE + "---\nb: 1", "s.yaml:3:1: a second document begins here; keep one spec a file and remove the line ---"),
        (
            "dataset: {name: digits}",
            "s.yaml:1:1: model: missing; every spec has one, for example model: {name: resnet9}",
        ),
        (
            BASE + "loader: {batch_size: 0}",
            "s.yaml:3:22: loader.batch_size: 0 is too small; allowed: a whole number of at least 1",
        ),
        (
            BASE + "loader: {batch_size: yes}",
            "s.yaml:3:22: loader.batch_size: yes means true; allowed: a whole number of at least 1",
        ),
        (
            BASE + "loader: {num_workers: many}",
            's.yaml:3:23: loader.num_workers: "many" is text; allowed: a whole number from 0 to 256, or auto',
        ),
        (BASE + "name: no", 's.yaml:3:7: name: no means false; text goes in quotes: "no"'),
        (
            BASE + "train: {epochs: 1}\ntrain: {epochs: 2}",
            "s.yaml:4:1: train: given twice, first on line 3; keep one of them",
        ),
        (
            BASE + "train: {epochs: 1, epochs: 2}",
            "s.yaml:3:20: train.epochs: given twice, first on line 3; keep one of them",
        ),
        (
            BASE + "resources: {max_duration: 2 hours}",
            's.yaml:3:27: resources.max_duration: "2 hours" has another form; '
            "allowed: a duration above zero such as 30s, 90m, 2h or 1d, or null",
        ),
        (BASE + "optimizer: {lr: .nan}", "s.yaml:3:17: optimizer.lr: .nan is not finite; allowed: a number above 0"),
        (BASE + "stop: {patience: 3}", f"s.yaml:3:8: stop.patience: {PLAIN_STOP}"),
        (
            BASE + "store: {uri: '${GONE}'}",
            "s.yaml:3:14: store.uri: the environment variable GONE is not set; "
            "set GONE in the environment, or give a default: ${GONE:…}",
        ),
    ],
)
def test_each_mistake_is_one_line_with_its_place(text: str, line: str) -> None:
    assert refusal(text) == [line]


def test_an_unknown_key_gets_a_suggestion() -> None:
    [line] = refusal(BASE + "loader:\n  num_wokers: 2\n")
    assert line.startswith("s.yaml:4:3: loader.num_wokers: not a key; did you mean num_workers? (keys of loader: ")
    [line] = refusal(BASE + "train: {lr: 1}\n")
    assert line.startswith("s.yaml:3:9: train.lr: not a key; did you mean optimizer.lr? (keys of train: ")


def test_everything_wrong_is_told_at_once_in_order() -> None:
    text = "name: A\ndataset: {name: cifar11, subset: 0}\nloader: {batch_size: 4.5}\n"
    text += "stop: {patience: 3}\ntrain: {epochs: x}\n"
    lines = refusal(text)
    keys = [line.split(": ")[1] for line in lines]
    assert keys == [
        "model",
        "name",
        "dataset.name",
        "dataset.subset",
        "loader.batch_size",
        "stop.patience",
        "train.epochs",
    ]
    assert "did you mean cifar10?" in lines[2]


def test_no_tag_runs_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    lines = refusal(BASE + f"name: !!python/object/apply:os.mkdir ['{mark}']\n")
    assert any("is not allowed" in line for line in lines)
    assert not mark.exists()


def test_few_lines_cannot_stand_for_millions() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    assert refusal(bomb + BASE)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("0.001", 0.001), ("1", 1.0), ("1E-2", 0.01), (".5", 0.5)],
)
def test_numbers_as_people_write_them(text: str, value: float) -> None:
    assert read(BASE + f"optimizer: {{lr: {text}}}").optimizer.lr == value


def test_yaml_1_1_traps() -> None:
    assert read(BASE + "train: {epochs: 010}").train.epochs == 10
    assert read(BASE + "augment: {flip: yes}").augment.flip is True
    assert read(BASE + "store: {uri: 12:30}").store.uri == "12:30"
    assert read(BASE + "store: {uri: 2025-01-31}").store.uri == "2025-01-31"


def test_the_environment() -> None:
    text = BASE + "train:\n  epochs: ${EPOCHS:2}\nstore: {uri: '${WHERE:runs}/x'}\n"
    assert (read(text).train.epochs, read(text).store.uri) == (2, "runs/x")
    assert (read(text, EPOCHS="7", WHERE="a").train.epochs, read(text, WHERE="a").store.uri) == (7, "a/x")
    assert read(BASE + "store: {uri: '$${HOME}'}").store.uri == "${HOME}"
    assert read(BASE + "store:\n  uri: ${WHERE}\n", WHERE="{a: 1}, ${X}").store.uri == "{a: 1}, ${X}"


def test_overrides() -> None:
    spec = read(BASE, "train.epochs=5", "model={name: tutorial_net}", "resources.max_duration=90m", "train.epochs=6")
    assert (spec.train.epochs, spec.model.name, spec.resources.max_duration) == (6, "tutorial_net", 5400.0)
    assert refusal(BASE, "train=5")[0].startswith("--set train=5: train: 5 is a number; allowed: a section")
    assert refusal(BASE, "foo") == ["--set foo: no value; write --set KEY=VALUE, for example --set train.epochs=5"]
    [line] = refusal(BASE, "train.epoks=5")
    assert line.startswith("--set train.epoks=5: train.epoks: not a key; did you mean train.epochs?")


def test_defaults_are_the_keys_nobody_named() -> None:
    loaded = parse(BASE + "train: {epochs: 2}", "s.yaml", ["optimizer.lr=0.1"], {})
    assert {"train.epochs", "optimizer.lr", "dataset.name"}.isdisjoint(loaded.defaults)
    assert {"train.seed", "optimizer.momentum", "dataset.split.train", "name"} <= set(loaded.defaults)


def test_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match=str(path)):
            load(path)
    (tmp_path / "binary.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(SpecError, match=r"binary\.yaml:1:7: byte 0xFF is not UTF-8 text"):
        load(tmp_path / "binary.yaml")


def test_the_example_of_the_contract_is_a_spec() -> None:
    spec = read(EXAMPLE)
    assert (spec.resources.max_duration, spec.augment.crop_padding) == (7200.0, 4)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_samples_load_and_come_back(sample: Path) -> None:
    spec = load(sample, environ={}).spec
    again = parse(dump(spec), "again", environ={}).spec
    assert again == spec
    assert spec_hash(again) == spec_hash(spec)


def test_the_readmes_spec_is_one() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition("```yaml\n")[2].partition("```")[0]
    spec = read(block)
    assert (spec.name, spec.dataset.root, spec.stop.patience) == ("flowers", "my-images", 5)


def test_the_readme_names_every_sample_and_exit_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [sample.name for sample in SAMPLES if f"(job/spec/samples/{sample.name})" not in text] == []
    assert all(f"| {code} |" in text for code in (0, 1, 2, 3, 4, 75))


def test_the_schema_file_is_current() -> None:
    written = (ROOT / "job/spec/samples/spec.schema.json").read_text(encoding="utf-8")
    assert json.loads(written) == json_schema(), "python -m job schema > job/spec/samples/spec.schema.json"


def test_the_schema_is_closed_and_explains_itself() -> None:
    schema = json_schema()
    for name, section in [("Spec", schema), *schema["$defs"].items()]:
        assert section["additionalProperties"] is False, name
        assert all("description" in key or "$ref" in key for key in section["properties"].values()), name


def test_differences_name_keys() -> None:
    a, b = read(BASE), read(BASE, "optimizer.lr=0.5", "resources.max_duration=2h")
    assert difference(a, b) == [("optimizer.lr", 0.001, 0.5), ("resources.max_duration", None, "2h")]
    assert difference(a, a) == []


@given(st.floats(min_value=1e-3, max_value=1e7))
def test_durations_come_back(seconds: float) -> None:
    assert parse_duration(show_duration(seconds)) == seconds


@given(st.integers(1, 2**50))
def test_sizes_come_back(size: int) -> None:
    assert parse_size(show_size(size)) == size


def test_durations_and_sizes() -> None:
    assert [parse_duration(text) for text in ("500ms", "30s", "90m", "2h", "1d", "1h30m")] == [
        0.5,
        30,
        5400,
        7200,
        86400,
        5400,
    ]
    assert [parse_size(text) for text in ("1B", "128MiB", "2GB", "1.5KiB")] == [1, 2**27, 2 * 10**9, 1536]


@given(st.text(alphabet=string.printable + "é猫\x00", max_size=200))
def test_no_text_makes_it_fail_otherwise(text: str) -> None:
    """Whatever stands in the file, the answer is a spec or lines that say where."""
    with contextlib.suppress(SpecError):
        read(text)


@given(
    st.sampled_from(sorted(resolved(read(BASE))["train"])), st.integers(0, 30), st.sampled_from(string.ascii_lowercase)
)
def test_a_typo_in_a_key_is_one_line_with_the_right_word(key: str, place: int, letter: str) -> None:
    typo = key[: place % len(key)] + letter + key[place % len(key) :]
    if typo in resolved(read(BASE))["train"]:
        return
    [line] = refusal(f"{BASE}train: {{{typo}: 1}}")
    assert line.startswith(f"s.yaml:3:9: train.{typo}: not a key; did you mean ")
    assert key in line


@given(st.dictionaries(st.sampled_from(["epochs", "seed", "log_every"]), st.integers(1, 10**6)), st.floats(1e-6, 1e3))
def test_any_spec_survives_writing_and_reading(train: dict[str, int], lr: float) -> None:
    spec = Spec.model_validate(
        {"dataset": {"name": "digits"}, "model": {"name": "${x} 1e-3"}, "train": train, "optimizer": {"lr": lr}}
    )
    assert read(dump(spec)) == spec


def test_a_job_error_is_where_what_cure() -> None:
    assert str(JobError("a", "b", "c")) == "a: b; c"

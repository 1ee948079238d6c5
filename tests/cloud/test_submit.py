"""What submit refuses before anything is made, and the spec that an instance gets."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from job.cloud import foundation, history, record, submit
from job.cloud.foundation import Foundation
from job.cloud.launch import Desk
from job.cloud.submit import Order, order
from job.errors import JobError, SpecError, UsageError
from job.spec.load import parse, spec_hash
from tests.cloud.conftest import IMAGE, Clock, Tell
from tests.cloud_server.server import CloudServer


def asked(base: Foundation, spec: Path, *overrides: str, image: str | None = IMAGE, run_id: str | None = None) -> Order:
    return order(str(spec), overrides, base, run_id=run_id, image=image)


def test_results_go_to_the_foundations_bucket(base: Foundation, spec: Path) -> None:
    made = asked(base, spec, "dataset.root=/somewhere/here")
    assert made.loaded.spec.store.uri == "oci://bucket@space/runs"
    assert made.loaded.spec.dataset.root is None, "no folder of this machine is there"
    assert made.run_id.startswith("digits-20")
    assert made.owner == "ada"
    assert asked(base, spec, "store.uri=oci://bucket@space/runs/").loaded.spec.store.uri.startswith(
        "oci://bucket@space"
    )


def test_the_uploaded_spec_reads_as_what_was_submitted(desk: Desk, made: Order) -> None:
    submit.submit(desk, made)
    text = record.read_bytes(desk.launches, "digits-1/spec.yaml").decode()
    assert parse(text, "spec.yaml").spec == made.loaded.spec
    version = record.read(desk.launches, "digits-1")
    assert version is not None
    assert version.record.spec_hash == spec_hash(made.loaded.spec)
    assert submit.again(desk, version.record) == dataclasses.replace(
        made, loaded=submit.again(desk, version.record).loaded
    )


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["resources.shape=null"], UsageError, "no shape is named"),
        (["resources.max_duration=null"], UsageError, "nothing bounds the cost of this run"),
        (["store.uri=oci://other@space/runs"], UsageError, "an instance may write to oci://bucket@space/runs only"),
        (["dataset={name: cifar10}"], UsageError, "it has no way to the internet"),
        (["dataset={name: image_folder, root: .}"], UsageError, "this machine's folders are not there"),
        (["dataset={name: shards, uri: /data/flowers}"], UsageError, "an instance cannot have these shards"),
        (["resources.preemptible=true", "store.uri=oci://bucket@space/runs"], SpecError, "not offered as preemptible"),
        (["resources.fallback=[A10]"], SpecError, "a shape such as VM.GPU.A10.1"),
        (["resources.fallback=[VM.GPU.NEW]", "resources.max_duration=null", "resources.max_cost=9"], UsageError, "NEW"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    base: Foundation, spec: Path, server: CloudServer, overrides: list[str], error: type[JobError], words: str
) -> None:
    with pytest.raises(error) as told:
        asked(base, spec, *overrides)
    assert words in str(told.value)
    assert server.told == [], "without a single request"


def test_a_mirror_in_the_bucket_or_a_way_out_will_do(base: Foundation, spec: Path) -> None:
    mirror = "dataset={name: cifar10, mirror: oci://bucket@space/data/cifar-10-python.tar.gz}"
    assert asked(base, spec, mirror).loaded.spec.dataset.name == "cifar10"
    open_base = Foundation({**base.values, "nat": True})
    assert asked(open_base, spec, "dataset={name: cifar10}").loaded.spec.dataset.mirror is None


def test_shards_in_the_bucket_will_do(base: Foundation, spec: Path) -> None:
    made = asked(base, spec, "dataset={name: shards, uri: oci://bucket@space/flowers}")
    assert made.loaded.spec.dataset.uri == "oci://bucket@space/flowers"


def test_force_overrides_the_table_of_shapes(base: Foundation, spec: Path) -> None:
    overrides = ["resources.preemptible=true", "store.uri=oci://bucket@space/runs"]
    assert order(str(spec), overrides, base, run_id=None, image=IMAGE, force=True).force


@pytest.mark.parametrize("image", [None, "phx.ocir.io/space/gpu-job:latest", "gpu-job"])
def test_an_image_goes_by_its_digest(
    base: Foundation, spec: Path, image: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOB_IMAGE", raising=False)
    with pytest.raises(UsageError, match=r"--image phx\.ocir\.io/space/gpu-job@sha256:…"):
        asked(base, spec, image=image)
    monkeypatch.setenv("JOB_IMAGE", IMAGE)
    assert asked(base, spec, image=None).image == IMAGE


@pytest.mark.parametrize("run_id", ["", "Digits", "a/b", "-a", "a" * 101])
def test_an_id_that_cannot_be_a_tag_is_refused(base: Foundation, spec: Path, run_id: str) -> None:
    if run_id:
        with pytest.raises(UsageError, match="cannot be a tag"):
            asked(base, spec, run_id=run_id)
    else:
        assert asked(base, spec, run_id=run_id).run_id, "an empty one is none"


def test_a_quote_has_each_shape(base: Foundation, spec: Path) -> None:
    made = asked(base, spec, "resources.fallback=[BM.GPU.A10.4]")
    quotes = submit.quote(made, 30.0, lambda _: [])
    assert [(one.shape, one.usd_per_hour) for one in quotes] == [("VM.GPU.A10.1", 2.0), ("BM.GPU.A10.4", 8.0)]


def test_an_earlier_run_tells_the_minutes(desk: Desk, made: Order, clock: Clock, tmp_path: Path) -> None:
    submit.submit(desk, made)
    tell = Tell(desk, "digits-1", clock, tmp_path)
    began = clock.now
    started = foundation_time(began + 300)
    tell.put("report.json", {"status": "complete", "started": started, "seconds": {"total": 600.0}})
    clock.now = began + 960
    tell.instance(phase="ending")
    known = history.earlier(desk, "digits", spec_hash(made.loaded.spec))
    (minutes,) = known("VM.GPU.A10.1")
    assert minutes == pytest.approx({"start": 5.0, "train": 10.0, "upload": 1.0}, abs=0.05)
    assert known("VM.GPU.A10.2") == []
    assert history.earlier(desk, "digits", "another spec")("VM.GPU.A10.1") == []


def foundation_time(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "the foundation's outputs are not there"),
        ("[]", "not the foundation's outputs"),
        ("{", "not the foundation's outputs"),
        ('{"region": {"value": "x"}}', "tenancy_ocid, compartment_ocid, namespace"),
    ],
)
def test_a_foundation_that_is_none_is_told_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, words: str
) -> None:
    path = tmp_path / "outputs.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("JOB_FOUNDATION", str(path))
    with pytest.raises(UsageError) as told:
        foundation.read()
    assert words in str(told.value)
    assert "terraform -chdir=infra/foundation output -json > foundation.json" in str(told.value)


def test_the_readmes_figures_are_those_that_submit_shows(base: Foundation, spec: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    made = asked(base, spec, "resources.max_duration=1h")
    (quoted,) = submit.quote(made, 3.0, lambda _: [])
    assert f"about {quoted.usd:.2f} USD here and at most {quoted.worst_usd:.2f}" in readme


def test_the_readmes_storage_costs_what_the_price_list_says() -> None:
    root = Path(__file__).parents[2]
    prices = yaml.safe_load((root / "job/cloud/shapes.yaml").read_text())["storage"]
    defaults = dict(
        re.findall(r'"(boot_volume_\w+)" \{.*?default += (\d+)', (root / "infra/run/variables.tf").read_text(), re.S)
    )
    volume, units = int(defaults["boot_volume_gb"]), int(defaults["boot_volume_vpus"])
    an_hour = volume * (prices["block"] + units * prices["block_per_unit"]) / 730
    readme = (root / "README.md").read_text()
    assert f"bucket and registry {prices['objects']} a GB and month" in readme
    assert f"About 6 GB: {6 * prices['objects']:.2f} USD a month" in readme
    assert f"0.17 GB: {0.17 * prices['objects']:.3f} USD a month" in readme
    assert f"the boot volume, {an_hour:.2f} USD an hour" in readme

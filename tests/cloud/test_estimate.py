"""Minutes × price, what they rest on, and the worst case under the caps."""

import pytest

from job.cloud.estimate import estimate, longest, usd_per_hour
from job.errors import UsageError
from job.spec.schema import Resources


def resources(**keys: object) -> Resources:
    return Resources.model_validate({"shape": "VM.GPU.A10.1", **keys})


def test_minutes_times_price_is_the_cost() -> None:
    made = estimate(resources(max_duration="2h"), "VM.GPU.A10.1", 30.0)
    assert [phase.name for phase in made.phases] == ["boot", "pull", "train", "upload"]
    assert made.usd == pytest.approx(made.minutes / 60 * 2.0)
    assert made.phases[2].basis == "from --minutes"
    assert "not measured" in made.phases[0].basis


def test_the_worst_case_counts_from_the_launch_and_includes_the_end() -> None:
    made = estimate(resources(max_duration="2h"), "VM.GPU.A10.1", 30.0)
    assert made.worst_usd is not None
    assert 4.0 < made.worst_usd < 4.2
    assert f"at most {made.worst_usd:.2f} USD a launch" in made.lines()[-1]


def test_unknown_training_is_taken_to_last_as_long_as_it_may() -> None:
    made = estimate(resources(max_duration="2h"), "VM.GPU.A10.1", None)
    assert made.minutes == pytest.approx(120)
    assert "not known" in made.phases[2].basis


def test_earlier_runs_tell_better() -> None:
    earlier = [{"start": 9.0, "train": 99.0}, {"start": 6.5, "train": 12.0, "upload": 0.5}]
    made = estimate(resources(max_duration="2h"), "VM.GPU.A10.1", None, earlier)
    assert [(phase.name, phase.minutes) for phase in made.phases] == [
        ("boot, pull", 6.5),
        ("train", 12.0),
        ("upload", 0.5),
    ]
    assert {phase.basis for phase in made.phases} == {"as in the last run of this spec"}


def test_the_tighter_cap_holds() -> None:
    both = resources(max_duration="2h", max_cost=1.0)
    assert longest(both, "VM.GPU.A10.1", 2.0) == (1800, "resources.max_cost")
    assert longest(both, "VM.GPU.A10.1", 0.4) == (7200, "resources.max_duration")


def test_preemptible_is_half_and_nodes_multiply() -> None:
    assert usd_per_hour(resources(preemptible=True), "VM.GPU3.1") == pytest.approx(2.95 / 2)
    assert usd_per_hour(resources(), "VM.GPU.NEW") is None


def test_a_shape_without_a_price_still_has_an_end() -> None:
    made = estimate(resources(max_duration="2h"), "VM.GPU.NEW", 30.0)
    assert (made.usd, made.worst_usd) == (None, None)
    assert "price not known" in made.lines()[0]
    assert "USD" not in made.lines()[-1]


@pytest.mark.parametrize(
    ("keys", "shape", "words"),
    [
        ({}, "VM.GPU.A10.1", "nothing bounds the cost"),
        ({"max_cost": 5.0}, "VM.GPU.NEW", "the price of VM.GPU.NEW is not known, so max_cost bounds nothing"),
        ({"max_duration": "5m"}, "VM.GPU.A10.1", "300 s on VM.GPU.A10.1 end before boot and pull may be over"),
        ({"max_cost": 0.1}, "VM.GPU.A10.1", "180 s on"),
    ],
)
def test_a_run_without_a_sound_end_is_refused(keys: dict[str, object], shape: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        estimate(resources(**keys), shape, None)

"""When a checkpoint is due."""

import pytest

from job.loop import Due


def test_epochs() -> None:
    due = Due(2, 0)
    assert [due.after_epoch(epoch) for epoch in (1, 2, 3, 4)] == [False, True, False, True]
    assert not any(due.after_step(total) for total in range(1, 100))


def test_steps_counted_from_the_beginning_of_the_run() -> None:
    due = Due("5 steps", 3)  # resumed after 3
    assert [total for total in range(4, 17) if due.after_step(total)] == [5, 10, 15]
    assert not due.after_epoch(1)


@pytest.mark.parametrize("group", [2, 3, 7])
def test_steps_where_only_some_can_be_saved(group: int) -> None:
    """With accumulated gradients it is the first whole step from there on."""
    due = Due("5 steps", 0)
    found = [total for total in range(group, 40, group) if due.after_step(total)]
    expected = sorted({-(-at // group) * group for at in range(5, 40, 5) if -(-at // group) * group < 40})
    assert found == expected


def test_time() -> None:
    now = [0.0]
    due = Due(60.0, 0, lambda: now[0])
    found = []
    for total in range(1, 200):
        now[0] += 1
        if due.after_step(total):
            found.append(total)
    assert found == [60, 120, 180]
    assert not due.after_epoch(1)

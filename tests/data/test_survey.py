"""Decoding on all CPUs finds what one process finds, and leaves no process behind, however it ends."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from job.data import survey as module
from job.data.decode import Form
from job.data.survey import row, shared, survey
from job.errors import JobError

FORM = Form(40, 30, 3, resize=True)
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Twenty JPEGs, one of them damaged, in pieces of three for two processes."""
    monkeypatch.setattr(module, "PIECE", 3)
    monkeypatch.setattr(module, "cpu_count", lambda: 2)
    made = [tmp_path / f"{number}.jpg" for number in range(20)]
    for number, path in enumerate(made):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    made[7].write_bytes(b"no image")
    return made


def found(paths: list[Path]) -> tuple[list[int], np.ndarray[tuple[int, ...], np.dtype[np.void]], Pixels, list[object]]:
    """Processes that took part, the table, the pixels and the bad files."""
    pixels, table = shared(len(paths), FORM), np.zeros(len(paths), row(3))
    processes = np.frombuffer(multiprocessing.get_context("fork").RawArray("q", len(paths)), np.int64)

    def sink(place: int, image: Pixels) -> None:
        pixels[place], processes[place] = image, os.getpid()

    bad: list[object] = []
    for piece in survey(paths, FORM, sink):
        table[piece.places.start : piece.places.stop] = piece.rows
        bad += piece.bad
    return sorted(set(processes.tolist()) - {0}), table, pixels, bad


def test_processes_find_what_one_finds(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    others, table, pixels, bad = found(paths)
    assert os.getpid() not in others
    monkeypatch.setattr(module, "cpu_count", lambda: 1)
    own, alone, same, bad_alone = found(paths)
    assert own == [os.getpid()]
    assert np.array_equal(table, alone)
    assert np.array_equal(pixels, same)
    assert bad == bad_alone
    assert [entry["good"] for entry in table].count(False) == 1


def test_sums_are_exact() -> None:
    white = np.full((300, 200, 3), 255, np.uint8)
    counted, total, squares = module._sums(white)
    assert counted >= module.SAMPLE
    assert total.tolist() == [255.0 * counted] * 3
    assert squares.tolist() == [255.0**2 * counted] * 3


def test_small_images_are_counted_whole() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    counted, total, squares = module._sums(image)
    assert counted == 64 * 64
    assert np.array_equal(total, image.sum((0, 1), dtype=np.int64))
    assert np.array_equal(squares, np.square(image.astype(np.int64)).sum((0, 1)))


def test_a_process_that_was_killed_is_one_line(paths: list[Path]) -> None:
    first = os.getpid()

    def die(place: int, _image: Pixels) -> None:
        assert os.getpid() != first
        if place == 10:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(JobError, match="a process that decoded images was killed; give the run more memory"):
        list(survey(paths, FORM, die))
    assert multiprocessing.active_children() == []


def test_a_full_disk_is_heard_of(paths: list[Path]) -> None:
    def full(_place: int, _image: Pixels) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        list(survey(paths, FORM, full))
    assert multiprocessing.active_children() == []


def test_left_early_the_processes_are_gone(paths: list[Path]) -> None:
    pieces = survey(paths, FORM, lambda _place, _image: None)
    next(pieces)
    assert len(multiprocessing.active_children()) == 2
    pieces.close()
    assert multiprocessing.active_children() == []

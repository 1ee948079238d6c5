"""Decodes every file of a data set once, on all CPUs, and notes what it found out about each.

Processes, not threads: what Python and Pillow do between two decoders holds the interpreter's lock, so that two threads
decoded no more than one. They are forked, write pixels to where all see them, and send back a line for each file.
"""

import contextlib
import hashlib
import itertools
import mmap
import multiprocessing
import os
import signal
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from job.data import decode as decoders
from job.data.decode import Form, Header, decode, header, problem_of
from job.device import cpu_count
from job.errors import JobError

SAMPLE = 4096  # pixels an image, at least, that its sums are taken over: all of them up to 64×64, then every k-th row
PIECE = 64  # files a task: enough that handing it out costs nothing
AHEAD = 2  # tasks a process has at a time, so that it need not wait for the next

Sink = Callable[[int, NDArray[np.uint8]], None]  # takes an image's pixels, in any order, in any of the processes


class Bad(NamedTuple):
    """A file that cannot be used."""

    place: int
    problem: str
    seen: Header | None


@dataclass
class Piece:
    """What was found out about some files that follow one another."""

    places: range
    rows: NDArray[np.void]
    bad: list[Bad] = field(default_factory=list)


def row(channels: int) -> np.dtype[np.void]:
    """A file's line in the table."""
    return np.dtype(
        [
            ("good", "?"),
            ("mode", "U8"),
            ("digest", "u1", 16),  # of the file's bytes
            ("check", "<u4"),  # CRC-32 of the pixels
            ("counted", "<i8"),  # pixels in the sums below
            ("total", "<i8", (channels,)),
            ("squares", "<i8", (channels,)),
        ]
    )


def survey(paths: Sequence[Path], form: Form, sink: Sink) -> Generator[Piece, None, None]:
    """Piece by piece in any order, each when its pixels have gone into `sink`. Closed early, the rest is not done."""

    def look(places: range) -> Piece:
        piece = Piece(places, np.zeros(len(places), row(form.channels)))
        for place in places:
            seen = None
            try:
                content = paths[place].read_bytes()
                seen = header(content)
                image = decode(content, form, seen)
            except Exception as error:
                piece.bad.append(Bad(place, problem_of(error), seen))
                continue
            sink(place, image)
            digest = np.frombuffer(hashlib.sha256(content).digest()[:16], np.uint8)
            found = (True, seen.mode, digest, zlib.crc32(image.data), *_sums(image))
            piece.rows[place - places.start] = found
        return piece

    pieces = [range(start, min(len(paths), start + PIECE)) for start in range(0, len(paths), PIECE)]
    workers = min(cpu_count(), len(pieces))
    if workers == 1:
        return (look(piece) for piece in pieces)
    decoders.prepare()
    return _in_processes(look, pieces, workers)


def shared(count: int, form: Form) -> NDArray[np.uint8]:
    """Memory for `count` images that forked processes write into."""
    room = mmap.mmap(-1, max(1, count * form.nbytes))
    return np.frombuffer(room, np.uint8, count * form.nbytes).reshape(count, *form.shape)


def _sums(image: NDArray[np.uint8]) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Pixels counted, and by channel the sum of their values and squares: whole numbers, which float64 holds exactly.

    With integers it took 250 µs an image, as long as decoding it.
    """
    height, width, channels = image.shape
    sample = image[:: max(1, height * width // SAMPLE)].reshape(-1, channels)
    values = np.array(sample.T, np.float64, order="C")
    return len(sample), values.sum(1), np.einsum("cn,cn->c", values, values)


def _in_processes(look: Callable[[range], Piece], pieces: list[range], workers: int) -> Generator[Piece, None, None]:
    """The pieces as they are done. The processes are gone when this ends, however it ends."""
    fork = multiprocessing.get_context("fork")
    left = iter(pieces)
    pipes: list[Connection] = []
    processes = []
    try:
        for _ in range(workers):
            here, there = fork.Pipe()
            processes.append(fork.Process(target=_serve, args=(look, there), daemon=True))
            processes[-1].start()
            there.close()
            pipes.append(here)
            for piece in itertools.islice(left, AHEAD):
                here.send(piece)
        yield from _received(pipes, left, len(pieces))
    finally:
        for process, pipe in zip(processes, pipes, strict=False):
            pipe.close()
            process.terminate()
        for process in processes:
            process.join()


def _received(pipes: list[Connection], left: Iterator[range], count: int) -> Iterator[Piece]:
    """`count` pieces from the processes, each of which gets another for it."""
    while count:
        for pipe in wait(pipes):
            assert isinstance(pipe, Connection)
            try:
                found = pipe.recv()
                for piece in itertools.islice(left, 1):
                    pipe.send(piece)
            except (EOFError, OSError) as error:
                cure = "give the run more memory, or fewer CPUs"
                raise JobError("dataset", "a process that decoded images was killed", cure) from error
            if isinstance(found, Exception):
                raise found
            count -= 1
            yield found


def _serve(look: Callable[[range], Piece], pipe: Connection) -> None:
    """A process's life: pieces in, what was found out back, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the first process decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(EOFError, OSError):
        while True:
            places = pipe.recv()
            try:
                found: Piece | Exception = look(places)
            except Exception as error:
                found = error
            pipe.send(found)
    os._exit(0)  # what the first process would do at its end is not this one's to do

"""One GiB to Object Storage over a slow line: parts at once against one stream, and the memory that it takes.

The test server adds 20 ms to each request and lets a connection carry 15 MB a second, as distance bounds a stream. Both
ways go through the same client to the same server, in one run: `put` in parts, `put_if` in one request. Server and
client share this machine, so that hashing, at both ends, is part of what is measured. Memory is that of a process of
its own, above what it takes once connected.

    python -m tests.bench.storage [--size MIB] [--latency MS] [--rate MB] [--repeat N] [--json FILE]
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from job.storage import upload
from job.storage.object_storage import open_uri
from tests.bench import common
from tests.bench.common import ROOT, Ratio, finish, median, python

MIB = 2**20
UPLOADS = """
import sys
from pathlib import Path
from tests.bench.storage import upload_once
upload_once(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--size", type=int, default=1024, help="MiB; default 1024")
    parser.add_argument("--latency", type=float, default=20, help="milliseconds a request; default 20")
    parser.add_argument("--rate", type=float, default=15, help="MB a second that one connection carries; default 15")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        samples = measured(Path(folder), asked.size * MIB, asked.latency, asked.rate, asked.repeat)
    parts, one = (median([seconds for seconds, _ in samples[way]]) for way in ("parts", "one"))
    extra = max(extra for _, extra in samples["parts"]) / MIB
    line = f"{asked.latency:.0f} ms a request, {asked.rate:.0f} MB/s a connection"
    for what, seconds in ((f"{upload.PARALLEL} parts at once", parts), ("one stream", one)):
        print(f"{asked.size} MiB, {line}, {what}: {seconds:.1f} s, {asked.size * MIB / seconds / 1e6:.0f} MB/s")
    ratios = [
        Ratio(f"one stream ÷ {upload.PARALLEL} parts at once, {asked.size} MiB, {line}", one / parts, bar=3),
        Ratio("memory that the parts take", extra, bar=300, at_most=True, unit=" MiB"),
    ]
    return finish("storage", ratios, samples, asked.json)


def measured(folder: Path, size: int, latency: float, rate: float, repeat: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds and extra bytes of each upload, by way."""
    source = folder / "file"
    with source.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    command = [sys.executable, "-m", "tests.object_storage", str(folder / "server")]
    command += ["--latency", str(latency), "--rate", str(rate)]
    samples: dict[str, list[tuple[float, float]]] = {"parts": [], "one": []}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            told = json.loads(server.stdout.readline())
            os.environ.update(told["environment"])
            for _ in range(repeat):
                for way, found in samples.items():
                    output = python(["-c", UPLOADS, str(source), told["uri"], way]).output
                    seconds, extra = output.split()[-2:]
                    found.append((float(seconds), float(extra)))
        finally:
            server.terminate()
    return samples


def upload_once(source: Path, uri: str, way: str) -> None:
    """Prints the seconds of the upload and the bytes of memory that it took."""
    store = open_uri(f"{uri}/bench")
    store.delete("file")  # imports and the connection are not what is timed
    before, start = _peak(), time.perf_counter()
    entry = store.put(source, "file") if way == "parts" else store.put_if(source, "file", None)
    seconds = time.perf_counter() - start
    assert entry is not None
    assert entry.size == source.stat().st_size
    print(seconds, _peak() - before)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    raise SystemExit(main())

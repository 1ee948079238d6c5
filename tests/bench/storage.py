"""One GiB to Object Storage over a slow line: parts at once against one stream, and the memory that it takes.

    python tests/bench/storage.py [--size MIB] [--latency MS] [--rate MB] [--json FILE]

The test server adds the latency to each request and bounds each connection, as a wide-area line bounds a stream; both
ways go through the same client, to the same server, in one run. Prints a line a way and the ratio, and JSON beside it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from job.storage import upload  # noqa: E402 - after the path is set
from job.storage.object_storage import ObjectStore, open_uri  # noqa: E402 - after the path is set

MIB = 2**20
BAR, MEMORY_BAR = 3.0, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    parser.add_argument("--latency", type=float, default=20, help="milliseconds a request")
    parser.add_argument("--rate", type=float, default=15, help="MB a second that one connection carries")
    parser.add_argument("--json", type=Path, help="where the figures go too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), asked.size * MIB, asked.latency, asked.rate)
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    line = f"{asked.size} MiB, {asked.latency:.0f} ms a request, {asked.rate:.0f} MB/s a connection"
    print(f"{line}\none stream            {found['one_seconds']:7.1f} s  {found['one_rate']:6.1f} MB/s")
    print(f"{found['parallel']} parts at once      {found['parts_seconds']:7.1f} s  {found['parts_rate']:6.1f} MB/s")
    print(f"ratio {found['ratio']:.2f}, bar {BAR}; extra memory {found['extra_mib']:.0f} MiB, bar {MEMORY_BAR}")


def measured(folder: Path, size: int, latency: float, rate: float) -> dict[str, Any]:
    source = folder / "file"
    with source.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    command = [sys.executable, "-m", "tests.object_storage", str(folder / "server")]
    command += ["--latency", str(latency), "--rate", str(rate)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        told = json.loads(server.stdout.readline())
        os.environ.update(told["environment"])
        store = open_uri(f"{told['uri']}/bench")
        (folder / "small").write_bytes(b"1")
        store.put(folder / "small", "warm")  # imports and the connection are not what is timed
        before = peak()
        parts = timed(store, source, size)
        extra = peak() - before
        upload.PART = size  # one request, one connection
        one = timed(store, source, size)
        server.terminate()
    found = {"bytes": size, "latency_ms": latency, "rate_mb": rate, "parallel": upload.PARALLEL}
    found |= {
        "one_seconds": one,
        "one_rate": size / one / 1e6,
        "parts_seconds": parts,
        "parts_rate": size / parts / 1e6,
    }
    return found | {"ratio": one / parts, "extra_mib": extra / MIB, "bar": BAR, "memory_bar_mib": MEMORY_BAR}


def timed(store: ObjectStore, source: Path, size: int) -> float:
    start = time.perf_counter()
    entry = store.put(source, "file")
    assert entry.size == size
    return time.perf_counter() - start


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()

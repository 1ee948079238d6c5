"""From SIGTERM to exit 75 with everything stored, at a store of 50 ms latency and 20 MB/s, on the sample specs.

    JOB_DATA_ROOT=/data python -m tests.bench.interrupt [--repeat 1] [--json FILE]

Each run is asked to stop at its first line of running loss, in the middle of an epoch, where nothing has been saved
yet: it has to finish its step, save, upload and leave. Then the server's own files are read: the pointer has to name a
checkpoint that is there with its bytes, and the status has to say that the run was interrupted.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench import common
from tests.bench.checkpoint_store import serve
from tests.bench.common import ROOT, Ratio, finish

BAR = 10.0  # seconds
SAMPLES = ("digits.yaml", "cifar10-tutorial.yaml", "cifar10.yaml", "cifar10-long.yaml")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__, repeat=1)
    parser.add_argument("--latency", type=float, default=50, help="milliseconds a request; default 50")
    parser.add_argument("--rate", type=float, default=20, help="MB a second that one connection carries; default 20")
    options = parser.parse_args(arguments)
    options.data = common.cifar10(options.data)
    if options.data is None:
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told, server = serve(folder, options.latency, options.rate)
        try:
            samples = {
                sample: [stop(options, folder, told, sample, number) for number in range(options.repeat)]
                for sample in SAMPLES
            }
        finally:
            server.terminate()
            server.wait()
    ratios = [
        Ratio(f"{sample}: SIGTERM to exit 75, all stored", max(times), BAR, at_most=True, unit=" s")
        for sample, times in samples.items()
    ]
    return finish("interrupt", ratios, samples, options.json)


def stop(options: argparse.Namespace, folder: Path, told: dict[str, Any], sample: str, number: int) -> float:
    """Seconds until the run had left."""
    run_id = f"{Path(sample).stem}-{number}"
    keys = {"store.uri": f"{told['uri']}/runs", "train.log_every": "10", "train.device": "cpu"}
    keys |= {} if sample == "digits.yaml" else {"dataset.root": str(options.data)}
    command = [sys.executable, "-m", "job", "run", f"job/spec/samples/{sample}", "--run-id", run_id]
    command += [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    environment = {**os.environ, **told["environment"], "JOB_WORK_DIR": str(folder / "work")}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        if not any(line.startswith("[1,") for line in process.stdout):
            raise SystemExit(f"{sample} ended before its first step")
        began = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        output = process.stdout.read()
        code = process.wait()
        took = time.perf_counter() - began
    if code != 75 or (wrong := missing(folder / "server", run_id)):
        raise SystemExit(f"{sample} ended with {code}: {wrong if code == 75 else output}")
    size = max(path.stat().st_size for path in (folder / "work" / run_id / "checkpoints").glob("*.pt")) / 1e6
    print(f"{sample}: {took:.2f} s, a checkpoint of {size:.1f} MB", flush=True)
    return took


def missing(server: Path, run_id: str) -> str:
    """What is not stored as it should be; empty when all is well. Read past the server."""
    objects = {}
    for index in server.rglob("*.json"):
        entry = json.loads(index.read_text(encoding="utf-8"))
        if isinstance(entry, dict) and str(entry.get("name", "")).startswith(f"runs/{run_id}/"):
            objects[entry["name"].removeprefix(f"runs/{run_id}/")] = Path(entry["data"])
    for name in ("checkpoints/latest.json", "status.json", "report.json", "logs/job.log"):
        if name not in objects:
            return f"{name} is not stored"
    if json.loads(objects["status.json"].read_text(encoding="utf-8"))["status"] != "interrupted":
        return "the stored status does not say interrupted"
    newest = json.loads(objects["checkpoints/latest.json"].read_text(encoding="utf-8"))["files"][0]
    path = objects.get(f"checkpoints/{newest['file']}")
    if path is None or hashlib.sha256(path.read_bytes()).hexdigest() != newest["sha256"]:
        return f"{newest['file']} is missing or other bytes"
    return ""


if __name__ == "__main__":
    raise SystemExit(main())

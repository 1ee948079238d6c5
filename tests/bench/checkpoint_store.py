"""What uploading costs the training: a checkpoint an epoch to a store of 50 ms latency and 20 MB/s, against no store.

    JOB_DATA_ROOT=/data python -m tests.bench.checkpoint_store [--repeat 5] [--epochs 3] [--kills N] [--json FILE]

Pairs of whole runs of the sample cifar10.yaml. A machine's speed wanders by more than the bar, so the two of a pair run
at the same time, each on half of the CPUs, and change halves from pair to pair. Counted are the seconds of training in
report.json; the ratio is the median over pairs. The server takes only what the runs leave of this machine, since a
real one computes elsewhere. How far runs of one kind lie apart is shown beside the ratio.

`--kills N` does something else: it kills N short runs with uploads at random moments, begins each again, and counts
those that do not end complete with a true manifest.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench import common
from tests.bench.common import ROOT, Ratio, finish

KINDS = ("none", "store")
BAR = 1.02
SAMPLE = ROOT / "job/spec/samples/cifar10.yaml"
SHORT = """
name: bench
dataset: {name: digits}
loader: {batch_size: 64, num_workers: 0}
model: {name: resnet9, width: 4}
optimizer: {name: sgd, lr: 0.05}
train: {epochs: 3, device: cpu}
checkpoint: {keep: 3}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__, repeat=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--latency", type=float, default=50, help="milliseconds a request; default 50")
    parser.add_argument("--rate", type=float, default=20, help="MB a second that one connection carries; default 20")
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="kill N short runs instead")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    options = parser.parse_args(arguments)
    options.data = None if options.kills else common.cifar10(options.data)
    if options.data is None and not options.kills:
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told, server = serve(folder, options.latency, options.rate)
        try:
            return kills(options, folder, told) if options.kills else compare(options, folder, told)
        finally:
            server.terminate()
            server.wait()


def serve(folder: Path, latency: float, rate: float) -> tuple[dict[str, Any], "subprocess.Popen[str]"]:
    # a real store computes elsewhere: this one takes what training leaves
    command = ["chrt", "--idle", "0", sys.executable, "-m", "tests.object_storage", str(folder / "server")]
    limits = ["--latency", str(latency), "--rate", str(rate)]
    server = subprocess.Popen([*command, *limits], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    told: dict[str, Any] = json.loads(server.stdout.readline())
    return told, server


def compare(options: argparse.Namespace, folder: Path, told: dict[str, Any]) -> int:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        print("skipped: needs two CPUs")
        return 0
    pairs = []
    for number in range(options.repeat):
        halves = cpus[::2], cpus[1::2]
        pairs.append(together(options, folder, told, number, halves[:: -1 if number % 2 else 1]))
        print(
            f"{number + 1}/{options.repeat}: "
            + ", ".join(f"{kind} {pairs[-1][kind]:.2f} s" for kind in KINDS)
            + f", {pairs[-1]['store'] / pairs[-1]['none']:.3f}",
            flush=True,
        )
    none = [pair["none"] for pair in pairs]
    size = max(path.stat().st_size for path in folder.glob("work/*/checkpoints/*.pt")) / 1e6
    print(f"a checkpoint of {size:.1f} MB an epoch; runs without a store: {min(none):.2f} to {max(none):.2f} s")
    what = f"training with a store ÷ without, {options.latency:.0f} ms and {options.rate:.0f} MB/s"
    ratio = Ratio(what, common.median([pair["store"] / pair["none"] for pair in pairs]), BAR, at_most=True)
    return finish("checkpoint_store", [ratio], pairs, options.json)


def together(
    options: argparse.Namespace, folder: Path, told: dict[str, Any], number: int, halves: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Seconds of training of both kinds, as the runs' own reports have them."""
    running = {
        kind: start(options, folder, told, kind, f"{kind}-{number}", cpus)
        for kind, cpus in zip(KINDS, halves, strict=True)
    }
    seconds = {}
    for kind, process in running.items():
        output, _ = process.communicate()
        if process.returncode != 0:
            raise SystemExit(f"{kind} ended with {process.returncode}:\n{output}")
        report = json.loads((folder / f"work/{kind}-{number}/report.json").read_text(encoding="utf-8"))
        seconds[kind] = float(report["seconds"]["train"])
    return seconds


def start(
    options: argparse.Namespace,
    folder: Path,
    told: dict[str, Any],
    kind: str,
    run_id: str,
    cpus: Sequence[int] = (),
) -> "subprocess.Popen[str]":
    keys = {"store.uri": f"{told['uri']}/runs" if kind == "store" else str(folder / "work")}
    spec = SAMPLE
    if options.kills:
        spec = folder / "spec.yaml"
        spec.write_text(SHORT, encoding="utf-8")
    else:
        keys |= {"dataset.root": str(options.data), "train.epochs": str(options.epochs)}
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cpus))] if cpus else []
    command = [*pinned, sys.executable, "-m", "job", "run", str(spec), "--run-id", run_id]
    command += [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    environment = {**os.environ, **told["environment"], "JOB_WORK_DIR": str(folder / "work")}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def kills(options: argparse.Namespace, folder: Path, told: dict[str, Any]) -> int:
    """Each run is killed once at a moment drawn over its whole length, and begun again."""
    draw, bad = random.Random(options.seed), 0
    began = time.monotonic()
    whole = start(options, folder, told, "store", "whole")
    whole.communicate()
    length = time.monotonic() - began
    for number in range(options.kills):
        run_id, moment = f"killed-{number}", draw.uniform(0.2, 1.0) * length
        process = start(options, folder, told, "store", run_id)
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        again = start(options, folder, told, "store", run_id)
        output, _ = again.communicate()
        wrong = "" if again.returncode == 0 else f"exit {again.returncode}: {output[-500:]}"
        wrong = wrong or untrue(folder / "server", run_id)
        bad += bool(wrong)
        print(f"{number + 1}: killed after {moment:.1f} s{': ' if wrong else ''}{wrong or ', complete'}", flush=True)
    print(f"{options.kills} kills, {bad} runs that are not complete or whose manifest is not true")
    return 1 if bad else 0


def untrue(server: Path, run_id: str) -> str:
    """What the stored manifest says and the stored bytes do not; empty when all is well. Read past the server."""
    objects = {}
    for index in server.rglob("*.json"):
        entry = json.loads(index.read_text(encoding="utf-8"))
        if isinstance(entry, dict) and str(entry.get("name", "")).startswith(f"runs/{run_id}/"):
            objects[entry["name"].removeprefix(f"runs/{run_id}/")] = Path(entry["data"])
    if "manifest.json" not in objects:
        return "no manifest"
    manifest = json.loads(objects["manifest.json"].read_text(encoding="utf-8"))
    for claim in manifest["files"]:
        path = objects.get(claim["path"])
        if path is None or hashlib.sha256(path.read_bytes()).hexdigest() != claim["sha256"]:
            return f"{claim['path']} is missing or other bytes"
    extra = set(objects) - {claim["path"] for claim in manifest["files"]} - {"manifest.json"}
    return f"left behind: {sorted(extra)}" if extra else ""


if __name__ == "__main__":
    raise SystemExit(main())

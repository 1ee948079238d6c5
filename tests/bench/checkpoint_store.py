"""What uploading costs the training: a checkpoint an epoch to a store of 50 ms latency and 20 MB/s, against no store.

    python tests/bench/checkpoint_store.py [--pairs 3] [--epochs 6] [--kills N] [--json FILE]

Pairs of whole runs, alternately and in the order AB BA AB; counted are the seconds of training in report.json, and the
ratio is the median over pairs. Fails above 1.02. `--kills N` does something else: it kills N runs with uploads at
random moments, begins each again, and counts those that do not end complete with a true manifest.
"""

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BAR = 1.02
SPEC = """
name: bench
dataset: {name: digits}
loader: {batch_size: 64, num_workers: 0}
model: {name: resnet9, width: WIDTH}
optimizer: {name: sgd, lr: 0.05}
train: {epochs: EPOCHS, device: cpu}
checkpoint: {keep: 3}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=24, help="of resnet9; a checkpoint grows with its square")
    parser.add_argument("--latency", type=float, default=50, help="milliseconds")
    parser.add_argument("--rate", type=float, default=20, help="MB a second a connection")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
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
    command = ["nice", "-n", "19", sys.executable, "-m", "tests.object_storage", str(folder / "server")]
    limits = ["--latency", str(latency), "--rate", str(rate)]
    server = subprocess.Popen([*command, *limits], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    told: dict[str, Any] = json.loads(server.stdout.readline())
    return told, server


def compare(options: argparse.Namespace, folder: Path, told: dict[str, Any]) -> int:
    pairs = []
    for number in range(options.pairs):
        order = ("none", "store") if number % 2 == 0 else ("store", "none")
        seconds = {kind: train(options, folder, told, kind, number) for kind in order}
        pairs.append(seconds)
        print(f"pair {number + 1}: no store {seconds['none']:.2f} s, store {seconds['store']:.2f} s", flush=True)
    ratio = statistics.median(pair["store"] / pair["none"] for pair in pairs)
    sizes = [path.stat().st_size for path in folder.glob("work/*/checkpoints/*.pt")]
    size = max(sizes) / 1e6
    print(f"training time with a store ÷ without: {ratio:.3f} (bar {BAR}), {size:.1f} MB a checkpoint")
    if options.json is not None:
        options.json.write_text(json.dumps({"pairs": pairs, "ratio": ratio, "checkpoint_mb": size}, indent=2) + "\n")
    return 0 if ratio <= BAR else 1


def train(options: argparse.Namespace, folder: Path, told: dict[str, Any], kind: str, number: int) -> float:
    """Seconds of training, as the run's own report has them."""
    done = start(options, folder, told, kind, f"{kind}-{number}")
    output, _ = done.communicate()
    if done.returncode != 0:
        raise SystemExit(f"{kind} ended with {done.returncode}:\n{output}")
    report = json.loads((folder / f"work/{kind}-{number}/report.json").read_text(encoding="utf-8"))
    return float(report["seconds"]["train"])


def start(
    options: argparse.Namespace, folder: Path, told: dict[str, Any], kind: str, run_id: str
) -> "subprocess.Popen[str]":
    uri = f"{told['uri']}/runs" if kind == "store" else str(folder / "work")
    spec = folder / "spec.yaml"
    text = SPEC.replace("EPOCHS", str(options.epochs)).replace("WIDTH", str(options.width))
    spec.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "job", "run", str(spec), "--run-id", run_id, "--set", f"store.uri={uri}"]
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

"""All benchmarks, one after the other, each in a process of its own: text to the terminal, JSON into a folder.

    python -m tests.bench.run [NAME…] [--data FOLDER] [--repeat N] [--out FOLDER]

A benchmark is a module here with `main(arguments)`; those that need what is not there say so and count as skipped.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.common import ROOT, machine

HELPERS = {"common", "lab", "photos", "run", "test_bench"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Runs the benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; default all")
    parser.add_argument("--data", type=Path, default=os.environ.get("JOB_DATA_ROOT"), help="default: $JOB_DATA_ROOT")
    parser.add_argument("--repeat", type=int, metavar="N", help="runs of each side; default: each benchmark's own")
    parser.add_argument("--out", type=Path, default=ROOT / "build/bench", help="folder for the JSON files")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(names())
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    options.out.mkdir(parents=True, exist_ok=True)
    print(", ".join(f"{word} {value}" for word, value in machine().items()))
    common = [] if options.data is None else ["--data", str(options.data)]
    common += [] if options.repeat is None else ["--repeat", str(options.repeat)]
    failed = []
    for name in options.names or names():
        print(f"\n== {name}", flush=True)
        file = options.out / f"{name}.json"
        file.unlink(missing_ok=True)
        command = [sys.executable, "-m", f"tests.bench.{name}", *common, "--json", str(file)]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        if subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode != 0:
            failed.append(name)
    table(options.out, options.names or names(), failed)
    return 1 if failed else 0


def names() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in HELPERS)


def table(folder: Path, wanted: Sequence[str], failed: Sequence[str]) -> None:
    """Every ratio as a Markdown table, for the README."""
    print("\n| benchmark | what | figure | bar |\n| --- | --- | --- | --- |")
    for name in wanted:
        file = folder / f"{name}.json"
        if not file.is_file():
            print(f"| {name} | {'failed' if name in failed else 'skipped'} | | |")
            continue
        ratios = json.loads(file.read_text(encoding="utf-8")).get("ratios")
        if not isinstance(ratios, list):
            print(f"| {name} | its own table stands above | | |")
            continue
        for ratio in ratios:
            sign = "≤" if ratio["at_most"] else "≥"
            mark = "held" if ratio["held"] else "missed"
            bar = "" if ratio["bar"] is None else f"{sign} {ratio['bar']:g}, {mark}"
            print(f"| {name} | {ratio['what']} | {ratio['value']:.3g}{ratio['unit']} | {bar} |")


if __name__ == "__main__":
    raise SystemExit(main())

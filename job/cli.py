"""The command line: `python -m job VERB`. Each verb imports what it needs when it is called.

Exit codes: 0 done · 1 the job failed · 2 bad spec or usage · 3 bad or missing data ·
4 trained, but results not all uploaded · 75 interrupted and resumable.
"""

import argparse
import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job import cloud_verbs
from job.device import calm_waiting, gpu_count
from job.errors import JobError, UsageError

if TYPE_CHECKING:
    from job.interrupt import StopFlag
    from job.spec.load import Loaded
    from job.training.distributed import Ranks
    from job.training.nodes import Nodes

DESCRIPTION = "Trains and evaluates an image classifier from a YAML spec, and leaves checkpoints and a report."
EPILOGUE = """\
exit codes: 0 done, 1 the job failed, 2 bad spec or usage, 3 bad or missing data,
4 trained but not everything uploaded, 75 interrupted (run the same id again to go on)

first steps: python -m job run job/spec/samples/digits.yaml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; a JobError is one line and an exit code. The only place that catches it."""
    options = parser().parse_args(arguments)
    calm_waiting()
    code = _call(options)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from job import ranks

        return ranks.leave(code)
    return code


def _call(options: argparse.Namespace) -> int:
    try:
        verb: Callable[[argparse.Namespace], int] = options.verb
        return verb(options)
    except JobError as error:
        if options.debug:
            traceback.print_exc()
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 75
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has left: nothing to tell, nobody to tell it to
        return 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m job", description=DESCRIPTION, epilog=EPILOGUE, formatter_class=argparse.RawTextHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    spec = argparse.ArgumentParser(add_help=False)
    spec.add_argument("spec", metavar="SPEC", help="the YAML file")
    spec.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key: train.epochs=5")
    shown = argparse.ArgumentParser(add_help=False)
    shown.add_argument("--log-format", choices=("auto", "plain", "json"), default="auto", help="default: auto")
    saved = argparse.ArgumentParser(add_help=False)
    saved.add_argument("weights", metavar="RUN|CHECKPOINT", help="a run's folder or oci://…/RUN, or a .pt file in it")
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB")

    verb = verbs.add_parser("run", parents=[spec, shown, common], help="the whole job: data, train, evaluate, report")
    verb.add_argument("--run-id", metavar="ID", help="name of the run's folder; an id that exists is resumed")
    verb.add_argument("--stop-after", metavar="STEPS", type=int, help="save and exit 75 after as many steps")
    verb.set_defaults(verb=run)
    verb = verbs.add_parser("validate", parents=[spec, common], help="check the spec alone")
    verb.set_defaults(verb=validate)
    verb = verbs.add_parser("plan", parents=[spec, shown, common], help="what would run; writes nothing")
    verb.add_argument("--live", action="store_true", help="ask OCI what it offers of the shapes")
    verb.set_defaults(verb=plan)
    verb = verbs.add_parser("tune", parents=[spec, shown, common], help="measure loader settings on this machine")
    verb.set_defaults(verb=tune)
    verb = verbs.add_parser("shard", parents=[spec, common], help="make shards of the data, to stream from a bucket")
    verb.add_argument("destination", metavar="DEST", help="a folder, or oci://BUCKET@NAMESPACE/PREFIX")
    verb.add_argument("--size", metavar="SIZE", default="64MiB", help="of a shard, at most; default: 64MiB")
    verb.set_defaults(verb=shard)
    _add_verbs_on_runs(verbs, saved, shown, common)
    verb = verbs.add_parser(
        "verify-resume", parents=[spec, shown, common], help="is a run that was interrupted what it would have been?"
    )
    verb.add_argument("--whole", action="store_true", help="the spec as it is, not a shortened one")
    verb.add_argument("--seed", type=int, help="draws the step; default: another one each time")
    verb.set_defaults(verb=verify_resume)
    verb = verbs.add_parser("doctor", parents=[common], help="check this machine, a line each, with the cure")
    verb.add_argument("spec", metavar="SPEC", nargs="?", help="also check what this spec needs")
    verb.add_argument("--cloud", action="store_true", help="check the tenancy instead, and what was left behind in it")
    verb.set_defaults(verb=doctor)
    verb = verbs.add_parser("schema", parents=[common], help="JSON Schema of the spec, for editors")
    verb.set_defaults(verb=schema)
    cloud_verbs.add(verbs, spec, common)
    return top


def _add_verbs_on_runs(
    verbs: Any, saved: argparse.ArgumentParser, shown: argparse.ArgumentParser, common: argparse.ArgumentParser
) -> None:
    verb = verbs.add_parser("evaluate", parents=[saved, shown, common], help="test accuracy of saved weights")
    verb.set_defaults(verb=evaluate)
    verb = verbs.add_parser("predict", parents=[saved, common], help="class and probability of images")
    verb.add_argument("images", metavar="IMAGE", nargs="+", type=Path)
    verb.set_defaults(verb=predict)
    verb = verbs.add_parser("report", parents=[common], help="render a run's report again")
    verb.add_argument("run", metavar="RUN", help="a run's folder, or oci://…/RUN")
    verb.set_defaults(verb=report)
    verb = verbs.add_parser("compare", parents=[common], help="set runs side by side")
    verb.add_argument("runs", metavar="RUN", nargs="+", help="runs' folders, or oci://…/RUN")
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.add_argument("--html", metavar="FILE", type=Path, help="also write a page")
    verb.set_defaults(verb=compare)
    verb = verbs.add_parser("upload", parents=[shown, common], help="store what a run could not")
    verb.add_argument("run", metavar="RUN", type=Path, help="a run's folder")
    verb.set_defaults(verb=upload)
    verb = verbs.add_parser("fetch", parents=[common], help="download a whole run from its store, verified")
    verb.add_argument("run", metavar="RUN", help="oci://BUCKET@NAMESPACE/PREFIX/RUN")
    verb.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", help="default: the run's id")
    verb.set_defaults(verb=fetch)


def run(options: argparse.Namespace) -> int:
    from job.interrupt import StopFlag
    from job.spec.load import load

    with _fetched(options.spec) as path:
        loaded = load(path, options.set)
    stop = StopFlag(loaded.spec.checkpoint.grace)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        if options.run_id is None:
            raise UsageError("--run-id", "missing", "name the run: processes that start again must find it")
        from job import ranks

        return ranks.take_part(loaded, lambda several: _lead(options, loaded, stop, several))
    count = gpu_count() if loaded.spec.processes == "gpus" else loaded.spec.processes
    if (nodes := _nodes(loaded)) is not None:
        if options.run_id is None:
            raise UsageError("--run-id", "missing", "name the run: all machines must mean the same one")
        from job import ranks

        patience = loaded.spec.resources.first_step_timeout / 2
        return ranks.launch_together(_again(options, options.run_id), max(1, count), stop.grace, nodes, patience)
    if count > 1:
        from job import pipeline, ranks

        run_id = options.run_id or pipeline.new_id(loaded.spec)
        return ranks.launch(_again(options, run_id), count, stop.grace)
    return _lead(options, loaded, stop)


def _nodes(loaded: "Loaded") -> "Nodes | None":
    """The machines that train together; None on one alone."""
    if loaded.spec.resources.nodes == 1 and "JOB_NODES" not in os.environ:
        return None
    from job.training import nodes

    return nodes.from_environ(os.environ, loaded.spec.resources.nodes)


def _lead(options: argparse.Namespace, loaded: "Loaded", flag: "StopFlag", several: "Ranks | None" = None) -> int:
    with flag.installed() as stop:
        from job import console, pipeline
        from job.environment import process_seconds

        began = time.time() - process_seconds()
        with console.make(options.log_format) as screen:
            for event in pipeline.job(loaded, options.run_id, stop, began, options.stop_after, several):
                screen.show(event)
    return 0


def _again(options: argparse.Namespace, run_id: str) -> list[str]:
    """The words of this command, for the processes that do it together."""
    words = ["run", options.spec, "--run-id", run_id, "--log-format", options.log_format]
    words += [word for change in options.set for word in ("--set", change)]
    words += [] if options.stop_after is None else ["--stop-after", str(options.stop_after)]
    return words + (["--debug"] if options.debug else [])


@contextlib.contextmanager
def _fetched(where: str) -> Iterator[str]:
    """A path that holds the spec; one in a store (oci://…/spec.yaml) is fetched first, as schedulers name it."""
    if "://" not in where:
        yield where
        return
    import tempfile

    from job.storage.store import open_store

    place, _, name = where.rpartition("/")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        open_store(place).get(name, path)
        yield str(path)


def validate(options: argparse.Namespace) -> int:
    from job.spec.load import load

    load(options.spec, options.set)
    print(f"{options.spec}: valid")
    return 0


def plan(options: argparse.Namespace) -> int:
    from job import console, planning
    from job.environment import process_seconds
    from job.spec.load import load

    loaded = load(options.spec, options.set)
    made = planning.plan(loaded, fetch=False, began=time.time() - process_seconds())
    with console.make(options.log_format) as screen:
        for event in planning.describe(made):
            screen.show(event)
    if options.live:
        print("\n".join(cloud_verbs.live(loaded.spec.resources)))
    return 0


def tune(options: argparse.Namespace) -> int:
    from job import console, planning
    from job.spec.load import load

    made = planning.plan(load(options.spec, options.set), fetch=True, remeasure=True)
    with console.make(options.log_format) as screen:
        screen.show(planning.tuned(made))
    return 0


def shard(options: argparse.Namespace) -> int:
    from job.data import shards_write
    from job.spec.load import load
    from job.spec.schema import parse_size

    try:
        size = int(parse_size(options.size))
    except ValueError as error:
        raise UsageError("--size", options.size, f"give {error}") from None
    for line in shards_write.write(load(options.spec, options.set).spec.dataset, options.destination, size):
        print(line)
    return 0


def evaluate(options: argparse.Namespace) -> int:
    from job import console, inference

    with console.make(options.log_format) as screen:
        screen.show(inference.evaluate(options.weights))
    return 0


def predict(options: argparse.Namespace) -> int:
    from job import inference

    for line in inference.predict(options.weights, options.images):
        print(line)
    return 0


def report(options: argparse.Namespace) -> int:
    from job.results.report import render
    from job.runfolder import RunFolder
    from job.storage.runs import local

    folder = RunFolder(local(options.run, ["report.json", *(f"plots/mistakes/{n:02d}.png" for n in range(1, 17))]))
    render(folder)
    print(folder.report("html"))
    return 0


def compare(options: argparse.Namespace) -> int:
    from job.results import compare as tables
    from job.results.schema import read
    from job.storage.runs import local

    found = [read(local(where, ["report.json"]) / "report.json") for where in options.runs]
    if options.html is not None:
        tables.write_html(options.html, found)
    print(tables.as_json(found) if options.json else tables.as_text(found))
    return 0


def upload(options: argparse.Namespace) -> int:
    from job import console, pipeline
    from job.runfolder import RunFolder

    with console.make(options.log_format) as screen:
        for event in pipeline.upload(RunFolder(options.run.resolve())):
            screen.show(event)
    return 0


def fetch(options: argparse.Namespace) -> int:
    from job.storage import runs

    target = options.folder or Path(options.run.rstrip("/").rpartition("/")[2])
    count = 0
    for count, name in enumerate(runs.fetch(options.run, target), 1):  # noqa: B007 - the last one is the count
        print(f"fetched {name}")
    print(f"{target}: {count} files fetched")
    return 0


def verify_resume(options: argparse.Namespace) -> int:
    from job import console, verification
    from job.spec.load import load

    with console.make(options.log_format) as screen:
        for event in verification.verify(load(options.spec, options.set), options.whole, options.seed):
            screen.show(event)
    return 0


def doctor(options: argparse.Namespace) -> int:
    from job import doctor as checks

    lines, healthy = cloud_verbs.doctor(options) if options.cloud else checks.examine(options.spec)
    print("\n".join(lines))
    return 0 if healthy else 1


def schema(options: argparse.Namespace) -> int:
    import json

    from job.spec.load import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0

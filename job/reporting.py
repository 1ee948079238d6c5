"""From what a run knows to report.json and manifest.json: the words of the run, turned into those of the report."""

import shlex
import sys
import time
from dataclasses import asdict

from job import environment, telling
from job.data.dataset import Splits
from job.planning import Plan, Ready
from job.results import schema
from job.results.metrics import most_confident_mistakes
from job.results.report import write_report
from job.runfolder import RunFolder, read_lines, write_manifest
from job.spec.load import resolved, spec_hash
from job.training.session import Outcome, Session

MISTAKES = 16  # pictures of them in the report


def complete(made: Plan, folder: RunFolder, training: Session, outcome: Outcome, began: float) -> None:
    """report.{json,md,html} and plots of a run that came to its end."""
    ready = _ready(made)
    picked = most_confident_mistakes(outcome.predictions, MISTAKES)
    test = outcome.test
    written = schema.Report(
        run_id=folder.id,
        status="complete",
        accuracy=test.accuracy,
        per_class={name: one.accuracy for name, one in test.per_class.items()},
        name=made.loaded.spec.name,
        started=schema.moment(began),
        finished=schema.moment(time.time()),
        seconds=schema.Seconds(**made.seconds, total=time.time() - began),
        accuracy_interval=test.interval,
        test=schema.TestResult.of(test),
        train=schema.SplitResult.of(outcome.train),
        validation=None if outcome.validation is None else schema.SplitResult.of(outcome.validation),
        overfitting=schema.Overfitting(gap=outcome.train.accuracy - test.accuracy, warning=outcome.warning),
        result=schema.Chosen(
            weights=outcome.weights,
            epoch=outcome.epoch,
            epochs_planned=made.loaded.spec.train.epochs,
            stopped_early=training.why_stop,
        ),
        mistakes=tuple(_mistake(index, outcome, ready.splits) for index in picked),
        **_facts(made, folder, training),
    )
    write_report(folder, written, [ready.splits.test.images[index] for index in picked])


def partial(
    made: Plan | None, folder: RunFolder, training: Session | None, began: float, status: str, why: str
) -> None:
    """The same of a run that did not: what there is, and why there is no more."""
    facts = {} if made is None or training is None else _facts(made, folder, training)
    seconds = {} if made is None else made.seconds
    written = schema.Report(
        run_id=folder.id,
        status=status,
        reason=why,
        accuracy=None,
        per_class={},
        name=folder.id if made is None else made.loaded.spec.name,
        started=schema.moment(began),
        finished=schema.moment(time.time()),
        seconds=schema.Seconds(**seconds, total=time.time() - began),
        **facts,
    )
    write_report(folder, written, [])


def seal(made: Plan, folder: RunFolder) -> None:
    """manifest.json: provenance, and size and hash of everything else. The last thing a complete run writes."""
    ready, spec = _ready(made), made.loaded.spec
    provenance = {
        "run_id": folder.id,
        "status": "complete",
        "spec_sha256": spec_hash(spec),
        "data_sha256": ready.splits.sha256,
        "seed": spec.train.seed,
        "shape": spec.resources.shape,
        "device": asdict(ready.network.device),
        "loader": asdict(ready.loader.settings),
        "environment": environment.facts(),
    }
    write_manifest(folder, provenance)


def _facts(made: Plan, folder: RunFolder, training: Session) -> dict[str, object]:
    """What is known whether or not the run came to its end."""
    ready, spec, splits = _ready(made), made.loaded.spec, training.splits
    history, running_loss = schema.trained(read_lines(folder.metrics))
    device = asdict(ready.network.device)
    return {
        "history": history,
        "running_loss": running_loss,
        "data": _data(spec.dataset.name, splits),
        "model": schema.Network(
            name=spec.model.name,
            parameters=ready.network.facts.parameters,
            flops_per_image=ready.network.facts.flops_per_image,
            weights=spec.model.weights,
        ),
        "loader": _loader(ready),
        "device": schema.DeviceChoice(device=device.pop("kind"), **device),
        "use": telling.use(ready, training),
        "environment": environment.facts(),
        "spec": resolved(spec),
        "spec_defaults": made.loaded.defaults,
        "spec_sha256": spec_hash(spec),
        "warnings": splits.notices[-1:] if splits.leaked else (),
        "reproduce": _reproduce(folder),
    }


def _data(name: str, splits: Splits) -> schema.Data:
    height, width, channels = splits.train.images.shape[1:]
    return schema.Data(
        name=name,
        source=splits.source,
        sha256=splits.sha256,
        train=len(splits.train.labels),
        validation=0 if splits.validation is None else len(splits.validation.labels),
        test=len(splits.test.labels),
        classes=splits.classes,
        shape=(channels, height, width),
        mean=splits.mean,
        std=splits.std,
        notices=splits.notices,
        skipped=splits.skipped,
        leaked=splits.leaked,
    )


def _loader(ready: Ready) -> schema.LoaderChoice:
    plan = ready.loader
    rows = [
        schema.LoaderRow(
            **_without(asdict(row.settings), "batch_size"), images_per_second=row.images_per_second, note=row.note
        )
        for row in plan.rows
    ]
    settings = schema.LoaderSettings(**asdict(plan.settings))
    return schema.LoaderChoice(
        settings=settings, table=tuple(rows), why=plan.why, model_images_per_second=plan.model_images_per_second
    )


def _mistake(index: int, outcome: Outcome, splits: Splits) -> schema.Mistake:
    row = outcome.predictions.probabilities[index]
    return schema.Mistake(
        index=index,
        truth=splits.classes[outcome.predictions.labels[index]],
        predicted=splits.classes[row.argmax()],
        probability=float(row.max()),
        picture=None,  # named when it is written
    )


def _reproduce(folder: RunFolder) -> tuple[str, ...]:
    """Commands that lead to the same result: the commit, then the spec as it ran."""
    commit = environment.commit()
    checkout = [] if commit is None or commit.endswith("-dirty") else [f"git checkout {commit}"]
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return (*checkout, "make setup", f"{python} -m job run {shlex.quote(f'{folder.id}/spec.yaml')}")


def _without(values: dict[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in values.items() if key != name}


def _ready(made: Plan) -> Ready:
    assert made.ready is not None
    return made.ready

"""What holds a run back, in a sentence with what to change: a pure function of its figures.

limit(Figures(split=…, steps=…, …)) → "Loading limits this run: the device waits 41% of the time. …"
"""

from collections.abc import Mapping
from dataclasses import dataclass

LOADING = 0.10  # share of the time spent waiting from which loading is the first thing to mend
PREPARING = 0.30
SAVING = 0.10
EVALUATING = 0.25
OTHER = 0.15
SHORT_STEP = 0.003  # seconds of arithmetic; below, what a step costs beside it shows
BUSY = 0.60  # GPU utilisation below which it is not the arithmetic that takes the time
WELL_USED = 0.15  # of the peak: small convolutions rarely reach more


@dataclass(frozen=True)
class Figures:
    """`split` is seconds by phase over the whole training, as job.clock takes it."""

    split: Mapping[str, float]
    steps: int
    on_gpu: bool
    resident: bool
    num_workers: int
    utilization: float | None = None  # of the GPU, 0–1
    mfu: float | None = None  # 0–1


def limit(figures: Figures) -> str:
    """The largest avoidable loss first; where there is none, the arithmetic itself."""
    whole = sum(figures.split.values())
    if whole <= 0 or figures.steps == 0:
        return "Too little was trained to tell what limits this run."
    part = {phase: seconds / whole for phase, seconds in figures.split.items()}
    loading = part.get("wait", 0.0) + part.get("copy", 0.0) * (not figures.on_gpu)  # on a GPU copies run beside
    losses = {
        "loading": (loading, LOADING),
        "preparing": (part.get("prepare", 0.0), PREPARING),
        "saving": (part.get("save", 0.0), SAVING),
        "evaluating": (part.get("evaluate", 0.0), EVALUATING),
        "other": (part.get("other", 0.0), OTHER),
    }
    over = {name: share for name, (share, threshold) in losses.items() if share >= threshold}
    if over:
        worst = max(over, key=lambda name: over[name])
        return _sentence(worst, over[worst], figures)
    return _arithmetic(part.get("compute", 0.0), figures)


def _sentence(loss: str, share: float, figures: Figures) -> str:
    part = f"{share:.0%} of the time"
    match loss:
        case "loading":
            return f"Loading limits this run: {part} goes into waiting for images. {_loading_cure(figures)}"
        case "preparing":
            return (
                f"Augmentation limits this run: normalising and changing images takes {part}. "
                "Use less of it (augment.cutout, augment.crop_padding) or a larger network, which hides it."
            )
        case "saving":
            return f"Saving limits this run: checkpoints take {part}. Save less often: raise checkpoint.every."
        case "evaluating":
            return (
                f"Evaluation limits this run: it takes {part}. "
                "Evaluate less often (train.evaluate_every) or on fewer images (dataset.validation)."
            )
        case _:
            return (
                f"The steps are too small: {part} goes into what surrounds them. "
                "Raise loader.batch_size, with the learning rate, and train.log_every."
            )


def _loading_cure(figures: Figures) -> str:
    if figures.resident:
        return "Raise loader.batch_size, so that each cut brings more."
    if figures.num_workers == 0:
        return "Set loader.num_workers: auto, or loader.resident: true if the data set fits into memory."
    return (
        "Set loader.resident: true if the data set fits into memory; else loader.num_workers: auto, "
        "a machine with more CPUs, or smaller images (dataset.resize)."
    )


def _arithmetic(share: float, figures: Figures) -> str:
    step = share * sum(figures.split.values()) / figures.steps
    if figures.on_gpu:
        idle = figures.utilization is not None and figures.utilization < BUSY
        if idle or (figures.mfu is not None and figures.mfu < WELL_USED and step < 10 * SHORT_STEP):
            return (
                f"The batches are too small for this GPU: a step takes {step * 1000:.1f} ms, most of it to start its "
                "parts. Raise loader.batch_size, with the learning rate, or set train.compile: true for a long run."
            )
    elif step < SHORT_STEP:
        return (
            f"The batches are too small: a step takes {step * 1000:.1f} ms, much of it to start its parts. "
            "Raise loader.batch_size, with the learning rate."
        )
    faster = "a faster GPU" if figures.on_gpu else "a GPU"
    return (
        f"The network's own arithmetic limits this run ({share:.0%} of the time), as it should be: "
        f"a smaller network, fewer epochs or {faster} would shorten it."
    )

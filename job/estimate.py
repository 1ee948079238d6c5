"""How long a run will take: plain arithmetic over measured rates, so that `plan` tells the truth about time and cost.

total(parts(figures)) = start + train + evaluate + save + report
"""

from dataclasses import dataclass

REPORT = 1.5  # seconds for plots and pages; an assumption, of the size seen on two CPU cores
SAVE = 0.02  # seconds for each checkpoint beyond its bytes; on the safe side: 12 of digits.yaml held it up for 0.04 s
SAVE_RATE = 200e6  # bytes/s, flushed to disk and hashed; an assumption: a plain cloud volume


@dataclass(frozen=True)
class Figures:
    """What the time follows from. Rates are images/s, measured."""

    spent: float  # seconds from the start of the process to the first step
    epochs: int
    train_images: int  # an epoch
    train_rate: float
    watched_images: int  # looked at in each evaluation during training
    evaluations: int
    final_images: int  # looked at once, at the end
    evaluate_rate: float
    checkpoints: int
    checkpoint_bytes: int


def parts(figures: Figures) -> dict[str, float]:
    """Seconds by phase."""
    seen = figures.watched_images * figures.evaluations + figures.final_images
    return {
        "start": figures.spent,
        "train": figures.epochs * figures.train_images / figures.train_rate,
        "evaluate": seen / figures.evaluate_rate,
        "save": figures.checkpoints * (SAVE + figures.checkpoint_bytes / SAVE_RATE),
        "report": REPORT,
    }


def evaluations(epochs: int, every: int) -> int:
    """One after each `every` epochs and one after the last."""
    return epochs // every + (epochs % every > 0)

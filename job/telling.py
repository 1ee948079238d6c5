"""From what was measured while training to the report's section about how well the device was used."""

from dataclasses import asdict

from job.peaks import peak, training_flops
from job.planning import Ready
from job.results import limits, schema
from job.training.session import Session


def use(ready: Ready, training: Session) -> schema.Use | None:
    """None where no epoch came to its end."""
    history = [ended for ended in training.history if ended.split_seconds is not None]
    if not history:
        return None
    device, facts = ready.network.device, ready.network.facts
    split = _sum([ended.split_seconds or {} for ended in history] + [training.tail])
    seconds = sum(ended.seconds for ended in history)
    speed = sum(ended.seconds * ended.images_per_second for ended in history) / max(seconds, 1e-9)
    flops = training_flops(speed, facts.flops_per_image)
    known = peak(device.name, device.precision) if device.kind == "cuda" else None
    mfu = None if known is None else flops / known.flops
    figures = None if training.gpu_watch is None else training.gpu_watch.figures()
    settings = ready.loader.settings
    steps = len(training.batches) * len(history)
    limit = limits.limit(
        limits.Figures(
            split=split,
            steps=steps,
            on_gpu=device.kind == "cuda",
            resident=settings.resident,
            num_workers=settings.num_workers,
            utilization=None if figures is None else figures.utilization,
            mfu=mfu,
        )
    )
    return schema.Use(
        split_seconds=split,
        images_per_second=speed,
        flops_per_second=flops,
        mfu=mfu,
        peak=None if known is None else f"{known.flops / 1e12:g} TFLOP/s in {device.precision}, {known.source}",
        gpu=None if figures is None else schema.Gpu(**asdict(figures)),
        gpu_note=None if training.gpu_watch is None else training.gpu_watch.problem or None,
        limit=limit,
    )


def _sum(splits: list[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for split in splits:
        for phase, seconds in split.items():
            total[phase] = total.get(phase, 0.0) + seconds
    return total

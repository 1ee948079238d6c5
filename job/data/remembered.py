"""The loader's settings found by an earlier run, for the same machine, data set, network and spec: one JSON file each.

A cache: whatever cannot be read is measured again, and what cannot be written is measured next time.
"""

import contextlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from job.data import kept
from job.data.candidates import Row
from job.data.dataset import Split
from job.data.images import foundation
from job.data.loader import Settings
from job.device import Device, cpu_count, cpu_name
from job.errors import JobError
from job.runfolder import write_json
from job.spec.schema import Spec

VERSION = 2  # of how candidates are measured: raised when old choices no longer count


@dataclass(frozen=True)
class Memory:
    """Where the choice is kept; no `path` where dataset.cache is off."""

    path: Path | None
    reads: bool = True  # the verb tune measures again
    writes: bool = True  # the verb plan writes nothing

    def recall(self) -> tuple[Settings, tuple[Row, ...], str] | None:
        """Settings, table and the reason with its date; None where there is nothing that can be used."""
        if self.path is None or not self.reads:
            return None
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            rows = tuple(
                Row(Settings(**row["settings"]), row["images_per_second"], row["note"]) for row in found["rows"]
            )
            why = f"{found['why']} (measured on {found['date']}; the verb tune measures again)"
            return Settings(**found["settings"]), rows, why
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, settings: Settings, rows: tuple[Row, ...], why: str) -> None:
        if self.path is None or not self.writes:
            return
        found = {
            "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "settings": asdict(settings),
            "rows": [asdict(row) for row in rows],
            "why": why,
        }
        with contextlib.suppress(JobError, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, found)


NOWHERE = Memory(None)


def path_for(spec: Spec, split: Split, device: Device) -> Path | None:
    """Another machine, data set, network or loader section: another file."""
    if spec.dataset.cache is False:
        return None
    root = kept.cache_root() if spec.dataset.cache == "auto" else Path(spec.dataset.cache)
    machine = (cpu_name(), cpu_count(), device.kind, device.name, device.precision, device.channels_last)
    data = (spec.dataset.name, split.images.shape, type(foundation(split.images)[0]).__name__)
    parts = (spec.model, spec.loader, spec.augment, spec.optimizer.name, spec.train.epochs)
    return root / "tuning" / f"{kept.key_of(VERSION, machine, data, *parts)}.json"

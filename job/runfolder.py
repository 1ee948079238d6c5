"""RUN/: its paths, and files that are either whole or absent (temporary name, fsync, rename).

RUN/spec.yaml · manifest.json · status.json · metrics.jsonl · checkpoints/ · model/ ·
report.{json,md,html} · plots/*.png · logs/job.log
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from job.errors import JobError

OUTBOX = ".outbox"  # in a run's folder: what the uploader keeps there
STATE = f"{OUTBOX}/state.json"
UNSEEN = f"{OUTBOX}/unseen"  # this run began without knowing whether the store holds one of its id
STORE_FACTS = ("uri", "phase", "durable", "lag_seconds", "waiting", "error")  # of the uploader, for status.json
WHERE_RUNS_LIE = "store.uri, or JOB_WORK_DIR where that is oci://"
CHECKPOINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.pt")


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run. `make()` creates the folders."""

    root: Path

    @property
    def id(self) -> str:
        return self.root.name

    @property
    def spec(self) -> Path:
        return self.root / "spec.yaml"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def plots(self) -> Path:
        return self.root / "plots"

    @property
    def log(self) -> Path:
        return self.root / "logs" / "job.log"

    def report(self, kind: str) -> Path:
        """`kind` is json, md or html."""
        return self.root / f"report.{kind}"

    def make(self) -> None:
        """Creates the folders; JobError where that is not allowed."""
        for folder in (self.root, self.checkpoints, self.model, self.plots, self.log.parent):
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path, setting: str = WHERE_RUNS_LIE) -> Iterator[None]:
    """Turns the operating system's refusals for `path` into one line with a cure. `setting` chooses the folder."""
    another = f"choose another folder{setting and ' with '}{setting}"
    cures = {
        errno.ENOSPC: "free some space, then do the same again",
        errno.EDQUOT: f"the disk quota is used up; {another}",
        errno.EACCES: f"give this user the right to write there, or {another}",
        errno.EPERM: f"give this user the right to write there, or {another}",
        errno.EROFS: f"the file system is read-only; {another}",
        errno.ENOTDIR: f"a file stands where a folder is needed; {another}",
        errno.EEXIST: f"a file stands where a folder is needed; {another}",
        errno.ENOENT: f"the folder cannot be made there; {another}",
        errno.EISDIR: "a folder stands where a file is needed; remove it",
    }
    try:
        yield
    except OSError as error:
        cure = cures.get(error.errno or 0, f"check the disk, or {another}")
        raise JobError(str(path), (error.strerror or str(error)).lower(), cure) from error


@contextlib.contextmanager
def atomic(path: Path, setting: str = WHERE_RUNS_LIE) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` whole, or not at all: also after a kill or a power cut."""
    with disk_errors(path, setting):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o666 & ~_umask())  # mkstemp gives 0600; a report is for reading
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Adds one JSON object to a .jsonl file; a reader ignores a last line without its newline."""
    with disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a .jsonl file; one torn by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line]


def read_pointer(path: Path) -> list[dict[str, Any]]:
    """The entries of checkpoints/latest.json, newest first; none where there is no such file or no sense in it."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["files"]
        return [
            entry
            for entry in entries
            if all(CHECKPOINT.fullmatch(one["file"]) and isinstance(one["sha256"], str) for one in files_of(entry))
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def files_of(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a checkpoint, each with its file and sha256: the parts, if it is in parts, then the file that names it."""
    return [*entry.get("parts", []), entry]


def place(entry: dict[str, Any]) -> tuple[int, int]:
    """Where in its run a checkpoint stands: epochs done, and steps of the one under way."""
    return int(entry.get("epoch", 0)), int(entry.get("step", 0))


def uploaded(folder: RunFolder) -> list[str]:
    """Checkpoint files that are verified in the run's store: these can go when the disk is short."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return [str(name) for name in read_state(folder)["stored"]]
    return []


def read_state(folder: RunFolder) -> dict[str, Any]:
    """What the uploader last said of itself; empty without one."""
    return _object(folder.root / STATE)


def read_status(folder: RunFolder) -> dict[str, Any]:
    """What the run last said of itself; empty where it has not yet."""
    return _object(folder.status)


def _object(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


@contextlib.contextmanager
def seized(folder: RunFolder) -> Iterator[int | None]:
    """The lock of whoever works on the run, meanwhile: its file descriptor, or None where another process has it."""
    with (folder.root / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        try:
            yield file.fileno()
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def is_hidden(name: str) -> bool:
    """Part of the machinery, not of the run: a name below RUN/ with a part that begins with a dot."""
    return any(part.startswith(".") for part in name.split("/"))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: RunFolder, provenance: dict[str, Any]) -> None:
    """manifest.json: the provenance, and size and SHA-256 of every other file of the run."""
    names = sorted(path.relative_to(folder.root).as_posix() for path in folder.root.rglob("*") if path.is_file())
    files = [
        {"path": name, "size": (folder.root / name).stat().st_size, "sha256": sha256(folder.root / name)}
        for name in names
        if name != folder.manifest.name and not is_hidden(name)
    ]
    write_json(folder.manifest, {**provenance, "files": files})


def write_status(folder: RunFolder, **fields: Any) -> None:
    """The heartbeat: what the run is doing, and when it last said so (Unix seconds)."""
    state = read_state(folder)
    if state:
        fields["store"] = {name: state.get(name) for name in STORE_FACTS}
    write_json(folder.status, {"run_id": folder.id, "time": time.time(), **fields})


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

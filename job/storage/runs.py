"""A run that lies in a store, read back: to go on with it here, to look at it, or to have it whole.

Everything that is read is verified: against manifest.json, or the hashes of checkpoints/latest.json, where there are
any, else against what the store says of the object.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from job.errors import DataError, JobError, UsageError
from job.runfolder import RunFolder, files_of, is_hidden, place, read_pointer, sha256, write_json
from job.storage.store import Store, open_store

POINTER, MANIFEST = "checkpoints/latest.json", "manifest.json"
BESIDE = ("metrics.jsonl", "model/best.pt")  # what a checkpoint needs to go on elsewhere
TRIES = 3  # a run that goes on while it is read may delete what its pointer named a moment ago


def adopt(store: Store, folder: RunFolder, *, resume: bool) -> str:
    """Makes the folder at least as new as the store: 'complete' where nothing is left to do, else 'fetched' or 'kept'.

    The pointer is written last, so a kill on the way leaves a folder that knows nothing of it.
    """
    if store.head(MANIFEST) is not None and not folder.manifest.exists():
        return "complete"
    if not folder.spec.exists() and store.head("spec.yaml") is not None:
        store.get("spec.yaml", folder.spec)
    if not resume or store.head(POINTER) is None:
        return "kept"
    entries = _pointer(store)
    here = [entry for entry in read_pointer(folder.root / POINTER) if _is_whole(folder, entry)]
    ahead = [entry for entry in entries if not here or place(entry) > place(here[0])]
    for entry in ahead:
        names = [one["file"] for one in files_of(entry)]
        if any(store.head(f"checkpoints/{name}") is None for name in names):
            continue
        for name in names:
            store.get(f"checkpoints/{name}", folder.checkpoints / name)
        if not _is_whole(folder, entry):
            continue
        for name in BESIDE:
            if store.head(name) is not None:
                store.get(name, folder.root / name)
        kept = [old for old in here if old["file"] != entry["file"]]
        write_json(folder.root / POINTER, {"files": [entry, *kept]})
        return "fetched"
    return "kept"


def fetch(uri: str, target: Path) -> Iterator[str]:
    """The whole run into a folder; a line for each file that was not there yet. Resumable: run it again."""
    store = _open(uri)
    manifest = _manifest(store)
    if (target / ".outbox").exists() and manifest is None:
        raise UsageError(str(target), "a run was begun in this folder", "fetch into another one")
    if manifest is None:
        names = [entry.name for entry in store.list() if not is_hidden(entry.name)]
        if not names:
            raise UsageError(uri, "there is no run", "check the bucket, the prefix and the run's id")
        for name in names:
            store.get(name, _below(target, name))
            yield name
        yield from _check_pointer(target)
        return
    for claim in manifest["files"]:
        path = _below(target, claim["path"])
        if not _matches(path, claim):
            _get(store, claim, path)
            yield claim["path"]
    store.get(MANIFEST, target / MANIFEST)


def local(where: str, names: Sequence[str], report: Callable[[str], None] | None = None) -> Path:
    """A folder that holds these files of the run: the run's own, or for SCHEME:// a cache of what was downloaded.

    What the run does not have is left out: the caller says what that means.
    """
    if "://" not in where or where.startswith("file://"):
        return Path(where.removeprefix("file://"))
    store = _open(where)
    target = _cache() / where.partition("://")[2].strip("/")
    manifest = _manifest(store)
    claims = None if manifest is None else {claim["path"]: claim for claim in manifest["files"]}
    found = False
    for name in names:
        path = _below(target, name)
        if claims is not None and name in claims and _matches(path, claims[name]):
            found = True
            continue
        if store.head(name) is None:
            path.unlink(missing_ok=True)
            continue
        if report is not None:
            report(name)
        found = True
        if claims is not None and name in claims:
            _get(store, claims[name], path)
        else:
            store.get(name, path)
    if not found:
        raise UsageError(where, "there is no such run, or it has none of the files this needs", "check the URI")
    return target


def parts_of(run: str, name: str) -> list[str]:
    """What else a checkpoint in a store consists of; nothing for any other file."""
    if not name.startswith("checkpoints/"):
        return []
    store = _open(run)
    entries = _pointer(store) if store.head(POINTER) is not None else []
    mine = [entry for entry in entries if f"checkpoints/{entry['file']}" == name]
    return [f"checkpoints/{one['file']}" for entry in mine for one in files_of(entry)[:-1]]


def split(where: str) -> tuple[str, str | None]:
    """oci://…/RUN/model/best.pt → the run's URI and the file in it; a run's URI → itself and None."""
    if not where.endswith(".pt"):
        return where.rstrip("/"), None
    run, folder, name = where.rsplit("/", 2)
    return run, f"{folder}/{name}"


def _pointer(store: Store) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latest.json"
        store.get(POINTER, path)
        return read_pointer(path)


def _manifest(store: Store) -> dict[str, Any] | None:
    if store.head(MANIFEST) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MANIFEST
        store.get(MANIFEST, path)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            assert isinstance(manifest["files"], list)
            return manifest
    raise DataError(f"{store.uri}/{MANIFEST}", "it is not a manifest", "run the job again")


def _open(uri: str) -> Store:
    return open_store(uri.rstrip("/"))


def _get(store: Store, claim: dict[str, Any], path: Path) -> None:
    store.get(claim["path"], path)
    if not _matches(path, claim):
        path.unlink()
        where = f"{store.uri}/{claim['path']}"
        raise DataError(where, "its SHA-256 is not that of manifest.json", "the stored run is damaged; run it again")


def _matches(path: Path, claim: dict[str, Any]) -> bool:
    return path.is_file() and (path.stat().st_size, sha256(path)) == (claim["size"], claim["sha256"])


def _below(target: Path, name: str) -> Path:
    """A name from outside, as a path that cannot leave the folder; its parent is made."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name:
        raise DataError(name, "the name leaves the run's folder", "this is no run of ours")
    path = target.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _check_pointer(target: Path) -> Iterator[str]:
    """Of a run without a manifest: checkpoints carry their hashes."""
    for entry in read_pointer(target / POINTER):
        if not _is_whole(RunFolder(target), entry):
            path = target / "checkpoints" / entry["file"]
            raise JobError(str(path), "it is missing or not what was written", "the run goes on: fetch it again")
    yield from ()


def _is_whole(folder: RunFolder, entry: dict[str, Any]) -> bool:
    files = [(folder.checkpoints / one["file"], one["sha256"]) for one in files_of(entry)]
    return all(path.is_file() and sha256(path) == digest for path, digest in files)


def _cache() -> Path:
    home = os.environ.get("JOB_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "gpu-job/runs"

"""The record of a run's launches: launches/RUN/record.json in the bucket, so that every machine sees the same.

A record is replaced only over the version that was read (`put_if`), so of two writers one wins and the other is told.
Each try stands in it before it is made: whatever is killed at whatever moment, the record says that an instance may
exist, and the tag run_id finds it. Beside the record lie spec.yaml, the Terraform state of each try, a lease held by
the submit at work, `cancel`, and what the instances say of themselves (node-N/…; infra/README.md).
"""

import contextlib
import json
import secrets
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from job.errors import UsageError
from job.runfolder import write_json
from job.storage.store import Store, StoreError

VERSION = 1
NAME, SPEC, CANCEL = "record.json", "spec.yaml", "cancel"
Phase = Literal["provisioning", "launched", "failed", "cancelled"]


@dataclass(frozen=True)
class Try:
    """One attempt to launch; `outcome` is None until it is known, then 'launched' or a kind of cause."""

    number: int
    shape: str
    availability_domain: str
    fault_domain: str | None
    preemptible: bool
    nodes: int
    begun: float  # Unix seconds, as all times here
    max_seconds: int  # from `begun` to the end by the watchdog
    usd_per_hour: float | None  # all nodes, an estimate
    outcome: str | None = None
    said: str = ""
    instances: tuple[str, ...] = ()
    ended: float | None = None  # when its instances were seen gone

    @property
    def expires(self) -> float:
        return self.begun + self.max_seconds


@dataclass(frozen=True)
class Record:
    """What a run is, and every try to launch it."""

    run_id: str
    spec_hash: str
    store_uri: str
    owner: str
    image: str
    created: float
    phase: Phase = "provisioning"
    max_cost: float | None = None
    force: bool = False  # launched although the table of shapes says no
    tries: tuple[Try, ...] = ()
    closing: str = ""  # why the phase is failed or cancelled
    writer: str = ""  # of this version, to know our own write when its answer was lost
    version: int = VERSION

    @property
    def last(self) -> Try | None:
        return self.tries[-1] if self.tries else None

    def with_try(self, new: Try) -> "Record":
        """The record with this try added, or put in place of the one of its number."""
        kept = tuple(one for one in self.tries if one.number != new.number)
        return replace(self, tries=(*kept, new))


@dataclass
class Version:
    """A record together with the etag it was read under."""

    record: Record
    etag: str | None = field(default=None)


def read(launches: Store, run_id: str) -> Version | None:
    """The record as it is now; None where there is none. UsageError for one of another version."""
    name = f"{run_id}/{NAME}"
    entry = launches.head(name)
    if entry is None:
        return None
    return Version(_parse(read_bytes(launches, name), f"{launches.uri}/{name}"), entry.etag)


def save(launches: Store, version: Version, record: Record) -> Version:
    """Replaces the version that was read. UsageError where somebody else has written since."""
    writer = secrets.token_hex(8)
    record = replace(record, writer=writer)
    name = f"{record.run_id}/{NAME}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        write_json(path, asdict(record))
        entry = launches.put_if(path, name, version.etag)
    if entry is not None:
        return Version(record, entry.etag)
    there = read(launches, record.run_id)
    if there is not None and there.record.writer == writer:  # written, and the answer was lost
        return there
    raise UsageError(record.run_id, "another submit, cancel or resubmit changed this run just now", "run it again")


def run_ids(launches: Store) -> list[str]:
    """Every run that has a record."""
    ending = f"/{NAME}"
    return [entry.name.removesuffix(ending) for entry in launches.list() if entry.name.endswith(ending)]


def read_bytes(store: Store, name: str) -> bytes:
    """A small object."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "content"
        store.get(name, path)
        return path.read_bytes()


def read_object(store: Store, name: str) -> dict[str, Any] | None:
    """A JSON object; None where there is none or it is torn. StoreError where the store cannot be asked."""
    if store.head(name) is None:
        return None
    try:
        content = read_bytes(store, name)
    except StoreError:
        if store.head(name) is None:  # gone between the two requests
            return None
        raise
    with contextlib.suppress(ValueError):
        value = json.loads(content)
        return value if isinstance(value, dict) else None
    return None


def _parse(content: bytes, where: str) -> Record:
    cure = "use the version of gpu-job that wrote it, or remove it in the console"
    try:
        value = json.loads(content)
        if value["version"] != VERSION:
            raise UsageError(where, f"a record of version {value['version']}, not {VERSION}", cure)
        tries = tuple(Try(**{**one, "instances": tuple(one["instances"])}) for one in value.pop("tries"))
        return Record(**value, tries=tries)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(where, f"not a record ({error})", cure) from error

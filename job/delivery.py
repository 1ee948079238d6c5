"""The run's side of the uploader: starts it, listens to it, starts it again if it dies, and waits for it at the end.

    with Delivery(folder, uri, spec) as delivery:
        for note in delivery.open(resume=True): …    may we write, are we alone, does the store know more than we do
        for note in delivery.news(): …               while training; costs a look at a small file a second
        for note in delivery.flush(600, stop): …     delivery.left is then what could not be stored

Nothing here raises while training goes on: a store may be slow, dead or wrong, and the run does not mind.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from job.errors import Interrupted, JobError, UploadError, UsageError
from job.events import Ended, Event, Note, Progress, Stored
from job.interrupt import StopFlag
from job.runfolder import OUTBOX, STATE, UNSEEN, RunFolder, disk_errors, read_state
from job.spec.load import Loaded
from job.spec.schema import Spec

PATIENCE = 20.0  # seconds that a run waits for a store's first answer before it begins without it
LOOK_EVERY = 1.0  # seconds between two looks at the uploader's state while training
RESTARTS = (1.0, 60.0)  # seconds before a dead uploader is started again, the first time and at most
LEAVE = 2.0  # seconds of checkpoint.grace kept for leaving itself
NEWS_EVERY = 15.0  # seconds between two lines while the end waits
HERE = Path(__file__).resolve().parent.parent
SHOWN = 5  # names of files in a message


class Delivery:
    """Owns the uploader's process."""

    def __init__(self, folder: RunFolder, uri: str, spec: Spec) -> None:
        self.folder, self.uri, self.keep, self.lag_warning = folder, uri, spec.checkpoint.keep, spec.store.lag_warning
        self.process: subprocess.Popen[str] | None = None
        self.left: dict[str, int] | None = None  # after flush: None when everything is stored
        self.why: str | None = None
        self.look_due = self.restart_due = 0.0
        self.restarts = 0
        self.troubled = self.late = self.refused = False
        self.durable: str | None = None
        self.state: dict[str, Any] = {}

    def __enter__(self) -> "Delivery":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def open(self, adopt: str, stop: StopFlag) -> Iterator[Event]:
        """Starts it. UsageError when the store refuses for good or the run is another's; a dead store is a warning.

        `adopt` is never, spec or resume: what to take from the store where it is ahead of the folder.
        """
        self._start("--adopt", adopt, "--strict")
        # this machine may know nothing of a run that the store knows: then its answer is worth a wait
        bare = adopt != "never" and not self.folder.spec.exists()
        until, told = time.monotonic() + PATIENCE, False
        while self._phase() not in ("mirroring", "complete"):
            assert self.process is not None
            if self.process.poll() is not None:
                break
            if self._phase() == "waiting for the lease" and not told:
                told = True
                yield Note(f"{self.uri}: another process held this run; waiting until its lease is over")
            if self._phase() in ("fetching", "waiting for the lease"):
                until = time.monotonic() + PATIENCE
            if stop.reason is not None:
                cure = "nothing is lost; run the same id again"
                raise Interrupted(self.folder.id, f"{stop.reason} before training began", cure)
            if time.monotonic() > until or (self.state.get("error") and not bare):
                break
            time.sleep(0.02)
        if (refused := self.state.get("refused")) is not None:
            raise UsageError(*refused)
        if self._phase() not in ("mirroring", "complete"):
            ended = "" if self.process is None or self.process.poll() is None else _last_line(self.folder)
            why = self.state.get("error") or ended or f"{self.uri}: no answer in {PATIENCE:.0f} s"
            self._kill()
            if bare:
                mark = self.folder.root / UNSEEN
                with disk_errors(mark):
                    mark.touch()
            self._start()
            self.troubled = True
            yield Note(f"The store cannot be reached; results wait in {self.folder.root}: {why}", "warning")

    @property
    def complete(self) -> bool:
        """The store holds this run from beginning to end, and this machine does not."""
        return self.state.get("phase") == "complete"

    def news(self) -> Iterator[Event]:
        """What the uploader has come to since the last call."""
        now = time.monotonic()
        if now < self.look_due:
            return
        self.look_due = now + LOOK_EVERY
        assert self.process is not None
        if self.process.poll() is not None:
            yield from self._restart(now)
            return
        self._phase()
        durable = (self.state.get("durable") or {}).get("file")
        if durable is not None and durable != self.durable:
            entry = self.state["durable"]
            yield Stored(f"{self.uri}/checkpoints/{durable}", entry.get("epoch", 0), entry.get("step", 0))
            self.durable = durable
        yield from self._troubles()

    def lag(self) -> str:
        """For the terminal: how long ago the last checkpoint that is safe was saved."""
        if self.durable is None:
            return "no durable checkpoint yet"
        try:
            seconds = max(0.0, time.time() - (self.folder.checkpoints / self.durable).stat().st_mtime)
        except OSError:  # retention took the file here, not there
            return f"last durable checkpoint {self.durable}"
        return f"last durable checkpoint {seconds:.0f} s ago"

    def flush(self, timeout: float, stop: StopFlag, *, patient: bool = False) -> Iterator[Event]:
        """Waits until everything is stored, at most `timeout` seconds or until a stop is wished for.

        `patient` counts the seconds from the last file that was stored.
        """
        if (left := stop.left()) is not None:
            timeout = min(timeout, left - LEAVE)
        began, sent = time.monotonic(), None
        asked = stop.reason
        try:
            self._over()
        except (JobError, OSError) as failure:
            self.left, self.why = {}, str(failure)
            return
        told = began + NEWS_EVERY
        while self.process is not None and self.process.poll() is None:
            if time.monotonic() - began > timeout:
                self.why = f"not done in {timeout:.0f} s"
                break
            if stop.reason != asked:
                self.why = stop.reason
                break
            self._phase()
            if patient and self.state.get("sent") != sent:
                began, sent = time.monotonic(), self.state.get("sent")
            if time.monotonic() > told:
                told += NEWS_EVERY
                error = self.state.get("error")
                yield Note(f"Uploading: {self.state.get('waiting', '?')} files wait" + (f"; {error}" if error else ""))
            time.sleep(0.02)
        ended = self.process is not None and self.process.poll() == 0
        self._phase()
        refused = self.state.get("refused")
        self.why = ": ".join(refused[:2]) if refused else self.state.get("error") or self.why
        self._kill()
        self.left = None if ended else self.state.get("left") or {}

    def what_is_left(self) -> str:
        """In a line: how much, why."""
        names, size = sorted(self.left or {}), sum((self.left or {}).values())
        if not names:
            return f"not everything is stored in {self.uri} ({self.why})"
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        shown = ", ".join(names[:SHOWN]) + more
        return f"{len(names)} files ({size / 2**20:.1f} MiB) are not in {self.uri}: {shown} ({self.why})"

    def _troubles(self) -> Iterator[Event]:
        error, refused = self.state.get("error"), self.state.get("refused")
        if refused is not None and not self.refused:
            yield Note(f"The store refuses; training goes on and results wait here: {'; '.join(refused)}", "warning")
        elif error and not self.troubled:
            yield Note(f"Uploading fails, and is tried again: {error}", "warning")
        elif self.troubled and not error and self.state.get("phase") == "mirroring":
            yield Note(f"{self.uri} answers again")
        self.refused = refused is not None
        self.troubled = bool(error) or (self.troubled and self.state.get("phase") != "mirroring")
        lag = self.state.get("lag_seconds") or 0
        if lag > self.lag_warning and not self.late:
            yield Note(f"A checkpoint saved {lag:.0f} s ago is not uploaded yet (store.lag_warning)", "warning")
        self.late = lag > self.lag_warning

    def _restart(self, now: float) -> Iterator[Event]:
        if self.restart_due == 0.0:
            assert self.process is not None
            self.restarts += 1
            self.restart_due = now + min(RESTARTS[1], RESTARTS[0] * 2 ** (self.restarts - 1))
            why = ": ".join(filter(None, [f"exit {self.process.returncode}", _last_line(self.folder)]))
            yield Note(f"The uploader ended unexpectedly ({why}) and is started again", "warning")
        elif now >= self.restart_due:
            try:
                self._start()
            except (JobError, OSError) as error:  # no memory, no disk: later
                self.restart_due = now + RESTARTS[1]
                yield Note(f"The uploader cannot be started: {error}", "warning")

    def _start(self, *options: str) -> None:
        self._kill()
        self.restart_due = 0.0
        (self.folder.root / OUTBOX).mkdir(exist_ok=True)
        (self.folder.root / STATE).unlink(missing_ok=True)
        self.state = {}
        # the module is found from wherever the run was started; the session of its own keeps Ctrl-C away
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "job.storage.uploader", str(self.folder.root), self.uri]
        log = self.folder.root / OUTBOX / "uploader.log"
        with disk_errors(log), log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, "--keep", str(self.keep), "--last-words", "job.epitaph", *options],
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
            )

    def _over(self) -> None:
        """Tells it that the run has ended; one that died meanwhile is started for this."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("over\n")
            self.process.stdin.flush()
        except OSError:  # it ended this very moment
            self.why = "the uploader ended unexpectedly"

    def _phase(self) -> str | None:
        """The state as it is now; of this process, not of one before it."""
        state = read_state(self.folder)
        if self.process is not None and state.get("pid") == self.process.pid:
            self.state = state
        phase: str | None = self.state.get("phase")
        return phase

    def _kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            assert self.process.stdin is not None
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            self.process.wait()


def delivered(
    upload: Delivery, work: Iterator[Event], loaded: Loaded, fresh: bool, stop: StopFlag, log: Callable[[Event], None]
) -> Iterator[Event]:
    """The events of a run whose folder is brought into a store meanwhile, and what becomes of that.

    Whatever ends the run, what it has written by then goes up. UploadError when a run that came to its end could not
    store everything.
    """
    adopt = "never" if fresh else "resume" if loaded.spec.checkpoint.resume == "auto" else "spec"
    yield from upload.open(adopt, stop)
    if upload.complete:
        yield Note(f"Run {upload.folder.id} is complete: {upload.uri}; python -m job fetch {upload.uri}")
        return
    timeout = loaded.spec.store.flush_timeout
    ended = None
    try:
        for event in work:
            if isinstance(event, Ended):
                ended = event
                continue
            yield replace(event, upload=upload.lag()) if isinstance(event, Progress) else event
            for news in upload.news():
                log(news)
                yield news
    except Exception:
        left = stop.left()  # of the time that SIGTERM gives
        yield from upload.flush(timeout if left is None else min(timeout, max(left - LEAVE, 0.0)), stop)
        if upload.left is not None:
            cure = f"python -m job upload {upload.folder.root} finishes it"
            yield Note(f"{upload.what_is_left()}; {cure}", "warning")
        raise
    yield from upload.flush(timeout, stop)
    if ended is not None:
        yield ended
    yield from finished(upload)


def finished(upload: Delivery) -> Iterator[Event]:
    """After a flush: says that everything is stored, or raises what is not."""
    if upload.left is not None:
        cure = f"python -m job upload {upload.folder.root} finishes it"
        raise UploadError(upload.folder.id, upload.what_is_left(), cure)
    yield Note(f"Everything is stored: {upload.uri}")


def target(spec: Spec, run_id: str) -> str | None:
    """Where the run goes besides its folder; None where the folder itself is the store."""
    return f"{spec.store.uri.rstrip('/')}/{run_id}" if spec.store.uri.startswith("oci://") else None


def working_folder(spec: Spec) -> Path:
    """What run folders are made in: the store itself, or for oci:// $JOB_WORK_DIR, else runs."""
    if spec.store.uri.startswith("oci://"):
        return Path(os.environ.get("JOB_WORK_DIR") or "runs")
    return Path(spec.store.uri.removeprefix("file://"))


def _last_line(folder: RunFolder) -> str:
    """Of what a dead uploader had to say."""
    try:
        lines = (folder.root / OUTBOX / "uploader.log").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    said = [line for line in lines if line.strip()]
    return said[-1] if said else ""

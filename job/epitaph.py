"""The last words of a run that had no time for any: killed with -9, out of memory, or its machine went away.

    python -m job.epitaph FOLDER     the uploader, which outlives its run; `upload` does the same

What stands in the folder becomes a partial report, and status.json says that nobody works on it any more.
"""

import sys
import time
from pathlib import Path

from job.results import schema
from job.results.report import write_report
from job.runfolder import RunFolder, read_lines, read_status, seized, write_status
from job.spec.load import parse, resolved, spec_hash


def write(folder: RunFolder) -> None:
    """Nothing where the run ended by itself. Nobody else may be writing into the folder."""
    last = read_status(folder)
    if last.get("status") != "running" or not folder.spec.is_file():
        return
    known = {name: value for name, value in last.items() if name not in ("run_id", "time", "store", "status")}
    why = f"killed in phase {known.get('phase')}; run the same id again to go on"
    with folder.log.open("a", encoding="utf-8") as log:
        log.write(f"{schema.moment(time.time())} {why}\n")
    write_status(folder, **{**known, "status": "interrupted", "reason": why})
    loaded = parse(folder.spec.read_text(encoding="utf-8"), str(folder.spec))
    history, running_loss = schema.trained(read_lines(folder.metrics))
    written = schema.Report(
        run_id=folder.id,
        status="interrupted",
        reason=why,
        accuracy=None,
        per_class={},
        name=loaded.spec.name,
        started=schema.moment(folder.spec.stat().st_mtime),  # the first file of a run
        finished=schema.moment(last["time"]),
        history=history,
        running_loss=running_loss,
        spec=resolved(loaded.spec),
        spec_sha256=spec_hash(loaded.spec),
    )
    write_report(folder, written, [])


def main() -> None:
    folder = RunFolder(Path(sys.argv[1]))
    with seized(folder) as lock:
        if lock is not None:  # else the id has been run again
            write(folder)


if __name__ == "__main__":
    main()

"""What went wrong, where, and the cure: one line for each mistake, and the exit code that goes with it."""

from collections.abc import Sequence


class JobError(Exception):
    """A failure the user can act on. Caught in `job.cli` only, shown as `where: what; cure`."""

    exit_code = 1

    def __init__(self, where: str, what: str, cure: str) -> None:
        super().__init__(where, what, cure)
        self.where, self.what, self.cure = where, what, cure

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.cure}"


class UsageError(JobError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class SpecError(JobError):
    """One or more mistakes in a spec, all of them at once: one JobError a line."""

    exit_code = 2

    def __init__(self, problems: Sequence[JobError]) -> None:
        assert problems
        super().__init__(problems[0].where, problems[0].what, problems[0].cure)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class DataError(JobError):
    """The data set is missing, damaged or unusable."""

    exit_code = 3


class UploadError(JobError):
    """Trained, but not everything could be stored."""

    exit_code = 4


class Interrupted(JobError):
    """Stopped from outside in good order; running the same id again goes on."""

    exit_code = 75

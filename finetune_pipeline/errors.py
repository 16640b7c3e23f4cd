"""The exception tree: every error that a person can cause or fix, with the exit code of the `finetune` command.

    FinetuneError               exit 1   base class, never raised itself
    ├── DeclarationError        exit 2   task.yaml is invalid; lists every problem
    ├── DataError               exit 3   a source or another input cannot be read, or is empty
    ├── GateRefused             exit 4   a gate failed or has no verdict for this data yet, or an input is missing or
    │                                    belongs to another artifact
    ├── WaitingForPeople        exit 5   not a failure: rows have to be reviewed first
    ├── ModelError              exit 6   the base model is missing, not pinned, or its license forbids the use
    ├── TrainingFailed          exit 7   the training process stopped or diverged
    ├── ServingError            exit 8   the endpoint or another server does not start or does not answer correctly
    ├── StorageError            exit 9   no disk space, no permission, or a damaged artifact
    ├── PortInUse               exit 10  another process listens on the port
    └── JobCanceled             exit 130 canceled by a person

Each has a `message` (what is wrong) and a `hint` (what to do). The exit codes are stable: scripts rely on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class FinetuneError(Exception):
    """Base class. `message` names the thing and the value that is wrong; `hint` begins with a verb and says what to
    do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class DeclarationError(FinetuneError):
    """An invalid declaration; `problems` lists every problem, each with key, value and hint."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "", problems: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.problems = problems

    def __str__(self) -> str:
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        return super().__str__() + lines


class DataError(FinetuneError):
    """A source, a file of verdicts or another input from people cannot be read, or is empty."""

    exit_code = 3


class GateRefused(FinetuneError):
    """A gate failed or has no verdict for this data yet, or an input is missing or belongs to another artifact."""

    exit_code = 4


class WaitingForPeople(FinetuneError):
    """Rows have to be reviewed before the run can continue."""

    exit_code = 5


class ModelError(FinetuneError):
    """The base model is missing, not pinned, not usable, or its license forbids the declared use."""

    exit_code = 6


class TrainingFailed(FinetuneError):
    """The training process stopped or diverged."""

    exit_code = 7


class ServingError(FinetuneError):
    """A server does not start, does not answer, or must not listen on this address."""

    exit_code = 8


class StorageError(FinetuneError):
    """A file cannot be read or written, or an artifact is damaged."""

    exit_code = 9


# what parsing raises when the content of a file is not what this project wrote
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


@contextmanager
def reading(what: object, hint: str = "") -> Iterator[None]:
    """A context that reads and parses the file `what`; errors in it become a StorageError that names the file.

        with reading(path, f"delete {path} and run again"):
            row = json.loads(path.read_text("utf-8"))["row"]

    A file that does not exist is "missing"; one with wrong content (not UTF-8, not JSON, a missing key) is "damaged".
    Both get `hint`. Any other OSError (no permission, a folder of that name, a failing disk) is "cannot be read"; so
    is a missing file when `hint` is empty. Catch FileNotFoundError inside the block for a file that need not exist.
    Keep other code out of the block: its errors would be reported as damage of the file.
    """
    try:
        yield
    except OSError as error:
        raise _missing(what, error, hint) or unreadable(what, error) from error
    except DAMAGE as error:
        reason = f"there is no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise StorageError(f"{what} is damaged: {reason.splitlines()[0]}", hint) from error


def _missing(what: object, error: OSError, hint: str) -> StorageError | None:
    if not hint or not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return None
    why = ": there is a file where its folder should be" if isinstance(error, NotADirectoryError) else ""
    return StorageError(f"{what} is missing{why}", hint)


def unreadable(what: object, error: OSError) -> StorageError:
    """A StorageError for a file that the operating system cannot read."""
    return StorageError(
        f"{what} cannot be read: {error.strerror or error}", f"check the permissions of {what}, and the disk"
    )


class PortInUse(FinetuneError):
    """Another process listens on the port."""

    exit_code = 10


class JobCanceled(FinetuneError):
    """A person canceled the run."""

    exit_code = 130

"""The exception tree. Every error that a person can cause or hint is one of these.

    FinetuneError               exit 1   (base; never raised itself)
    ├── DeclarationError        exit 2   task.yaml is wrong: every problem at once
    ├── DataError               exit 3   a source cannot be read, or has nothing in it
    ├── GateRefused             exit 4   a gate said no: quality, review, leak, decision, parity
    ├── WaitingForPeople        exit 5   not a failure: somebody has to review first
    ├── ModelError              exit 6   the base model is missing, unpinned, or its license forbids the use
    ├── TrainingFailed          exit 7   the training process stopped or diverged
    ├── ServingError            exit 8   the endpoint does not answer as it has to
    ├── StorageError            exit 9   no room, no right to write, an artifact is damaged
    ├── PortInUse               exit 10  somebody else listens there
    └── JobCancelled            exit 130 stopped by a person

Each says what is wrong (`message`), and what to do about it (`hint`). The exit codes are stable: scripts rely on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class FinetuneError(Exception):
    """Base of all. `message` names the thing and the value, `hint` says what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class DeclarationError(FinetuneError):
    """A declaration with problems; `problems` holds all of them, each with key, value and hint."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "", problems: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.problems = problems

    def __str__(self) -> str:
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        return super().__str__() + lines


class DataError(FinetuneError):
    exit_code = 3


class GateRefused(FinetuneError):
    exit_code = 4


class WaitingForPeople(FinetuneError):
    exit_code = 5


class ModelError(FinetuneError):
    exit_code = 6


class TrainingFailed(FinetuneError):
    exit_code = 7


class ServingError(FinetuneError):
    exit_code = 8


class StorageError(FinetuneError):
    exit_code = 9


# what parsing raises where the content is not what this project wrote
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


@contextmanager
def reading(what: object, hint: str = "") -> Iterator[None]:
    """What is wrong with the file `what`, which is read and parsed in the block, as a StorageError that names it.

        with reading(path, f"delete {path} and run again"):
            row = json.loads(path.read_text("utf-8"))["row"]

    A file that is not there is missing, and one whose content is wrong (no UTF-8, no JSON, a key that is missing) is
    damaged: `hint` says what to do. Any other OSError (no permission, a folder in its place, a failing disk) says that
    it cannot be read; so does a file that is missing where there is no `hint`. A file that need not exist is caught in
    the block. The block holds nothing but the reading: a fault of other code in it would be taken for damage.
    """
    try:
        yield
    except OSError as error:
        raise _missing(what, error, hint) or unreadable(what, error) from error
    except DAMAGE as error:
        missing = f"there is no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise StorageError(f"{what} is damaged: {missing.splitlines()[0]}", hint) from error


def _missing(what: object, error: OSError, hint: str) -> StorageError | None:
    if not hint or not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return None
    why = ": a file stands where its folder should be" if isinstance(error, NotADirectoryError) else ""
    return StorageError(f"{what} is missing{why}", hint)


def unreadable(what: object, error: OSError) -> StorageError:
    return StorageError(f"{what} cannot be read: {error.strerror or error}", f"check {what}: its rights, and the disk")


class PortInUse(FinetuneError):
    exit_code = 10


class JobCancelled(FinetuneError):
    exit_code = 130

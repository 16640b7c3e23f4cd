"""How a long step reports progress: to the terminal, to Dagster, or nowhere.

context.report.progress("training", 41, 74, loss=0.31)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Reporter(Protocol):
    """Implemented by the command line (cli/terminal.py), by Dagster (defs/reporter.py) and by `Silent`."""

    def log(self, text: str) -> None:
        """One message."""

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        """`done` of `total` units of `what`, with figures such as the loss."""

    def alive(self) -> None:
        """Called about once a second during long work; raises JobCanceled when the work was canceled."""


class Silent:
    """A reporter that shows nothing and never cancels."""

    def log(self, text: str) -> None:
        return None

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        return None

    def alive(self) -> None:
        return None


SILENT = Silent()


@dataclass(frozen=True)
class PartReporter:
    """Reports a training that is a part of a longer work, under the `name` of that part."""

    report: Reporter
    name: str

    def log(self, text: str) -> None:
        self.report.log(f"{self.name}: {text}")

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        self.report.progress(self.name if what == "training" else f"{self.name}, {what}", done, total, **figures)

    def alive(self) -> None:
        self.report.alive()

"""How a long step reports progress: to the terminal, to Dagster, or nowhere.

context.report.progress("training", 41, 74, loss=0.31)
"""

from __future__ import annotations

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

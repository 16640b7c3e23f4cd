"""Output of `finetune run`: one line per asset, progress with the remaining time, errors.

On a terminal the progress line is updated in place; in a log file there is one every LINE_SECONDS.

    ✓ clean_examples        2.1 s  877 rows: 742 kept, 135 dropped with a reason
    ⠋ adapter             training 41 of 74, loss 0.31, validation 0.4, rate 0.0012, 812 tokens/s, 1 min 20 s left
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.text import Text

from finetune_pipeline.errors import FinetuneError
from finetune_pipeline.records import Artifact
from finetune_pipeline.statistics.formatting import duration

LINE_SECONDS = 10.0
FIGURES = {  # those of a training, short: the line fits into a terminal
    "validation_loss": "validation {:.3g}",
    "validation_score": "right {:.0%}",
    "learning_rate": "rate {:.2g}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "peak_share": "{:.0%} of peak",
}
HELD_SECONDS = 1.5  # a log message is held back for so long: it may be repeated as the summary of the asset


class RichTerminal:
    """A records.Reporter for a terminal that also shows the result of each asset (defs/reporter.py, `Terminal`)."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._asset = ""
        self._start = self._last_line = time.monotonic()
        self._progress_start: dict[str, tuple[float, int]] = {}
        self._status: Status | None = None
        self._pending: str | None = None
        self._pending_since = 0.0

    def begins(self, asset: str) -> None:
        self._asset, self._start = asset, time.monotonic()
        self._progress_start.clear()
        self._show("working")

    def finished(self, asset: str, artifact: Artifact) -> None:
        self._stop()
        text = artifact.verdict.summary if artifact.verdict else headline(artifact.summary)
        if self._pending != text:
            self._show_pending()
        self._pending = None
        failed = artifact.verdict is not None and not artifact.verdict.passed
        mark = ("✗", "yellow") if failed else ("✓", "green")
        spent = time.monotonic() - self._start
        self._line(mark, f" {asset:<19}{spent:6.1f} s  {text}")

    def failed(self, asset: str, error: FinetuneError) -> None:
        self._stop()
        self._show_pending()
        self._line(("✗", "red"), f" {asset:<19} {error.message}")

    def log(self, text: str) -> None:
        """Held back for HELD_SECONDS or until the next event: the last message of a stage is often its verdict, which
        `finished` shows."""
        self._show_pending()
        self._pending, self._pending_since = text, time.monotonic()

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        now = time.monotonic()
        start, first = self._progress_start.setdefault(what, (now, done))
        rate = (done - first) / (now - start) if now > start and done > first else 0.0
        seconds = figures.pop("seconds_left", (total - done) / rate if rate else 0.0)
        left = f", {duration(seconds)} left" if seconds and done < total else ""
        shown = "".join(f", {_figure(name, value)}" for name, value in figures.items())
        self._show(f"{what} {done} of {total}{shown}{left}")

    def alive(self) -> None:
        """Called about once a second: shows a message that was held back long enough."""
        if time.monotonic() - self._pending_since > HELD_SECONDS:
            self._show_pending()

    def _show_pending(self) -> None:
        if self._pending is not None:
            self._line("  ", (self._pending, "dim"))
        self._pending = None

    def _show(self, text: str) -> None:
        self._show_pending()
        line = Text(f"{self._asset:<19} {text}")
        if self._out.is_terminal:
            if self._status is None:
                self._status = self._out.status(line)
                self._status.start()
            self._status.update(line)
        elif time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            self._line("  ", line)

    def _line(self, *parts: str | Text | tuple[str, str]) -> None:
        """One line of plain or styled texts, without markup: brackets in a user's text are shown as they are."""
        self._out.print(Text.assemble(*parts), soft_wrap=True)

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def _figure(name: str, value: float) -> str:
    return FIGURES.get(name, name + " {:.3g}").format(value)


def console(error: bool = False) -> Console:
    """The console for stdout or stderr, without markup and emoji names. A character that the terminal's encoding does
    not have is shown as an escape."""
    stream = sys.stderr if error else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return Console(stderr=error, markup=False, emoji=False, highlight=False)


def headline(summary: Mapping[str, Any], items: int = 4) -> str:
    """The first `items` plain figures of a summary on one line."""
    plain = [(k, v) for k, v in summary.items() if isinstance(v, int | float | str)]
    return ", ".join(f"{k} {round(v, 3) if isinstance(v, float) else v}" for k, v in plain[:items])

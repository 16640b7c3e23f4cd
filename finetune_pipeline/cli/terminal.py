"""What the `finetune` command shows while it works: one line an asset, progress with the time that is left, errors.

On a terminal the progress line rewrites itself; in a log file it comes every ten seconds.

    ✓ clean_examples       2.1 s  kept 742 of 877
    ⠋ adapter             training 41 of 74, loss 0.31, 1 min 20 s left
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

LINE_SECONDS = 10.0
HELD_SECONDS = 1.5  # a message, until it is plain that it is not the last word


class RichTerminal:
    """A reporter for people (records.Reporter, and how each asset ended)."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._asset = ""
        self._began = self._lined = time.monotonic()
        self._started: dict[str, tuple[float, int]] = {}
        self._status: Status | None = None
        self._said: str | None = None
        self._said_at = 0.0

    def begins(self, asset: str) -> None:
        self._asset, self._began = asset, time.monotonic()
        self._started.clear()
        self._show("working")

    def finished(self, asset: str, artifact: Artifact) -> None:
        self._stop()
        text = artifact.verdict.summary if artifact.verdict else headline(artifact.summary)
        if self._said != text:
            self._say()
        self._said = None
        failed = artifact.verdict is not None and not artifact.verdict.passed
        mark = ("✗", "yellow") if failed else ("✓", "green")
        spent = time.monotonic() - self._began
        self._line(mark, f" {asset:<19}{spent:6.1f} s  {text}")

    def failed(self, asset: str, error: FinetuneError) -> None:
        self._stop()
        self._say()
        self._line(("✗", "red"), f" {asset:<19} {error.message}")

    def log(self, text: str) -> None:
        """Held back for a moment, or until the next event: a stage's last word is often its verdict, which is shown
        anyway."""
        self._say()
        self._said, self._said_at = text, time.monotonic()

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        now = time.monotonic()
        began, before = self._started.setdefault(what, (now, done))
        rate = (done - before) / (now - began) if now > began and done > before else 0.0
        seconds = figures.pop("seconds_left", (total - done) / rate if rate else 0.0)
        left = f", {duration(seconds)} left" if seconds and done < total else ""
        shown = "".join(f", {name} {value:.3g}" for name, value in figures.items())
        self._show(f"{what} {done} of {total}{shown}{left}")

    def alive(self) -> None:
        """Comes again and again while work goes on or waits: what was said is not the last word."""
        if time.monotonic() - self._said_at > HELD_SECONDS:
            self._say()

    def _say(self) -> None:
        if self._said is not None:
            self._line("  ", (self._said, "dim"))
        self._said = None

    def _show(self, text: str) -> None:
        self._say()
        line = Text(f"{self._asset:<19} {text}")
        if self._out.is_terminal:
            if self._status is None:
                self._status = self._out.status(line)
                self._status.start()
            self._status.update(line)
        elif time.monotonic() - self._lined > LINE_SECONDS:
            self._lined = time.monotonic()
            self._line("  ", line)

    def _line(self, *parts: str | Text | tuple[str, str]) -> None:
        """One line of plain or styled texts. Never of markup: brackets in a person's text are brackets."""
        self._out.print(Text.assemble(*parts), soft_wrap=True)

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def console(error: bool = False) -> Console:
    """The console that all output goes to. It takes a text as it stands: no markup, no emoji names, and what the
    terminal's encoding cannot show as an escape."""
    stream = sys.stderr if error else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return Console(stderr=error, markup=False, emoji=False, highlight=False)


def headline(summary: Mapping[str, Any], items: int = 4) -> str:
    """The first few plain figures of a summary on one line."""
    plain = [(k, v) for k, v in summary.items() if isinstance(v, int | float | str)]
    return ", ".join(f"{k} {round(v, 3) if isinstance(v, float) else v}" for k, v in plain[:items])


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

"""User texts are shown as they are: brackets are not markup, names between colons are not emoji."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from finetune_pipeline import errors
from finetune_pipeline.cli.terminal import RichTerminal
from finetune_pipeline.records import Artifact, Verdict

MARKUP = "[/foo] [bold]x[/] :warning: \\"


@pytest.mark.parametrize("terminal", [True, False])
def test_brackets_in_any_message_are_shown(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_pipeline.cli.terminal.LINE_SECONDS", -1.0)
    file = io.StringIO()
    shown = RichTerminal(Console(file=file, force_terminal=terminal, width=200))
    verdict = Verdict("data_quality", False, "x", f"verdict {MARKUP}")
    manifest = {"summary": {"tool": f"summary {MARKUP}"}}
    shown.begins("data_quality")
    shown.log(f"log {MARKUP}")
    shown.progress(f"progress {MARKUP}", 1, 2, loss=0.5)
    shown.finished(
        "data_quality", Artifact("data_quality", "k", "c", Path(), {**manifest, "verdict": verdict.to_json()})
    )
    shown.begins("adapter")
    shown.finished("adapter", Artifact("adapter", "k", "c", Path(), manifest))
    shown.begins("adapter")
    shown.failed("adapter", errors.DataError(f"failed {MARKUP}"))
    plain = Console(file=io.StringIO()).render_str(file.getvalue(), markup=False, emoji=False).plain
    for what in ("log", "progress", "verdict", "summary", "failed"):
        assert f"{what} {MARKUP}" in plain, what


def test_a_message_before_a_wait_is_shown_during_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is held back, since it may be the verdict of the asset, but not until the end of a wait."""
    clock = [100.0]
    monkeypatch.setattr("finetune_pipeline.cli.terminal.time.monotonic", lambda: clock[0])
    file = io.StringIO()
    shown = RichTerminal(Console(file=file, width=200))
    shown.begins("adapter")
    shown.log("another job is computing on this machine; waiting for it")
    shown.alive()
    assert file.getvalue() == ""
    clock[0] += 2
    shown.alive()
    assert file.getvalue().count("waiting for it") == 1
    shown.alive()
    assert file.getvalue().count("waiting for it") == 1


def test_the_line_of_a_training_fits_into_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_pipeline.cli.terminal.LINE_SECONDS", -1.0)
    file = io.StringIO()
    shown = RichTerminal(Console(file=file, width=200))
    shown.begins("adapter")
    figures = {"loss": 0.3123, "validation_loss": 0.41234, "validation_score": 0.84, "learning_rate": 0.00123}
    figures |= {"tokens_per_second": 1812.3, "peak_share": 0.55, "seconds_left": 80.0}
    shown.progress("training", 41, 74, **figures)
    (line,) = (line for line in file.getvalue().splitlines() if "training" in line)
    expected = "loss 0.312, validation 0.412, right 84%, rate 0.0012, 1,812 tokens/s, 55% of peak, 1 min 20 s left"
    assert line.endswith(f"training 41 of 74, {expected}")

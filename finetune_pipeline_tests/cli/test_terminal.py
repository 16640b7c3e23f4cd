"""What people wrote is shown as they wrote it: brackets are no markup, names between colons no emoji."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from finetune_pipeline import errors
from finetune_pipeline.cli.terminal import RichTerminal
from finetune_pipeline.records import Artifact, Verdict

ODD = "[/foo] [bold]x[/] :warning: \\"


@pytest.mark.parametrize("terminal", [True, False])
def test_brackets_in_any_message_are_shown_and_crash_nothing(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_pipeline.cli.terminal.LINE_SECONDS", -1.0)
    file = io.StringIO()
    shown = RichTerminal(Console(file=file, force_terminal=terminal, width=200))
    verdict = Verdict("data_quality", False, "x", f"verdict {ODD}")
    manifest = {"summary": {"tool": f"summary {ODD}"}}
    shown.begins("data_quality")
    shown.log(f"log {ODD}")
    shown.progress(f"progress {ODD}", 1, 2, loss=0.5)
    shown.finished(
        "data_quality", Artifact("data_quality", "k", "c", Path(), {**manifest, "verdict": verdict.to_json()})
    )
    shown.begins("adapter")
    shown.finished("adapter", Artifact("adapter", "k", "c", Path(), manifest))
    shown.begins("adapter")
    shown.failed("adapter", errors.DataError(f"failed {ODD}"))
    plain = Console(file=io.StringIO()).render_str(file.getvalue(), markup=False, emoji=False).plain
    for what in ("log", "progress", "verdict", "summary", "failed"):
        assert f"{what} {ODD}" in plain, what


def test_what_is_said_before_a_wait_is_shown_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is held back, since it may be the verdict that ends the asset; a wait must not hold it to its end."""
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

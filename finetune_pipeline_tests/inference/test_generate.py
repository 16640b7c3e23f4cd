"""The progress report of `generate`: the remaining time is there before any answer is complete, and falls to 0."""

from __future__ import annotations

from pathlib import Path

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.inference.generate import Generation, generate
from finetune_pipeline.inference.loading import load
from finetune_pipeline.records import Silent


class ProgressRecorder(Silent):
    def __init__(self) -> None:
        self.lines: list[tuple[int, float]] = []

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        self.lines.append((done, figures["seconds_left"]))


def test_the_remaining_time_is_reported_from_the_first_step_on(tiny_model: Path) -> None:
    prompts = {f"r{n}": [{"role": "user", "content": "where is my parcel " * (n + 1)}] for n in range(6)}
    recorder = ProgressRecorder()
    loaded = load(tiny_model)
    answers = generate(loaded, prompts, AnswerFormat(format="text"), Generation("x", 12, batch_size=4), report=recorder)
    assert len(answers) == 6
    done, left = zip(*recorder.lines, strict=True)
    assert done[0] == 0
    assert left[0] > 0
    assert (done[-1], left[-1]) == (6, 0.0)

"""What `generate` tells while it works: the time left falls to nothing, and is there before a row has ended."""

from __future__ import annotations

from pathlib import Path

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.inference.generate import Generation, generate
from finetune_pipeline.inference.loading import load
from finetune_pipeline.records import Silent


class Watch(Silent):
    def __init__(self) -> None:
        self.told: list[tuple[int, float]] = []

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        self.told.append((done, figures["seconds_left"]))


def test_the_time_left_is_told_from_the_first_step_on(tiny_model: Path) -> None:
    prompts = {f"r{n}": [{"role": "user", "content": "where is my parcel " * (n + 1)}] for n in range(6)}
    watch = Watch()
    loaded = load(tiny_model)
    answers = generate(loaded, prompts, AnswerFormat(format="text"), Generation("x", 12, batch_size=4), report=watch)
    assert len(answers) == 6
    done, left = zip(*watch.told, strict=True)
    assert done[0] == 0
    assert left[0] > 0
    assert (done[-1], left[-1]) == (6, 0.0)

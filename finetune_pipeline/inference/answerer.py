"""Who answers the test rows: one interface for a model in this process and a model behind an API.

    answerer: Answerer = LocalModel(loaded, task.answer)         # or providers.api_answerer.ApiAnswerer(...)
    answerer.answer(chats, Generation("tuned", 48), log.append, report)

Baselines and evaluation use nothing else of a model, so that a variant is answered in the same way wherever it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.inference.generate import Generation, Messages, encode, generate, label_choice
from finetune_pipeline.inference.loading import Loaded
from finetune_pipeline.inference.model_family import max_sequence_tokens
from finetune_pipeline.records import SILENT, Answer, Reporter


def nothing(answer: Answer) -> None:
    """The `on_answer` of a caller that reads the returned list only."""


class Answerer(Protocol):
    """Implemented by LocalModel and by providers.api_answerer.ApiAnswerer."""

    @property
    def precision(self) -> str | None:
        """What the model computes in, "bf16" or "fp32"; None where that is the provider's choice."""

    def answer(
        self,
        chats: Mapping[str, Messages],
        settings: Generation,
        on_answer: Callable[[Answer], None] = nothing,
        report: Reporter = SILENT,
        done: int = 0,
        labels: Sequence[str] = (),
    ) -> list[Answer]:
        """Answers to `chats` (messages by id, the last one the user's), in the order of completion; each is passed to
        `on_answer` as it is complete. With `labels`, each answer is one of them. `done` is the number of earlier
        answers, for the progress report. DataError when a row cannot be answered; ServingError of an API."""

    def fits(self, chat: Messages, max_new_tokens: int) -> bool:
        """Whether prompt and longest answer fit into the model's context."""


@dataclass(frozen=True)
class LocalModel:
    """A loaded model, answering through the batched decoder."""

    loaded: Loaded
    spec: AnswerFormat

    @property
    def precision(self) -> str:
        return self.loaded.dtype_name

    def answer(
        self,
        chats: Mapping[str, Messages],
        settings: Generation,
        on_answer: Callable[[Answer], None] = nothing,
        report: Reporter = SILENT,
        done: int = 0,
        labels: Sequence[str] = (),
    ) -> list[Answer]:
        choice = label_choice(self.loaded, labels) if labels else None
        return generate(self.loaded, chats, self.spec, settings, on_answer, report, done=done, choice=choice)

    def fits(self, chat: Messages, max_new_tokens: int) -> bool:
        longest = max_sequence_tokens(self.loaded.model.config)
        return len(encode(self.loaded.tokenizer, chat)) + max_new_tokens <= longest

"""Answer many prompts with one model, as fast as the machine allows: the decoder, fed with all of them.

    answers = generate(loaded, prompts, spec, Generation("zero_shot", max_new_tokens=48, batch_size=64))

What all prompts begin with (system prompt, fixed examples) is found by itself and computed once. The longest prompts
come first, so that the estimate of the time left errs on the safe side. Each answer is handed on when it is complete:
what was answered before a kill need not be answered again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.errors import DataError
from finetune_pipeline.inference.decoder import Decoder, Request, Token
from finetune_pipeline.inference.label_choice import LabelChoice
from finetune_pipeline.inference.loading import Loaded
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.inference.stopping import StopRule, final
from finetune_pipeline.records import Answer, Reporter, Silent

Messages = Sequence[Mapping[str, str]]
STEP_TOKENS = 1024  # of prompts joining a step


@dataclass(frozen=True, slots=True)
class Generation:
    """How to answer: `variant` names the answers, `batch_size` are made at the same time, temperature 0 is greedy."""

    variant: str
    max_new_tokens: int
    batch_size: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def generate(
    loaded: Loaded,
    prompts: Mapping[str, Messages],
    spec: AnswerFormat,
    how: Generation,
    on_answer: Callable[[Answer], None] = lambda answer: None,
    report: Reporter | None = None,
    done: int = 0,
    choice: LabelChoice | None = None,
) -> list[Answer]:
    """Answer `prompts` (id -> messages, the last one the user's); the answers in order of completion.

    With `choice` each answer is one of its labels (constrained decoding); without, the model is free.

    `Answer.seconds` is the row's share of the time of the steps it took part in, so that the sum over all rows is the
    time of the whole. `done` counts answers from before, for the progress. DataError when a prompt does not fit, or a
    row's next token cannot be chosen.
    """
    report = report or Silent()
    ids = {key: encode(loaded.tokenizer, messages) for key, messages in prompts.items()}
    if not ids:
        return []
    rule = choice.stop if choice else StopRule(lambda tokens: text_of(loaded.tokenizer, tokens), spec)
    allowed = choice.allowed if choice else None
    prefix = common_prefix(list(ids.values()))
    decoder = Decoder(loaded.model, loaded.eos_ids, prefix, how.batch_size, STEP_TOKENS)
    requests = [
        Request(key, tokens, how.max_new_tokens, how.temperature, how.top_p, how.seed, allowed, rule)
        for key, tokens in ids.items()
    ]
    requests.sort(key=lambda request: -len(request.prompt_ids))
    decoder.add_request(requests)
    collect = _Collector(loaded, {key: len(tokens) for key, tokens in ids.items()}, spec, how.variant, choice)
    pace = _Pace([len(request.prompt_ids) - len(prefix) for request in requests], how.max_new_tokens)
    total, began = done + len(ids), time.perf_counter()
    while decoder.running or decoder.waiting:
        report.alive()
        start = time.perf_counter()
        tokens = decoder.step()
        ended = collect.take(tokens, time.perf_counter() - start)
        for answer in ended:
            on_answer(answer)
        spent = time.perf_counter() - began
        pace.step(len(requests) - decoder.waiting, len(tokens), ended)
        figures = {"answers_per_second": len(collect.answers) / spent, "seconds_left": pace.left * spent}
        report.progress(
            how.variant, done + len(collect.answers), total, **{name: round(x, 4) for name, x in figures.items()}
        )
    return collect.answers


class _Pace:
    """The time left, by tokens: rows are a poor measure, since none ends for a while and then many do at once.

    `prompts`: tokens of each prompt, in the order in which they join; an unfinished answer is thought to become as long
    as the finished ones are on average (`longest`, until there is one).
    """

    def __init__(self, prompts: Sequence[int], longest: int) -> None:
        self._read = [0, *accumulate(prompts)]
        self._longest = longest
        self._joined = self._written = self._ended_rows = self._ended_tokens = 0

    def step(self, joined: int, tokens: int, ended: Sequence[Answer]) -> None:
        """A step gave `tokens`; by now, `joined` rows have begun; it ended the rows `ended`."""
        self._joined, self._written = joined, self._written + tokens
        self._ended_rows += len(ended)
        self._ended_tokens += sum(answer.completion_tokens for answer in ended)

    @property
    def left(self) -> float:
        """What is to be done, as a multiple of what has been done."""
        usual = self._ended_tokens / self._ended_rows if self._ended_rows else self._longest
        running = usual * (len(self._read) - 1 - self._ended_rows) - (self._written - self._ended_tokens)
        done = self._read[self._joined] + self._written
        return (self._read[-1] - self._read[self._joined] + max(0.0, running)) / max(1, done)


class _Collector:
    """Gathers tokens into answers."""

    def __init__(
        self,
        loaded: Loaded,
        prompt_tokens: Mapping[str, int],
        spec: AnswerFormat,
        variant: str,
        choice: LabelChoice | None,
    ) -> None:
        self._loaded, self._prompt_tokens, self._spec, self._variant = loaded, prompt_tokens, spec, variant
        self._choice = choice
        self._ids: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self.answers: list[Answer] = []

    def take(self, tokens: Sequence[Token], seconds: float) -> list[Answer]:
        """The answers that `tokens`, the outcome of a step that took `seconds`, have completed."""
        complete = []
        for token in tokens:
            if token.reason == "error":
                raise DataError(f"row {token.id} cannot be answered: {token.error}", "see the row, and run again")
            self._ids.setdefault(token.id, []).append(token.token)
            self._seconds[token.id] = self._seconds.get(token.id, 0.0) + seconds / len(tokens)
            if token.finished:
                complete.append(self._answer(token))
        self.answers += complete
        return complete

    def _answer(self, last: Token) -> Answer:
        ids = self._ids.pop(last.id)
        return Answer(
            last.id,
            self._variant,
            self._choice.label(ids) if self._choice else self._free_text(ids, last),
            self._prompt_tokens[last.id],
            len(ids),
            round(self._seconds.pop(last.id), 4),
            last.reason != "length",
        )

    def _free_text(self, ids: Sequence[int], last: Token) -> str:
        text = text_of(self._loaded.tokenizer, ids[:-1] if last.reason == "eos" else ids)
        return final(text, self._spec)


def label_choice(loaded: Loaded, labels: Sequence[str]) -> LabelChoice:
    """The choice among `labels` for this model's tokenizer."""
    ids = {label: loaded.tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels}
    return LabelChoice(ids, loaded.eos_ids)


def encode(tokenizer: Any, messages: Messages) -> list[int]:
    """The prompt's tokens: the chat template's text, which has all special tokens in it already."""
    from finetune_pipeline.models.base_model import render

    ids: list[int] = tokenizer(render(tokenizer, messages), add_special_tokens=False)["input_ids"]
    return ids


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    return text

"""Answer many prompts with one model, as fast as the machine allows: the decoder, fed with all of them.

    answers = generate(loaded, prompts, spec, Generation("zero_shot", max_new_tokens=48, batch_rows=32))

What all prompts begin with (system prompt, fixed examples) is found by itself and computed once. The longest prompts
come first, so that the estimate of the time left errs on the safe side. Each answer is handed on when it is complete:
what was answered before a kill need not be answered again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.evaluate.decoder import Decoder, Request, Token
from finetune_pipeline.evaluate.loading import Loaded
from finetune_pipeline.evaluate.stop import StopRule, final
from finetune_pipeline.records import Answer, Reporter, Silent

Messages = Sequence[Mapping[str, str]]
STEP_TOKENS = 256  # prompts joining a step: nearly the full speed of a processor, and progress moves evenly


@dataclass(frozen=True, slots=True)
class Generation:
    """How to answer: `variant` names the answers, `batch_rows` are made at the same time, temperature 0 is greedy."""

    variant: str
    max_new_tokens: int
    batch_rows: int = 32
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
) -> list[Answer]:
    """Answer `prompts` (id -> messages, the last one the user's); the answers in order of completion.

    `Answer.seconds` is the row's share of the time of the steps it took part in, so that the sum over all rows is the
    time of the whole. `done` counts answers from before, for the progress. DataError when a prompt does not fit.
    """
    report = report or Silent()
    ids = {key: encode(loaded.tokenizer, messages) for key, messages in prompts.items()}
    if not ids:
        return []
    rule = StopRule(lambda tokens: text_of(loaded.tokenizer, tokens), spec)
    decoder = Decoder(loaded.model, loaded.eos_ids, shared_prefix(list(ids.values())), how.batch_rows, STEP_TOKENS)
    requests = [
        Request(key, tokens, how.max_new_tokens, how.temperature, how.top_p, how.seed, stop=rule)
        for key, tokens in ids.items()
    ]
    decoder.admit(sorted(requests, key=lambda request: -len(request.prompt_ids)))
    collect = _Collector(loaded, {key: len(tokens) for key, tokens in ids.items()}, spec, how.variant)
    total, began = done + len(ids), time.perf_counter()
    while decoder.running or decoder.waiting:
        report.alive()
        start = time.perf_counter()
        tokens = decoder.step()
        for answer in collect.take(tokens, time.perf_counter() - start):
            on_answer(answer)
        rate = len(collect.answers) / (time.perf_counter() - began)
        report.progress(how.variant, done + len(collect.answers), total, answers_per_second=round(rate, 2))
    return collect.answers


class _Collector:
    """Gathers tokens into answers."""

    def __init__(self, loaded: Loaded, prompt_tokens: Mapping[str, int], spec: AnswerFormat, variant: str) -> None:
        self._loaded, self._prompt_tokens, self._spec, self._variant = loaded, prompt_tokens, spec, variant
        self._ids: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self.answers: list[Answer] = []

    def take(self, tokens: Sequence[Token], seconds: float) -> list[Answer]:
        """The answers that `tokens`, the outcome of a step that took `seconds`, have completed."""
        complete = []
        for token in tokens:
            self._ids.setdefault(token.id, []).append(token.token)
            self._seconds[token.id] = self._seconds.get(token.id, 0.0) + seconds / len(tokens)
            if token.finished:
                complete.append(self._answer(token))
        self.answers += complete
        return complete

    def _answer(self, last: Token) -> Answer:
        ids = self._ids.pop(last.id)
        text = text_of(self._loaded.tokenizer, ids[:-1] if last.reason == "eos" else ids)
        return Answer(
            last.id,
            self._variant,
            final(text, self._spec),
            self._prompt_tokens[last.id],
            len(ids),
            round(self._seconds.pop(last.id), 4),
            last.reason != "length",
        )


def encode(tokenizer: Any, messages: Messages) -> list[int]:
    """The prompt's tokens: the chat template's text, which has all special tokens in it already."""
    from finetune_pipeline.base_model import render

    ids: list[int] = tokenizer(render(tokenizer, messages), add_special_tokens=False)["input_ids"]
    return ids


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    return text


def shared_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """The tokens that all prompts begin with, leaving each at least one of its own; none for a single prompt."""
    if len(prompts) < 2:
        return []
    first, last = min(prompts), max(prompts)  # in order of the alphabet: what these share, all share
    limit = min(len(prompt) for prompt in prompts) - 1
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), limit)
    return list(first[: min(shared, limit)])

"""Generate answers to many prompts with one model, through the batched decoder.

    answers = generate(loaded, prompts, spec, Generation("zero_shot", max_new_tokens=48, batch_size=64))

The common prefix of all prompts (system prompt, fixed examples) is detected and computed once. The longest prompts come
first, so that the estimated remaining time is rather too high than too low. Each answer is passed to `on_answer` when
it is complete, so that it need not be generated again after an interruption.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.errors import DataError
from finetune_pipeline.inference.cache_budget import cache_tokens
from finetune_pipeline.inference.chat_template import render
from finetune_pipeline.inference.decoder import Decoder, Request, Token
from finetune_pipeline.inference.label_choice import LabelChoice
from finetune_pipeline.inference.loading import Loaded
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.inference.stopping import StopRule, final
from finetune_pipeline.models import device
from finetune_pipeline.records import SILENT, Answer, Reporter

Messages = Sequence[Mapping[str, str]]
PREFILL_TOKENS = 1024  # in one step of the decoder


@dataclass(frozen=True, slots=True)
class Generation:
    """Settings. `variant` is the name of the answers; `batch_size` answers are generated at once; temperature 0 is
    greedy."""

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
    settings: Generation,
    on_answer: Callable[[Answer], None] = lambda answer: None,
    report: Reporter = SILENT,
    done: int = 0,
    choice: LabelChoice | None = None,
) -> list[Answer]:
    """Answers to `prompts` (messages by id, the last one the user's), in the order of completion.

    With `choice`, each answer is one of its labels (constrained decoding). `done` is the number of earlier answers, for
    the progress report. `Answer.seconds` is the row's share of the time of its steps, so that the sum over all rows is
    the total time. DataError when a prompt does not fit, or a next token cannot be chosen.
    """
    ids = {key: encode(loaded.tokenizer, messages) for key, messages in prompts.items()}
    if not ids:
        return []
    prefix = common_prefix(list(ids.values()))
    requests = _requests(loaded, ids, spec, settings, choice)
    longest = len(requests[0].prompt_ids) + settings.max_new_tokens
    cached = cache_tokens(loaded.model, longest)
    decoder = Decoder(loaded.model, loaded.eos_ids, prefix, settings.batch_size, PREFILL_TOKENS, cached)
    decoder.add_request(requests)
    collector = _AnswerCollector(loaded, {key: len(tokens) for key, tokens in ids.items()}, spec, settings, choice)
    remaining = _RemainingTime([len(request.prompt_ids) - len(prefix) for request in requests], settings.max_new_tokens)
    began = time.perf_counter()
    while decoder.running or decoder.waiting:
        report.alive()
        start = time.perf_counter()
        tokens = _step(decoder)
        completed = collector.add(tokens, time.perf_counter() - start)
        for answer in completed:
            on_answer(answer)
        remaining.step(len(requests) - decoder.waiting, len(tokens), completed)
        elapsed, count = time.perf_counter() - began, len(collector.answers)
        figures = {"answers_per_second": count / elapsed, "seconds_left": remaining.ratio * elapsed}
        report.progress(
            settings.variant, done + count, done + len(ids), **{name: round(each, 4) for name, each in figures.items()}
        )
    return collector.answers


def _step(decoder: Decoder) -> list[Token]:
    """A step of the decoder. ModelError when the device has no memory left."""
    try:
        return decoder.step()
    except (RuntimeError, MemoryError) as error:
        if device.out_of_memory(error):
            hint = "lower `evaluate.batch_size`, or use a device with more memory"
            raise device.memory_error(f"answering {decoder.running} prompts at once", hint) from error
        raise


def _requests(
    loaded: Loaded, ids: Mapping[str, list[int]], spec: AnswerFormat, settings: Generation, choice: LabelChoice | None
) -> list[Request]:
    """One request for each prompt, the longest first."""
    stop = choice.stop if choice else StopRule(lambda tokens: text_of(loaded.tokenizer, tokens), spec)
    allowed = choice.allowed if choice else None
    sampling = (settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed)
    requests = [Request(key, tokens, *sampling, allowed, stop) for key, tokens in ids.items()]
    return sorted(requests, key=lambda request: -len(request.prompt_ids))


class _RemainingTime:
    """Estimates the remaining time by tokens. Finished rows would be a poor measure: at first none finishes, then many
    at once.

    `prompts`: tokens of each prompt in the order of their prefill. Unfinished answers are assumed to become as long as
    the finished ones are on average (`max_new_tokens` until there is one).
    """

    def __init__(self, prompts: Sequence[int], max_new_tokens: int) -> None:
        self._prompt_tokens = [0, *accumulate(prompts)]
        self._max_new_tokens = max_new_tokens
        self._started = self._generated = self._finished = self._finished_tokens = 0

    def step(self, started: int, tokens: int, finished: Sequence[Answer]) -> None:
        """A step generated `tokens` and finished the answers `finished`; so far, `started` rows were started."""
        self._started, self._generated = started, self._generated + tokens
        self._finished += len(finished)
        self._finished_tokens += sum(answer.completion_tokens for answer in finished)

    @property
    def ratio(self) -> float:
        """Remaining tokens as a multiple of those computed so far."""
        mean = self._finished_tokens / self._finished if self._finished else self._max_new_tokens
        unfinished = len(self._prompt_tokens) - 1 - self._finished
        to_generate = mean * unfinished - (self._generated - self._finished_tokens)
        to_prefill = self._prompt_tokens[-1] - self._prompt_tokens[self._started]
        computed = self._prompt_tokens[self._started] + self._generated
        return (to_prefill + max(0.0, to_generate)) / max(1, computed)


class _AnswerCollector:
    """Collects the tokens of each row until its answer is complete."""

    def __init__(
        self,
        loaded: Loaded,
        prompt_tokens: Mapping[str, int],
        spec: AnswerFormat,
        settings: Generation,
        choice: LabelChoice | None,
    ) -> None:
        self._loaded, self._prompt_tokens, self._spec = loaded, prompt_tokens, spec
        self._variant, self._choice = settings.variant, choice
        self._ids: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self.answers: list[Answer] = []

    def add(self, tokens: Sequence[Token], seconds: float) -> list[Answer]:
        """Add the tokens of a step that took `seconds`; the answers that they complete."""
        complete = []
        for token in tokens:
            if token.reason == "error":
                raise DataError(f"row {token.id} cannot be answered: {token.error}", "check the row, and run again")
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
    """Constrained decoding of `labels` with this model's tokenizer."""
    ids = {label: loaded.tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels}
    return LabelChoice(ids, loaded.eos_ids)


def encode(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of the prompt, rendered with the chat template."""
    ids: list[int] = tokenizer(render(tokenizer, messages), add_special_tokens=False)["input_ids"]
    return ids


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, without special tokens."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    return text

"""The cleaning rules for one row, in the order in which they are applied. Each is a function of one row.

    normalize_completion(row, context)             # Fixed(row, ("completion-label",))
    require_valid_completion(row, context)         # Dropped("intent: 'x' is not one of ...", "invalid-completion")

To add a rule, write a function `(row, context) -> RowResult` and add it to ROW_RULES with its slug. A rule returns the
row unchanged, or a changed row (a Fix in the ledger under the rule's slug), or `Dropped` (a Drop with the rule's slug
as reason). Rules that need other rows are in duplicates.py, the bounds on tokens in lengths.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

from finetune_pipeline.clean.answers import Truncated, dump, normalize_answer, parse, problem
from finetune_pipeline.clean.pii import mask
from finetune_pipeline.clean.text_fixes import fix_completion, fix_prompt
from finetune_pipeline.config import AnswerFormat, Clean
from finetune_pipeline.records import Example, Message

_CACHED = 20_000  # distinct completions


@dataclass(frozen=True, slots=True)
class Fixed:
    """A row changed by a rule that has several slugs; a slug that occurs twice is one Fix with "2 times"."""

    row: Example
    slugs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """The row is dropped: `detail` is the evidence (never personal data), `reason` a slug, by default the rule's."""

    detail: str
    reason: str = ""


RowResult: TypeAlias = "Example | Fixed | Dropped"


class RowContext:
    """What the rules read of the declaration: `clean` and `answer`.

    Results for a completion are cached, since most tasks have few distinct completions.
    """

    def __init__(self, clean: Clean, answer: AnswerFormat) -> None:
        self.clean, self.answer = clean, answer
        self.normalize: Callable[[str], tuple[str, list[str]]] = _cached(lambda text: normalize_answer(text, answer))
        self.validate: Callable[[str], Dropped | None] = _cached(lambda text: _validate(text, answer))
        self.mask_completion: Callable[[str], tuple[str, list[str]]] = _cached(
            _mask_json if answer.format == "json" else mask
        )


RowRule: TypeAlias = "Callable[[Example, RowContext], RowResult]"


def fix_texts(row: Example, context: RowContext) -> RowResult:
    """Every message with the fixes of text_fixes.py."""
    slugs: list[str] = []
    messages: list[Message] = []
    for m in row.messages:
        text, applied = (
            fix_completion(m.content) if m.role == "assistant" else fix_prompt(m.content, context.clean.html)
        )
        slugs += applied
        messages.append(Message(m.role, text) if applied else m)
    return Fixed(replace(row, messages=tuple(messages)), tuple(slugs)) if slugs else row


def require_prompt(row: Example, context: RowContext) -> RowResult:
    """Drops a row whose prompt is empty."""
    return row if row.prompt.strip() else Dropped("nothing is left of the prompt after the text fixes")


def require_completion(row: Example, context: RowContext) -> RowResult:
    """Drops a row whose completion is empty."""
    return row if row.completion.strip() else Dropped("")


def normalize_completion(row: Example, context: RowContext) -> RowResult:
    """The completion in its canonical form (`answers.normalize_answer`)."""
    text, slugs = context.normalize(row.completion)
    return row if text == row.completion else Fixed(row.with_completion(text), tuple(slugs))


def require_valid_completion(row: Example, context: RowContext) -> RowResult:
    """Drops a row whose completion ends early or is not in the declared format."""
    return context.validate(row.completion) or row


def handle_personal_data(row: Example, context: RowContext) -> RowResult:
    """Masks personal data or drops the row, as declared by `clean.personal_data`."""
    if context.clean.personal_data == "keep":
        return row
    *prompt, completion = row.messages
    masked = [mask(m.content) for m in prompt] + [context.mask_completion(completion.content)]
    kinds = [kind for _, masked_kinds in masked for kind in masked_kinds]
    if not kinds:
        return row
    names = ", ".join(sorted(set(kinds)))
    if context.clean.personal_data == "drop":
        return Dropped(names)
    if masked[-1][1] and problem(masked[-1][0], context.answer) is not None:
        # For example, the schema requires an address: masked, the completion is invalid; unmasked, it must not be
        # learned.
        return Dropped(f"{names}; the masked completion is not in the declared format")
    texts = [text for text, _ in masked]
    messages = tuple(Message(m.role, text) for m, text in zip(row.messages, texts, strict=True))
    return Fixed(replace(row, messages=messages), tuple(f"pii-{kind.lower()}" for kind in kinds))


ROW_RULES: tuple[tuple[str, RowRule], ...] = (  # (slug, rule), in the order in which they are applied
    ("text", fix_texts),  # its slugs are those of text_fixes.py
    ("empty-prompt", require_prompt),
    ("empty-completion", require_completion),
    ("completion", normalize_completion),  # completion-fence, completion-label, completion-form, completion-space
    ("invalid-completion", require_valid_completion),  # or truncated-completion
    ("personal-data", handle_personal_data),  # fixes: pii-email, pii-phone, ...
)


def _cached(function: Callable[[str], Any]) -> Any:
    return lru_cache(_CACHED)(function)


def _validate(completion: str, answer: AnswerFormat) -> Dropped | None:
    try:
        parse(completion, answer)
    except Truncated as error:
        return Dropped(str(error), "truncated-completion")
    except ValueError as error:
        return Dropped(str(error))
    return None


def _mask_json(text: str) -> tuple[str, list[str]]:
    """Masks each text and integer inside a JSON completion, then the whole, as the endpoint's log does."""
    kinds: list[str] = []

    def masked_value(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: masked_value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [masked_value(item) for item in value]
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            hidden, value_kinds = mask(str(value))
            kinds.extend(value_kinds)
            return hidden if value_kinds else value
        return value

    value = masked_value(json.loads(text))
    masked, more = mask(dump(value) if kinds else text)  # {"phone": 5550100} is recognized only with its key
    return masked, kinds + more

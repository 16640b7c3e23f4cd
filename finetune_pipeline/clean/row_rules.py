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
from finetune_pipeline.clean.normalize import identity
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
        self.mask_answer: Callable[[str], tuple[str, list[str]]] = _cached(
            _mask_json if answer.format == "json" else mask
        )


RowRule: TypeAlias = "Callable[[Example, RowContext], RowResult]"


def fix_texts(row: Example, context: RowContext) -> RowResult:
    """Every message and the rejected completion with the fixes of text_fixes.py."""
    slugs: list[str] = []
    messages: list[Message] = []
    for m in row.messages:
        text, applied = (
            fix_completion(m.content) if m.role == "assistant" else fix_prompt(m.content, context.clean.html)
        )
        slugs += applied
        messages.append(Message(m.role, text) if applied else m)
    rejected = row.rejected
    if rejected is not None:
        rejected, applied = fix_completion(rejected)
        slugs += applied
    return Fixed(replace(row, messages=tuple(messages), rejected=rejected), tuple(slugs)) if slugs else row


def require_prompt(row: Example, context: RowContext) -> RowResult:
    """Drops a row whose prompt is empty."""
    return row if row.prompt.strip() else Dropped("nothing is left of the prompt after the text fixes")


def require_completion(row: Example, context: RowContext) -> RowResult:
    """Drops a row whose completion is empty, or an earlier message of the assistant, which is learned too."""
    if not row.completion.strip():
        return Dropped("")
    empty = [n for n, m in enumerate(row.messages, 1) if m.role == "assistant" and not m.content.strip()]
    return Dropped(f"message {empty[0]}, an earlier one of the assistant") if empty else row


def normalize_completion(row: Example, context: RowContext) -> RowResult:
    """All that the assistant says in its canonical form (`answers.normalize_answer`).

    The form of the rejected completion is changed where that of the completion was: a model would learn the difference
    that cleaning made. Where it was not, the form may be what the completion was rejected for.
    """
    formed = [context.normalize(m.content) if m.role == "assistant" else (m.content, []) for m in row.messages]
    slugs = [slug for _, applied in formed for slug in applied]
    messages = tuple(Message(m.role, text) for m, (text, _) in zip(row.messages, formed, strict=True))
    rejected = row.rejected
    if rejected is not None:
        same_form = messages[-1] != row.messages[-1]
        rejected, applied = context.normalize(rejected) if same_form else (rejected.strip(), ["completion-space"])
        slugs += [f"rejected-{slug}" for slug in applied] if rejected != row.rejected else []
    changed = replace(row, messages=messages, rejected=rejected)
    return row if changed == row else Fixed(changed, tuple(slugs))


def require_valid_completion(row: Example, context: RowContext) -> RowResult:
    """Drops a row whose completion ends early or is not in the declared format."""
    return context.validate(row.completion) or row


def handle_personal_data(row: Example, context: RowContext) -> RowResult:
    """Masks personal data or drops the row, as declared by `clean.personal_data`."""
    if context.clean.personal_data == "keep":
        return row
    masked = [context.mask_answer(m.content) if m.role == "assistant" else mask(m.content) for m in row.messages]
    masked += [context.mask_answer(row.rejected)] if row.rejected is not None else []
    kinds = [kind for _, masked_kinds in masked for kind in masked_kinds]
    if not kinds:
        return row
    names = ", ".join(sorted(set(kinds)))
    if context.clean.personal_data == "drop":
        return Dropped(names)
    texts = [text for text, _ in masked]
    for m, text in zip(row.messages, texts, strict=False):
        if m.role == "assistant" and text != m.content and _invalidated(m.content, text, context.answer):
            # For example, the schema requires an address: masked, the completion is invalid; unmasked, it must not be
            # learned.
            return Dropped(f"{names}; the masked completion is not in the declared format")
    messages = tuple(Message(m.role, text) for m, text in zip(row.messages, texts, strict=False))
    rejected = texts[-1] if row.rejected is not None else None
    return Fixed(replace(row, messages=messages, rejected=rejected), tuple(f"pii-{kind.lower()}" for kind in kinds))


def require_preference(row: Example, context: RowContext) -> RowResult:
    """Removes a rejected completion that is empty, or equal to the row's own: there is no preference between them."""
    if row.rejected is None:
        return row
    if not row.rejected.strip():
        return without_rejected(row, "empty")
    return without_rejected(row, "equal") if identity(row.rejected) == identity(row.completion) else row


def without_rejected(row: Example, why: str) -> Fixed:
    """The row without its rejected completion, a fix with the slug `rejected-completion-<why>`."""
    return Fixed(replace(row, rejected=None), (f"rejected-completion-{why}",))


ROW_RULES: tuple[tuple[str, RowRule], ...] = (  # (slug, rule), in the order in which they are applied
    ("text", fix_texts),  # its slugs are those of text_fixes.py
    ("empty-prompt", require_prompt),
    ("empty-completion", require_completion),
    ("completion", normalize_completion),  # completion-fence, completion-label, completion-form, completion-space
    ("invalid-completion", require_valid_completion),  # or truncated-completion
    ("personal-data", handle_personal_data),  # fixes: pii-email, pii-phone, ...
    ("rejected-completion", require_preference),  # fixes: rejected-completion-empty, rejected-completion-equal
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


def _invalidated(before: str, after: str, answer: AnswerFormat) -> bool:
    return problem(before, answer) is None and problem(after, answer) is not None


def _mask_json(text: str) -> tuple[str, list[str]]:
    """Masks each text and integer inside a JSON answer, then the whole, as the endpoint's log does. An earlier or a
    rejected answer need not be JSON: then it is masked as a text."""
    kinds: list[str] = []
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return mask(text)

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

    value = masked_value(parsed)
    masked, more = mask(dump(value) if kinds else text)  # {"phone": 5550100} is recognized only with its key
    return masked, kinds + more

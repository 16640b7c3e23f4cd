"""One row through the rules that need no other row: fixed, its answer brought to its form and judged, masked.

    one = RowCleaner(Clean(), AnswerFormat(...))
    row, slugs = one.clean(row)        # RowDropped("invalid-completion", "intent: 'x' is not one of ...")

Pure but for a memory: most tasks have few different answers, so what was found of one is kept for the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from finetune_pipeline.clean.answers import Truncated, dump, normalize_answer, parse, problem
from finetune_pipeline.clean.pii import mask
from finetune_pipeline.clean.text_fixes import fix_completion, fix_prompt
from finetune_pipeline.config import AnswerFormat, Clean
from finetune_pipeline.records import Example, Message

_REMEMBERED = 20_000  # answers


class RowDropped(Exception):
    """The row has to go: `reason` is a slug, `detail` the evidence. `slugs` are the changes made before."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail
        self.slugs: list[str] = []


@dataclass(frozen=True, slots=True)
class _NormalizedCompletion:
    """An answer in its one form, the slugs of what was changed, and (reason, detail) of a refusal."""

    text: str
    slugs: tuple[str, ...]
    drop: tuple[str, str] | None = None


class RowCleaner:
    """The rules for one row after the other, for one declaration."""

    def __init__(self, rules: Clean, answer: AnswerFormat) -> None:
        self._rules, self._answer = rules, answer
        self._normalize: Callable[[str], _NormalizedCompletion] = lru_cache(_REMEMBERED)(
            lambda said: _normalize(said, answer)
        )
        self._mask_answer: Callable[[str], tuple[str, list[str]]] = lru_cache(_REMEMBERED)(
            _mask_json if answer.format == "json" else mask
        )

    def clean(self, row: Example) -> tuple[Example, list[str]]:
        """The row as it stays, and a slug for each change. Raises Refused, which holds the slugs up to there."""
        slugs: list[str] = []
        try:
            return self._masked(self._answered(self._fixed(row, slugs), slugs), slugs), slugs
        except RowDropped as dropped:
            dropped.slugs = slugs
            raise

    def _fixed(self, row: Example, slugs: list[str]) -> Example:
        messages: list[Message] = []
        for m in row.messages:
            text, applied = (
                fix_completion(m.content) if m.role == "assistant" else fix_prompt(m.content, self._rules.html)
            )
            slugs += applied
            messages.append(Message(m.role, text) if applied else m)
        fixed = replace(row, messages=tuple(messages)) if slugs else row
        if not fixed.prompt.strip():
            raise RowDropped("empty-prompt", "nothing is left of the question once it is fixed")
        return fixed

    def _answered(self, row: Example, slugs: list[str]) -> Example:
        """The row with its answer in the one form; refused when that is empty, breaks off, or breaks the format."""
        said = row.completion
        if not said.strip():
            raise RowDropped("empty-completion", "")
        normalized = self._normalize(said)
        slugs += normalized.slugs
        if normalized.drop is not None:
            raise RowDropped(*normalized.drop)
        return row if normalized.text == said else row.with_completion(normalized.text)

    def _masked(self, row: Example, slugs: list[str]) -> Example:
        if self._rules.personal_data == "keep":
            return row
        *asked, said = row.messages
        masked = [mask(m.content) for m in asked] + [self._mask_answer(said.content)]
        kinds = [kind for _, found in masked for kind in found]
        if not kinds:
            return row
        named = ", ".join(sorted(set(kinds)))
        if self._rules.personal_data == "drop":
            raise RowDropped("personal-data", named)
        if masked[-1][1] and problem(masked[-1][0], self._answer) is not None:
            # The schema asks for the address, say: masked the answer is wrong, and unmasked it is not ours to learn.
            raise RowDropped("personal-data", f"{named}; masked, the answer breaks its format")
        slugs += [f"pii-{kind.lower()}" for kind in kinds]
        return replace(
            row, messages=tuple(Message(m.role, text) for m, (text, _) in zip(row.messages, masked, strict=True))
        )


def _normalize(said: str, answer: AnswerFormat) -> _NormalizedCompletion:
    text, slugs = normalize_answer(said, answer)
    drop: tuple[str, str] | None = None
    try:
        parse(text, answer)
    except Truncated as complaint:
        drop = ("truncated-completion", str(complaint))
    except ValueError as complaint:
        drop = ("invalid-completion", str(complaint))
    return _NormalizedCompletion(text, tuple(slugs), drop)


def _mask_json(text: str) -> tuple[str, list[str]]:
    """Mask each text and number inside a JSON answer, then the whole, as the endpoint's log will."""
    kinds: list[str] = []

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            hidden, found = mask(str(value))
            kinds.extend(found)
            return hidden if found else value
        return value

    value = walk(json.loads(text))
    masked, more = mask(dump(value) if kinds else text)  # {"phone": 5550100} is one only together with its key
    return masked, kinds + more

"""Applies the rules for one row (row_rules.py), in their order.

cleaner = RowCleaner(Clean(), AnswerFormat(...))
row, slugs = cleaner.clean(row)        # or RowDropped("invalid-completion", "intent: 'x' is not one of ...")
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_pipeline.clean.row_rules import ROW_RULES, Dropped, Fixed, RowContext, RowRule
from finetune_pipeline.config import AnswerFormat, Clean
from finetune_pipeline.records import Example


class RowDropped(Exception):
    """The row is dropped: `reason` is a slug, `detail` the evidence, `slugs` the fixes made before."""

    def __init__(self, reason: str, detail: str, slugs: Sequence[str] = ()) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.slugs = reason, detail, list(slugs)


class RowCleaner:
    """The row rules with one declaration."""

    def __init__(self, clean: Clean, answer: AnswerFormat, rules: Sequence[tuple[str, RowRule]] = ROW_RULES) -> None:
        self._context, self._rules = RowContext(clean, answer), rules

    def clean(self, row: Example) -> tuple[Example, list[str]]:
        """The cleaned row, and a slug for each fix. Raises RowDropped."""
        slugs: list[str] = []
        for slug, rule in self._rules:
            result = rule(row, self._context)
            if isinstance(result, Dropped):
                raise RowDropped(result.reason or slug, result.detail, slugs)
            if isinstance(result, Fixed):
                row = result.row
                slugs += result.slugs
            elif result is not row and result != row:
                row = result
                slugs.append(slug)
        return row, slugs

"""The pure core of the stage: all rules on all rows, in order, with a ledger line for every change and every drop.

    fix → normalize_answer and validate the answer → personal data → length → exact duplicates, contradictions, near
    duplicates

Personal data goes before duplicates are looked for: rows that differ in a phone number only are one row afterwards.

What it is not: the rules for one row (row_cleaner.py), those for all (lengths.py, duplicates.py), or files (assets.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune_pipeline.clean import lengths
from finetune_pipeline.clean.duplicates import STAGE, without_duplicates
from finetune_pipeline.clean.row_cleaner import RowCleaner, RowDropped
from finetune_pipeline.config import AnswerFormat, Clean
from finetune_pipeline.records import Drop, Example, Fix, Json, Reporter, Silent

_ALIVE_EVERY = 500  # rows


@dataclass
class Cleaned:
    """The rows that stay, in order of input, and the ledger: len(kept) + len(drops) is the number of rows that came."""

    kept: list[Example] = field(default_factory=list)
    fixes: list[Fix] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    clusters: list[dict[str, str | float]] = field(default_factory=list)
    conflicts: list[dict[str, Json]] = field(default_factory=list)
    several_answers: tuple[int, int] = (0, 0)
    similarity: dict[str, Json] = field(default_factory=dict)
    lengths: dict[str, Json] = field(default_factory=dict)

    def summary(self) -> dict[str, Json]:
        """Figures for people."""
        return {
            "rows": len(self.kept) + len(self.drops),
            "kept": len(self.kept),
            "drops": len(self.drops),
            "dropped": dict(Counter(drop.reason for drop in self.drops).most_common()),
            "fixed": dict(Counter(fix.rule for fix in self.fixes).most_common()),
            "fixed_rows": len({fix.id for fix in self.fixes} & {row.id for row in self.kept}),
            "conflicts": len(self.conflicts),
            "several_answers": {"questions": self.several_answers[0], "rows": self.several_answers[1]},
            "similarity": self.similarity,
            "tokens": self.lengths,
        }


def clean(
    rows: Sequence[Example],
    rules: Clean,
    answer: AnswerFormat,
    system: str,
    count: lengths.Counter,
    report: Reporter | None = None,
) -> Cleaned:
    """Apply every rule. `system` is the task's system prompt and `count` counts tokens, both for the lengths.

    AssertionError when a row vanished: that is a fault of this code, never of the data.
    """
    report = report or Silent()
    result = Cleaned()
    cleaner = RowCleaner(rules, answer)
    fixed: list[Example] = []
    for number, row in enumerate(rows):
        if number % _ALIVE_EVERY == 0:
            report.alive()
            report.progress("cleaning rows", number, len(rows))
        fixed += _one(row, cleaner, result)
    report.progress("cleaning rows", len(rows), len(rows))
    fitting = _fitting(fixed, rules, system, count, result)
    report.alive()
    unique = without_duplicates([row for row, _ in fitting], rules, answer)
    result.kept, result.clusters = list(unique.kept), list(unique.clusters)
    result.drops += unique.drops
    result.conflicts, result.several_answers = list(unique.conflicts), unique.several_answers
    result.similarity = {"ignored_grams": unique.ignored_grams, "rows_of_templates": unique.rows_of_templates}
    kept = {row.id for row in result.kept}
    result.lengths = lengths.figures([length for row, length in fitting if row.id in kept])
    _reconcile(rows, result)
    return result


def _one(row: Example, cleaner: RowCleaner, result: Cleaned) -> list[Example]:
    """The row as it stays, or nothing; with its lines in the ledger."""
    kept: list[Example] = []
    try:
        one, slugs = cleaner.clean(row)
        kept = [one]
    except RowDropped as dropped:
        slugs = dropped.slugs
        result.drops.append(Drop(row.id, row.origin, STAGE, dropped.reason, dropped.detail))
    result.fixes += [Fix(row.id, row.origin, STAGE, slug, _times(n)) for slug, n in Counter(slugs).items()]
    return kept


def _times(count: int) -> str:
    return "" if count == 1 else f"{count} times"


def _fitting(
    rows: Sequence[Example], rules: Clean, system: str, count: lengths.Counter, result: Cleaned
) -> list[tuple[Example, lengths.Length]]:
    fitting = []
    for row, length in zip(rows, lengths.measure(rows, system, count), strict=True):
        bad = lengths.complaint(length, rules)
        if bad is None:
            fitting.append((row, length))
        else:
            result.drops.append(Drop(row.id, row.origin, STAGE, *bad))
    return fitting


def _reconcile(rows: Sequence[Example], result: Cleaned) -> None:
    came = Counter(row.id for row in rows)
    went = Counter(row.id for row in result.kept) + Counter(drop.id for drop in result.drops)
    if came != went:
        lost = list(((came - went) + (went - came)).elements())[:5]
        raise AssertionError(f"{came.total()} rows came in and {went.total()} went out; first differing ids: {lost}")

"""Applies all cleaning rules to all rows, with a line in the ledger for every fix and every drop.

    text fixes → normalize and validate the completion → personal data → length → exact duplicates, contradictions,
    near duplicates

A rejected completion gets the same fixes; where it is no use (empty, equal, too long), it is removed and the row stays.

Personal data is masked before duplicates are searched, so that rows which differ only in a phone number are
duplicates.

    result = clean(rows, task.clean, task.answer, task.prompt.system, count_tokens)
    len(result.kept), result.drops[0]      # 8412, Drop("77ab…", "shop.csv:31", "clean", "exact-duplicate", "of 9f1c…")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from finetune_pipeline.clean import lengths
from finetune_pipeline.clean.contradictions import STAGE
from finetune_pipeline.clean.duplicates import (
    Conflict,
    DuplicatePair,
    SeveralCompletions,
    SimilarityFigures,
    without_duplicates,
)
from finetune_pipeline.clean.row_cleaner import RowCleaner, RowDropped
from finetune_pipeline.clean.row_rules import ROW_RULES, RowRule, without_rejected
from finetune_pipeline.config import AnswerFormat, Clean
from finetune_pipeline.records import SILENT, Drop, Example, Fix, Json, Reporter

_ALIVE_EVERY = 500  # rows


@dataclass
class Cleaned:
    """The kept rows, in order of input, and the ledger: len(kept) + len(drops) is the number of input rows."""

    kept: list[Example] = field(default_factory=list)
    fixes: list[Fix] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    pairs: list[DuplicatePair] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    several_completions: SeveralCompletions = field(default_factory=SeveralCompletions)
    similarity: SimilarityFigures = field(default_factory=SimilarityFigures)
    lengths: lengths.LengthQuantiles = field(default_factory=lengths.LengthQuantiles)

    @property
    def drops_by_reason(self) -> dict[str, int]:
        """The number of drops for each reason, the most frequent first."""
        return dict(Counter(drop.reason for drop in self.drops).most_common())

    def summary(self) -> dict[str, Json]:
        """The figures of the artifact's summary."""
        return {
            "rows": len(self.kept) + len(self.drops),
            "kept": len(self.kept),
            "pairs": sum(row.rejected is not None for row in self.kept),
            "drops": len(self.drops),
            "dropped": self.drops_by_reason,
            "fixed": dict(Counter(fix.rule for fix in self.fixes).most_common()),
            "fixed_rows": len({fix.id for fix in self.fixes} & {row.id for row in self.kept}),
            "conflicts": len(self.conflicts),
            "several_completions": asdict(self.several_completions),
            "similarity": asdict(self.similarity),
            "tokens": asdict(self.lengths),
        }


def clean(
    rows: Sequence[Example],
    rules: Clean,
    answer: AnswerFormat,
    system: str,
    count_tokens: lengths.TokenCounter,
    report: Reporter = SILENT,
    row_rules: Sequence[tuple[str, RowRule]] = ROW_RULES,
) -> Cleaned:
    """Apply every rule. `system` is the task's system prompt and `count_tokens` counts tokens, both for the lengths.

    AssertionError when the kept and dropped rows are not exactly the input rows: a bug in this code, never in the data.
    """
    result = Cleaned()
    fixed = _clean_rows(rows, RowCleaner(rules, answer, row_rules), result, report)
    within = _within_bounds(fixed, rules, system, count_tokens, result)
    report.alive()
    unique = without_duplicates([row for row, _ in within], rules, answer)
    result.kept, result.pairs, result.conflicts = list(unique.kept), list(unique.pairs), list(unique.conflicts)
    result.drops += unique.drops
    result.several_completions, result.similarity = unique.several_completions, unique.similarity
    kept = {row.id for row in result.kept}
    result.lengths = lengths.length_quantiles([length for row, length in within if row.id in kept])
    _reconcile(rows, result)
    return result


def _clean_rows(rows: Sequence[Example], cleaner: RowCleaner, result: Cleaned, report: Reporter) -> list[Example]:
    """The rows that the row rules keep; fixes and drops are added to the ledger of `result`."""
    kept: list[Example] = []
    for number, row in enumerate(rows):
        if number % _ALIVE_EVERY == 0:
            report.alive()
            report.progress("cleaning rows", number, len(rows))
        try:
            cleaned, slugs = cleaner.clean(row)
            kept.append(cleaned)
        except RowDropped as dropped:
            slugs = dropped.slugs
            result.drops.append(Drop(row.id, row.origin, STAGE, dropped.reason, dropped.detail))
        result.fixes += [Fix(row.id, row.origin, STAGE, slug, _times(n)) for slug, n in Counter(slugs).items()]
    report.progress("cleaning rows", len(rows), len(rows))
    return kept


def _times(count: int) -> str:
    return "" if count == 1 else f"{count} times"


def _within_bounds(
    rows: Sequence[Example], rules: Clean, system: str, count_tokens: lengths.TokenCounter, result: Cleaned
) -> list[tuple[Example, lengths.Length]]:
    within = []
    for row, length in zip(rows, lengths.measure(rows, system, count_tokens), strict=True):
        violation = lengths.out_of_bounds(length, rules)
        if violation is None:
            within.append((_with_fitting_pair(row, length, rules, result), length))
        else:
            result.drops.append(Drop(row.id, row.origin, STAGE, *violation))
    return within


def _with_fitting_pair(row: Example, length: lengths.Length, rules: Clean, result: Cleaned) -> Example:
    """The row, without a rejected completion that makes it longer than the bound."""
    if length.rejected <= rules.max_tokens:
        return row
    removed = without_rejected(row, "too-long")
    detail = f"{length.rejected} tokens with the system prompt; at most {rules.max_tokens} are allowed"
    result.fixes += [Fix(row.id, row.origin, STAGE, slug, detail) for slug in removed.slugs]
    return removed.row


def _reconcile(rows: Sequence[Example], result: Cleaned) -> None:
    inputs = Counter(row.id for row in rows)
    outputs = Counter(row.id for row in result.kept) + Counter(drop.id for drop in result.drops)
    if inputs != outputs:
        differing = list(((inputs - outputs) + (outputs - inputs)).elements())[:5]
        raise AssertionError(
            f"{inputs.total()} rows in, {outputs.total()} kept or dropped; first differing ids: {differing}"
        )

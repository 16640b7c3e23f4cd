"""Check a finished split: no overlap between test and the rows that train. Pure.

    evaluate_split(overlaps, splits, rules, missing_slices, content_hash, similarity) -> Verdict
    "231 train, 24 validation, 45 test; no overlap"

Only an overlap fails the gate. Few test rows, another share than declared and slices without test rows are warnings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from finetune_pipeline.config import Split
from finetune_pipeline.records import Check, Example, Verdict
from finetune_pipeline.split.leakage import Overlap, RowSimilarity
from finetune_pipeline.split.quotas import SPLITS, SplitName
from finetune_pipeline.statistics.formatting import listed, percent

FEW_TEST_ROWS = 30  # with these, a rise from 70 % to 90 % is missed two times in three (exact McNemar, two-sided 5 %)
LISTED = 100  # overlaps that the figures list


@dataclass(frozen=True, slots=True)
class SplitFigures:
    """The figures of the verdict: rows per split, overlapping pairs (the first 100 in full), the share of 5-grams that
    many rows share and that were ignored (0 to 1), and the numbers of rows that come from one template, by the
    similarity that they require instead of the declared one ({"0.7": 310})."""

    train: int
    validation: int
    test: int
    overlaps: list[Overlap]
    overlap_pairs: int
    ignored_grams: float
    template_rows_by_similarity: dict[str, int]


def evaluate_split(
    found: Sequence[Overlap],
    splits: Mapping[SplitName, Sequence[Example]],
    rules: Split,
    missing_slices: Sequence[str],
    about: str,
    similarity: RowSimilarity,
) -> Verdict:
    """The verdict about the split of the rows with content hash `about`. `found`: overlaps of test with the other
    splits; `missing_slices`: slices without test rows."""
    checks = (
        Check("no overlap between test and training", not found, "no pair", _pairs(found), value=len(found)),
        *_size_checks(len(splits["test"]), sum(len(rows) for rows in splits.values()), rules),
        Check(
            "slices present in test",
            not missing_slices,
            "all",
            listed(missing_slices) or "all",
            "warning",
            len(missing_slices),
        ),
        _template_check(similarity, rules),
    )
    counts = ", ".join(f"{len(splits[name])} {name}" for name in SPLITS)
    summary = f"{counts}; no overlap" if not found else f"{counts}; {len(found)} pairs overlap: {_pairs(found)}"
    figures = SplitFigures(
        train=len(splits["train"]),
        validation=len(splits["validation"]),
        test=len(splits["test"]),
        overlaps=list(found[:LISTED]),
        overlap_pairs=len(found),
        ignored_grams=similarity.texts.ignored,
        template_rows_by_similarity=similarity.texts.raised(),
    )
    return Verdict("data_split", not found, about, summary, checks, asdict(figures))


def _size_checks(test: int, total: int, rules: Split) -> tuple[Check, Check]:
    share = test / total if total else 0.0
    return (
        Check("test rows", test >= FEW_TEST_ROWS, f"at least {FEW_TEST_ROWS}", str(test), "warning", test),
        Check(
            "share of test rows",
            abs(share - rules.test) <= max(0.02, 0.25 * rules.test),
            f"about {percent(rules.test)}; earlier assignments stay, another split.seed draws a new test set",
            percent(share),
            "warning",
            share,
        ),
    )


def _template_check(similarity: RowSimilarity, rules: Split) -> Check:
    """A warning where rows of one template count as near duplicates only from a higher similarity than declared."""
    raised = similarity.texts.raised()
    observed = "; ".join(f"{count} rows of a template only from {least}" for least, count in raised.items())
    return Check(
        "near duplicates kept in one split",
        not raised,
        f"from similarity {rules.near_duplicate_threshold:g}",
        observed or "all rows",
        "warning",
    )


def _pairs(found: Sequence[Overlap]) -> str:
    pairs = [f"{o.test} (test) and {o.other}: {o.kind}, {o.similarity:.2f}" for o in found]
    return listed(pairs, "; ") or "none"

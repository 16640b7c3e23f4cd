"""Account for every raw row: train, validation, test, or dropped by a stage for a reason. DataError if counts differ.

    account(raw_ids, {"train": […], "validation": […], "test": […]}, drops)
    → Account(raw=912, splits={"train": 520, …}, dropped={"clean": {"html": 14}, …})

Ids are counted, not collected in sets: a row that a source holds twice has two outcomes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from finetune_pipeline.errors import DataError
from finetune_pipeline.records import Artifact, Drop
from finetune_pipeline.statistics.formatting import listed


@dataclass(frozen=True, slots=True)
class Account:
    """Counts of rows: `raw` rows read, `splits` the rows in use by split, `dropped` the others by stage and reason."""

    raw: int
    splits: Mapping[str, int]
    dropped: Mapping[str, Mapping[str, int]]

    @property
    def dropped_rows(self) -> int:
        return self.dropped_by_reason.total()

    @property
    def dropped_by_reason(self) -> Counter[str]:
        """The counts over all stages: two of them may drop rows for the same reason."""
        counts: Counter[str] = Counter()
        for reasons in self.dropped.values():
            counts.update(reasons)
        return counts


def account_of(split: Artifact) -> Account:
    """The account in a split's accounting.json. StorageError when the file is missing or damaged."""
    with split.reading("accounting.json"):
        return Account(**split.json("accounting.json"))


def account(raw: Iterable[str], splits: Mapping[str, Iterable[str]], drops: Iterable[Drop]) -> Account:
    """The outcomes of all raw ids, counted. `raw` includes the rows that ingest could not read; their drops are in
    `drops`.

    DataError names the rows that have no outcome, two outcomes, or an outcome without a raw row.
    """
    dropped = list(drops)
    used = {split: list(ids) for split, ids in splits.items()}
    before = Counter(raw)
    after = Counter(id_ for ids in used.values() for id_ in ids) + Counter(drop.id for drop in dropped)
    _raise_if_any(before - after, "have no outcome: no stage kept or dropped them")
    _raise_if_any(after - before, "have too many outcomes: they were kept and dropped, or are in no source")
    by_stage: dict[str, Counter[str]] = defaultdict(Counter)
    for drop in dropped:
        by_stage[drop.stage][drop.reason] += 1
    counts = {stage: dict(sorted(reasons.items())) for stage, reasons in sorted(by_stage.items())}
    return Account(before.total(), {split: len(ids) for split, ids in used.items()}, counts)


def _raise_if_any(rows: Counter[str], problem: str) -> None:
    if rows:
        raise DataError(
            f"the rows do not reconcile: {rows.total()} rows {problem} ({listed(sorted(rows))})",
            "run again from raw_examples; if the error stays, report it: a stage lost or added rows without a record",
        )

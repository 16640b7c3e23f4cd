"""The account of every raw row: trained, validation, test, or dropped by a stage for a reason. It reconciles or fails.

    account(raw, sides, drops) -> Account(raw=912, sides={"train": 520, ...}, dropped={"clean": {"html": 14}, ...})

Ids are counted, not collected in sets: where a source holds the same row twice, both have a fate of their own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from finetune_pipeline.errors import DataError
from finetune_pipeline.records import Drop

NAMED = 5


@dataclass(frozen=True, slots=True)
class Account:
    """`raw` rows in; `splits` counts those in use by side, `dropped` the others by stage and reason."""

    raw: int
    splits: Mapping[str, int]
    dropped: Mapping[str, Mapping[str, int]]

    @property
    def dropped_rows(self) -> int:
        return sum(sum(reasons.values()) for reasons in self.dropped.values())


def account(raw: Iterable[str], splits: Mapping[str, Iterable[str]], drops: Iterable[Drop]) -> Account:
    """Count the fate of every raw id (`raw` includes the rows that ingest could not read; their drops are in `drops`).

    DataError when a raw row has no fate, has two, or a fate belongs to no raw row: it names the rows.
    """
    gone = list(drops)
    used = {split: list(ids) for split, ids in splits.items()}
    before = Counter(raw)
    after = Counter(id_ for ids in used.values() for id_ in ids) + Counter(drop.id for drop in gone)
    _refuse("have no fate: no stage kept or dropped them", before - after)
    _refuse("have more fates than there are raw rows: they were kept and dropped, or are in no source", after - before)
    by_stage: dict[str, Counter[str]] = defaultdict(Counter)
    for drop in gone:
        by_stage[drop.stage][drop.reason] += 1
    counts = {stage: dict(sorted(reasons.items())) for stage, reasons in sorted(by_stage.items())}
    return Account(before.total(), {split: len(ids) for split, ids in used.items()}, counts)


def _refuse(what: str, rows: Counter[str]) -> None:
    if rows:
        ids = sorted(rows)
        more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        raise DataError(
            f"the rows do not reconcile: {rows.total()} {what} ({', '.join(ids[:NAMED])}{more})",
            "a stage lost or made rows without saying so; run again from raw_examples, and report it if it stays",
        )

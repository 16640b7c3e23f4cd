"""Holdout reuse: how many adapters were evaluated on the same test set.

    10_release/decisions/<adapter>-<rules hash>-<test set>.json
    {"at": "2026-01-05T10:00:00+00:00", "adapter": "9be0…", "rules_hash": "c01f…", "evaluation": "51aa…",
     "outcome": "PROMOTE", "ids": ["0a1b…", …]}

    count_reuse(recorded_uses(store), HoldoutUse("9be0…", "c01f…", ids))       # HoldoutReuse(adapters=3, rule_sets=1)

Several adapters tried on one test set are several chances of a lucky promotion, and so is one adapter under several
sets of rules. Both are counted; deleting an artifact does not lower the count. The rows' ids are stored, not only their
hash, because a test set with a few added rows is still mostly the old one: two test sets count as the same when the
later one shares at least half of its rows with the earlier one. One small file per decision, so that it works on an
object store as well.

The count does not block a release; it is a warning (criteria.limited_reuse).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

from upath import UPath

from finetune_pipeline.config import Release
from finetune_pipeline.errors import reading
from finetune_pipeline.records import Decision, content_id, dumps
from finetune_pipeline.store import TaskStore, write_atomic

SAME = 0.5  # share of a test set's rows that an earlier one has to contain to count as the same


@dataclass(frozen=True, slots=True)
class HoldoutUse:
    """One decision: which adapter (content hash), by which rules (hash), on which test rows (ids)."""

    adapter: str
    rules_hash: str
    ids: frozenset[str]

    @property
    def name(self) -> str:
        return f"{self.adapter}-{self.rules_hash}-{content_id(*sorted(self.ids))}"


class UseRecord(TypedDict):
    """The file of one decision. `at`: UTC, ISO 8601; `evaluation`: content hash; `ids`: the test rows."""

    at: str
    adapter: str
    rules_hash: str
    evaluation: str
    outcome: str
    ids: list[str]


@dataclass(frozen=True, slots=True)
class HoldoutReuse:
    """How many adapters were evaluated on a test set, the current one included, and by how many sets of rules the
    current adapter was evaluated, the current ones included."""

    adapters: int = 1
    rule_sets: int = 1


def rules_hash(rules: Release) -> str:
    return content_id(json.dumps(rules.model_dump(mode="json"), sort_keys=True))


def count_reuse(past: Iterable[HoldoutUse], now: HoldoutUse) -> HoldoutReuse:
    """The decisions on (mostly) these rows, `now` included: each adapter once, and each set of rules for this adapter
    once."""
    same = [use for use in past if len(use.ids & now.ids) >= SAME * len(now.ids)]
    pairs = {(use.adapter, use.rules_hash) for use in (*same, now)}
    adapters = {adapter for adapter, _ in pairs}
    return HoldoutReuse(len(adapters), sum(adapter == now.adapter for adapter, _ in pairs))


# store ------------------------------------------------------------------------------------------------------


def recorded_uses(store: TaskStore) -> list[HoldoutUse]:
    """Every decision of this task, on any test set. StorageError when a file is damaged."""
    folder = _folder(store)
    with reading(folder):
        paths = sorted(folder.glob("*.json"), key=str) if folder.exists() else []
    return [_read(path) for path in paths]


def _read(path: UPath) -> HoldoutUse:
    with reading(path, f"restore {path} from a backup; without it the count of adapters on this test set is too low"):
        row: UseRecord = json.loads(path.read_text(encoding="utf-8"))
        return HoldoutUse(row["adapter"], row["rules_hash"], frozenset(row["ids"]))


def record_use(store: TaskStore, use: HoldoutUse, decision: Decision, at: str) -> None:
    """Store a decision; the same one again keeps the file of the first time."""
    path = _folder(store) / f"{use.name}.json"
    if not path.exists():
        row: UseRecord = {
            "at": at,
            "adapter": use.adapter,
            "rules_hash": use.rules_hash,
            "evaluation": decision.evaluation,
            "outcome": decision.outcome,
            "ids": sorted(use.ids),
        }
        write_atomic(path, dumps(row))


def _folder(store: TaskStore) -> UPath:
    return store.stage_folder("release") / "decisions"

"""How often a test set has decided: each look at it uses it up a little, whoever looks.

    10_release/decisions/<adapter>-<rules>-<test set>.json
    {"at": "2026-01-05T10:00:00+00:00", "adapter": "9be0…", "rules": "c01f…", "evaluation": "51aa…",
     "outcome": "PROMOTE", "ids": ["0a1b…", …]}

Several adapters tried on one test set are several chances to be lucky; one adapter judged by several sets of rules is
the same in disguise. Both are counted, and deleting an artifact does not make them forgotten. The rows' ids are kept,
not only their hash: a test set to which a few rows were added is the old one still. It is the same one while at least
half of its rows have decided before. One small file a decision, so that it works on an object store too.

What it is not: a gate. It warns (criteria.fresh_test_set); how many looks are too many is for people to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from upath import UPath

from finetune_pipeline.config import Release
from finetune_pipeline.errors import reading
from finetune_pipeline.records import Decision, content_id, dumps
from finetune_pipeline.release.criteria import Reuse
from finetune_pipeline.store import TaskStore, write_atomic

SAME = 0.5  # share of a test set's rows that another one has to hold to count as the same


@dataclass(frozen=True, slots=True)
class HoldoutUse:
    """One decision: which adapter (content hash), by which rules (hash), on which test rows (ids)."""

    adapter: str
    rules: str
    ids: frozenset[str]

    @property
    def name(self) -> str:
        return f"{self.adapter}-{self.rules}-{content_id(*sorted(self.ids))}"


def rules_hash(rules: Release) -> str:
    return content_id(json.dumps(rules.model_dump(mode="json"), sort_keys=True))


def count(past: Iterable[HoldoutUse], now: HoldoutUse) -> Reuse:
    """The looks so far at (mostly) these rows, and the one about to happen: each adapter once, and each set of rules
    for this adapter once."""
    seen = [use for use in past if len(use.ids & now.ids) >= SAME * len(now.ids)]
    looks = {(use.adapter, use.rules) for use in (*seen, now)}
    return Reuse(len({adapter for adapter, _ in looks}), sum(adapter == now.adapter for adapter, _ in looks))


# edges ------------------------------------------------------------------------------------------------------


def recall(store: TaskStore) -> list[HoldoutUse]:
    """Every decision of this task, on any test set."""
    folder = _folder(store)
    with reading(folder):
        paths = sorted(folder.glob("*.json"), key=str) if folder.exists() else []
    return [_use(path) for path in paths]


def _use(path: UPath) -> HoldoutUse:
    with reading(path, f"restore {path} from a backup; without it this test set seems to have decided less often"):
        row = json.loads(path.read_text(encoding="utf-8"))
        return HoldoutUse(row["adapter"], row["rules"], frozenset(row["ids"]))


def remember(store: TaskStore, use: HoldoutUse, decision: Decision, at: str) -> None:
    """Note a decision; the same look is noted once, with its first time."""
    path = _folder(store) / f"{use.name}.json"
    if not path.exists():
        row = {"at": at, "adapter": use.adapter, "rules": use.rules, "evaluation": decision.evaluation}
        write_atomic(path, dumps({**row, "outcome": decision.outcome, "ids": sorted(use.ids)}))


def _folder(store: TaskStore) -> UPath:
    return store.stage_folder("release") / "decisions"

"""The story of one task, as values for its page: rows in, kept and dropped; gates; comparison; decision; service.

    counts(chain) -> Counts(read=877, kept=704, kept_as="training, validation and test rows", dropped=(...))
    comparison(report) -> rows with an exact 95 % interval each

Everything is read from the artifacts' own files; nothing is computed here that a report does not say, but the interval
of a share (Clopper and Pearson's, as everywhere in the project) where a report gives none.

What it is not: where the task stands (task_status.py), or HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.desk import ledger_rows
from finetune_pipeline.desk.labels import first_up, spelled, together, variant
from finetune_pipeline.desk.ledger_rows import count
from finetune_pipeline.errors import StorageError
from finetune_pipeline.records import Artifact, Check
from finetune_pipeline.statistics.formatting import percent
from finetune_pipeline.statistics.proportion import clopper_pearson

SPLITS = ("train", "validation", "test")
REPORTS: Mapping[str, tuple[str, str]] = {
    "suitability_report": ("report.md", "Is tuning worth it?"),
    "baseline_report": ("report.html", "What a prompt alone reaches"),
    "eval_report": ("report.html", "Evaluation"),
    "release_decision": ("decision.md", "Decision"),
    "registered_model": ("MODEL_CARD.md", "Model card"),
    "traffic_report": ("report.html", "Traffic"),
}


@dataclass(frozen=True, slots=True)
class Dropped:
    asset: str
    reason: str
    rows: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows in = kept + dropped, or the page says that they are not."""

    read: int
    kept: int
    kept_as: str
    dropped: tuple[Dropped, ...]
    fixed: int
    splits: tuple[tuple[str, int], ...]

    @property
    def lost(self) -> int:
        return sum(each.rows for each in self.dropped)

    @property
    def reconciles(self) -> bool:
        return self.read == self.kept + self.lost


@dataclass(frozen=True, slots=True)
class CheckRow:
    """A check for people: `title` in English, and how it went: good, warning or bad."""

    title: str
    expected: str
    observed: str
    tone: str


@dataclass(frozen=True, slots=True)
class VariantRow:
    """One model or prompt on the test rows. Shares are 0 to 1; `low` and `high` bound `exact` with 95 % confidence."""

    name: str
    title: str
    rows: int
    exact: float
    low: float
    high: float
    valid: float | None
    seconds: float | None
    best_prompted: bool


def counts(stages: Mapping[str, Artifact]) -> Counts | None:
    """None where nothing was read yet."""
    raw = stages.get("raw_examples")
    if raw is None:
        return None
    drops = ledger_rows.tally(stages, "dropped")
    dropped = tuple(Dropped(asset, reason, rows) for (asset, reason), rows in drops.most_common())
    last, splits = list(stages)[-1], _splits(stages)
    kept = sum(rows for _, rows in splits) if splits else count(stages[last], "examples.jsonl")
    kept_as = {
        "raw_examples": "read",
        "clean_examples": "left after cleaning",
        "expert_review": "left after the review",
    }
    read = count(raw, "examples.jsonl") + count(raw, "drops.jsonl")
    fixed = len({entry.id for entry in ledger_rows.entries(stages, "fixed")})
    return Counts(read, kept, kept_as.get(last, "used for training, validation and test"), dropped, fixed, splits)


def _splits(stages: Mapping[str, Artifact]) -> tuple[tuple[str, int], ...]:
    split = stages.get("data_split")
    return tuple((name, count(split, f"{name}.jsonl")) for name in SPLITS) if split else ()


def by_reason(dropped: Sequence[Dropped]) -> list[tuple[str, int]]:
    """Reasons over all stages, the most frequent first."""
    together: Counter[str] = Counter()
    for each in dropped:
        together[each.reason] += each.rows
    return together.most_common()


def checks(given: Sequence[Check]) -> list[CheckRow]:
    """Failed errors first, then warnings, then what holds. One with a program's name is called by its expectation."""
    order = {"bad": 0, "warning": 1, "good": 2}
    rows = [_check(each) for each in given]
    return sorted(rows, key=lambda row: order[row.tone])


def _check(check: Check) -> CheckRow:
    tone = "good" if check.passed else "warning" if check.severity == "warning" else "bad"
    expected, observed = together(check.expected), together(check.observed)
    if _technical(check.name) and expected:
        return CheckRow(first_up(expected), "", observed, tone)
    return CheckRow(spelled(check.name) if _technical(check.name) else first_up(check.name), expected, observed, tone)


def _technical(name: str) -> bool:
    """A column's name ("row_ok") or an expectation's ("table: row count to be between")."""
    return ":" in name or ("_" in name and " " not in name)


def comparison(report: Mapping[str, Any]) -> list[VariantRow]:
    """The variants of a baseline or evaluation report, the best last: that is where one looks."""
    best = report.get("best_prompted")
    try:
        rows = [_variant(name, figures, name == best) for name, figures in report["variants"].items()]
    except (KeyError, TypeError) as error:
        raise StorageError(f"report.json has no figure {error}", "materialize the report again") from error
    return sorted(rows, key=lambda row: (row.name == "tuned", row.exact))


def _variant(name: str, figures: Mapping[str, Any], best: bool) -> VariantRow:
    rows, exact = int(figures["rows"]), float(figures["exact"])
    given = figures.get("interval") or clopper_pearson(round(exact * rows), rows, 0.95)
    return VariantRow(
        name,
        variant(name),
        rows,
        exact,
        float(given[0]),
        float(given[1]),
        figures.get("valid"),
        figures.get("seconds_per_answer"),
        best,
    )


def facts(summary: Mapping[str, Any], leave_out: Sequence[str] = ()) -> list[tuple[str, str]]:
    """The plain figures of a summary as (name, value) in words; nested ones stand in the reports."""
    shown = [(name, value) for name, value in summary.items() if name not in leave_out]
    return [(spelled(name), plain(name, value)) for name, value in shown if isinstance(value, bool | int | float | str)]


def plain(name: str, value: bool | float | str) -> str:
    """A figure for people: yes/no, shares as percent, large numbers with thousands apart."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value or "–"
    if isinstance(value, float) and 0 <= value <= 1 and _is_share(name):
        return percent(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"


def _is_share(name: str) -> bool:
    return any(word in name for word in ("share", "rate", "exact", "valid", "bound", "accuracy", "parity", "invalid"))


def reports(artifacts: Mapping[str, Artifact | None]) -> list[tuple[str, str]]:
    """(asset, title) of every report that is there to read."""
    return [
        (asset, title)
        for asset, (file, title) in REPORTS.items()
        if (artifact := artifacts.get(asset)) is not None and file in artifact.manifest["files"]
    ]

"""The values of the page of one task: row counts, checks of gates, comparison of variants, figures.

    counts(chain)          Counts(read=877, kept=704, kept_as="used for training, validation and test", dropped=(...))
    comparison(report)     [VariantRow("few_shot", ..., exact=0.42, low=0.34, high=0.51), ...]

All figures are read from the files of the artifacts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from finetune_pipeline.baseline.figures import VariantFigures
from finetune_pipeline.baseline.report import BaselineReport
from finetune_pipeline.baseline.variants import TUNED, title
from finetune_pipeline.desk import ledger_rows
from finetune_pipeline.desk.labels import capitalized, check_title, label, nonbreaking, number, spelled
from finetune_pipeline.desk.ledger_rows import count
from finetune_pipeline.errors import StorageError
from finetune_pipeline.quality.losses import UNREADABLE
from finetune_pipeline.records import Artifact, Check
from finetune_pipeline.split.quotas import SPLITS
from finetune_pipeline.statistics.formatting import percent, percent_down

Tone: TypeAlias = Literal["good", "warning", "bad"]
REPORTS: Mapping[str, tuple[str, str]] = {
    "suitability_report": ("report.md", label("suitability_report")),
    "baseline_report": ("report.html", label("baseline_report")),
    "training_plan": ("report.html", label("training_plan")),
    "training_search": ("report.html", label("training_search")),
    "adapter": ("training.html", "Training"),
    "eval_report": ("report.html", label("eval_report")),
    "release_decision": ("decision.md", label("release_decision")),
    "registered_model": ("MODEL_CARD.md", "Model card"),
    "traffic_report": ("report.html", label("traffic_report")),
}
# Further pages of an asset's report: file -> title
PAGES: Mapping[str, Mapping[str, str]] = {
    "training_plan": {"tokens.html": "What will be learned, token by token"},
    "adapter": {"tokens.html": "What is learned, token by token"},
}


@dataclass(frozen=True, slots=True)
class DroppedRows:
    """The number of rows that a stage dropped for a reason."""

    asset: str
    reason: str
    rows: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of rows: read = kept + dropped, else `reconciles` is false."""

    read: int
    kept: int
    kept_as: str
    dropped: tuple[DroppedRows, ...]
    fixed: int
    splits: tuple[tuple[str, int], ...]

    @property
    def dropped_rows(self) -> int:
        """The number of dropped rows."""
        return sum(group.rows for group in self.dropped)

    @property
    def reconciles(self) -> bool:
        """Whether every row that was read is kept or dropped."""
        return self.read == self.kept + self.dropped_rows


@dataclass(frozen=True, slots=True)
class CheckRow:
    """A check of a verdict. `tone`: good (passed), warning or bad (failed)."""

    title: str
    expected: str
    observed: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class VariantRow:
    """One variant on the test rows. Shares are 0 to 1; `low` and `high` are the 95 % interval of `exact`."""

    name: str
    title: str
    rows: int
    exact: float
    low: float
    high: float
    valid: float
    best_prompted: bool


def counts(artifacts: Mapping[str, Artifact]) -> Counts | None:
    """None before rows are read."""
    raw = artifacts.get("raw_examples")
    if raw is None:
        return None
    drops = ledger_rows.tally(artifacts, "dropped")
    dropped = tuple(DroppedRows(asset, reason, rows) for (asset, reason), rows in drops.most_common())
    last, splits = list(artifacts)[-1], _splits(artifacts)
    kept = sum(rows for _, rows in splits) if splits else count(artifacts[last], "examples.jsonl")
    kept_as = {
        "raw_examples": "read",
        "clean_examples": "kept after cleaning",
        "expert_review": "kept after the review",
    }
    read = count(raw, "examples.jsonl") + count(raw, "drops.jsonl")
    fixed = len({entry.id for entry in ledger_rows.entries(artifacts, "fixed")})
    return Counts(read, kept, kept_as.get(last, "used for training, validation and test"), dropped, fixed, splits)


def _splits(artifacts: Mapping[str, Artifact]) -> tuple[tuple[str, int], ...]:
    split = artifacts.get("data_split")
    return tuple((name, count(split, f"{name}.jsonl")) for name in SPLITS) if split else ()


def by_reason(dropped: Sequence[DroppedRows]) -> list[tuple[str, int]]:
    """(reason, rows) over all assets, the most frequent first."""
    total: Counter[str] = Counter()
    for group in dropped:
        total[group.reason] += group.rows
    return total.most_common()


def check_rows(checks: Sequence[Check]) -> list[CheckRow]:
    """Failed errors first, then warnings, then passed checks. A check with a technical name is shown by its
    expectation."""
    order: Mapping[Tone, int] = {"bad": 0, "warning": 1, "good": 2}
    rows = [_check_row(check) for check in checks]
    return sorted(rows, key=lambda row: order[row.tone])


def _check_row(check: Check) -> CheckRow:
    tone: Tone = "good" if check.passed else "warning" if check.severity == "warning" else "bad"
    expected, observed = nonbreaking(check.expected), nonbreaking(check.observed)
    if _is_technical(check.name) and expected:
        return CheckRow(capitalized(expected), "", observed, tone)
    name = spelled(check.name) if _is_technical(check.name) else check_title(check.name)
    return CheckRow(name, expected, observed, tone)


def _is_technical(name: str) -> bool:
    """A rule's name ("row_ok"), a declared expectation's ("declared:0:expect_table_row_count_to_be_between"), or that
    of a source ("unreadable: shop")."""
    return name.startswith(("declared:", UNREADABLE)) or ("_" in name and " " not in name)


def comparison(report: BaselineReport) -> list[VariantRow]:
    """The variants of a baseline or evaluation report by `exact`; the tuned model last. StorageError for a missing
    figure."""
    try:
        best = report["best_prompted"]
        rows = [_variant_row(name, figures, name == best) for name, figures in report["variants"].items()]
    except (KeyError, TypeError) as error:
        raise StorageError(f"report.json has no figure {error}", "materialize the report again") from error
    return sorted(rows, key=lambda row: (row.name == TUNED, row.exact))


def _variant_row(name: str, figures: VariantFigures, best: bool) -> VariantRow:
    low, high = figures["interval"]
    return VariantRow(name, title(name), figures["rows"], figures["exact"], low, high, figures["valid"], best)


def facts(summary: Mapping[str, Any], leave_out: Sequence[str] = ()) -> list[tuple[str, str]]:
    """The plain figures of a summary as (title, text); nested ones are in the reports."""
    shown = [(name, value) for name, value in summary.items() if name not in leave_out]
    return [(spelled(name), plain(name, value)) for name, value in shown if isinstance(value, bool | int | float | str)]


def plain(name: str, value: bool | float | str) -> str:
    """A figure as text: yes or no, shares in percent, numbers with thousands separators."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value or "–"
    if name == "parity":  # compared with a minimum
        return percent_down(value)
    return percent(value) if name.endswith("_share") else number(value)


def reports(artifacts: Mapping[str, Artifact | None]) -> list[tuple[str, str]]:
    """The address below `reports/` and the title of every report that exists."""
    shown = [(asset, file, asset, title) for asset, (file, title) in REPORTS.items()]
    for asset, pages in PAGES.items():
        shown += [(asset, file, f"{asset}?page={file}", title) for file, title in pages.items()]
    order = list(REPORTS)
    return [
        (address, title)
        for asset, file, address, title in sorted(shown, key=lambda each: order.index(each[0]))
        if (artifact := artifacts.get(asset)) is not None and file in artifact.manifest["files"]
    ]

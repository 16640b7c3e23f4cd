"""The parts of decision.json, and what one criterion found. Types only.

    {"outcome": "PROMOTE", "adapter": "9be0…", "evaluation": "51aa…", "summary": "…", "checks": [...],
     "figures": {"rows": 135, "best_prompted": "few_shot", "variants": {"tuned": {"rows": 135, "exact": 112}, ...},
                 "gain": {"over": "few_shot", "difference": 0.39, "interval": [0.29, 0.48], ...},
                 "findings": {"gain:few_shot": {"state": "holds", ...}, "no_worse:champion": {...}, ...}, ...}}

The outer object is records.Decision; `figures` is a DecisionFigures. A finding is named by its criterion, and by the
opponent behind a colon where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict, cast

from finetune_pipeline.records import Check, Decision

TEST_ROWS, GENERAL_TEXTS = "test rows", "general texts"  # what the number of rows needed counts
State: TypeAlias = Literal["holds", "harm", "undecided"]
SliceState: TypeAlias = Literal["unharmed", "harmed", "undecided", "too few rows"]
Outcomes: TypeAlias = Mapping[str, bool]  # row id -> whether the variant's answer is exactly right (or valid)
Groups: TypeAlias = Mapping[str, str | None]  # row id -> the group whose rows are not independent, None for a row alone


@dataclass(frozen=True, slots=True)
class Finding:
    """What one criterion found: a check for people, its state, and its figures (one of the TypedDicts below).

    *holds*: the criterion is shown to be met. *harm*: the opposite is itself shown. *undecided*: this test set is too
    small for the difference that was observed. `rows_needed`: how many rows of `unit` would decide it in all, None
    where no number is known.
    """

    check: Check
    state: State
    figures: Mapping[str, Any] = field(default_factory=dict)
    rows_needed: int | None = None
    unit: str = TEST_ROWS

    def to_json(self) -> dict[str, Any]:
        return {"state": self.state, "rows_needed": self.rows_needed, **self.figures}


class RowFigures(TypedDict):
    """`rows`: finding of enough_rows. `independent`: rows of one group count once."""

    rows: int
    independent: int
    needed: int


class PairFigures(TypedDict):
    """`gain:…`, `no_worse:…` and `worth`: the tuned model against one opponent on the same rows.

    `wins` are right with the tuned model only, `losses` with the opponent only; `difference` is a share of `rows`, with
    the two-sided `interval` for reports, and the one-sided `bounds` of the decision (together an interval of confidence
    `bounds_confidence`). `p` is one-sided.
    """

    rows: int
    wins: int
    losses: int
    difference: float
    interval: list[float]
    confidence: float
    bounds: list[float]
    bounds_confidence: float
    bootstrap: list[float]
    p: float
    p_two_sided: float
    design_effect: float
    margin: NotRequired[float]


class GeneralChange(TypedDict):
    """`general`: relative rise of the loss with its bounds (null where unbounded). Only `measured` where it is
    false."""

    measured: bool
    texts: NotRequired[int]
    rise: NotRequired[float | None]
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    margin: NotRequired[float]


class FormatFigures(TypedDict):
    """`format`: valid answers of the tuned model; `low` and `high` bound their share, which has to be at least
    `min_valid_rate`."""

    rows: int
    valid: int
    low: float
    high: float
    min_valid_rate: float


class SliceComparison(TypedDict):
    """One slice: numbers of rows and of exact answers, the difference as a share with its one-sided bounds, and the
    p-value of harm after Holm's correction (null where the slice has too few rows to be tested)."""

    rows: int
    tuned: int
    baseline: int
    difference: float
    low: float
    high: float
    p_harm: float | None
    state: SliceState
    rows_needed: int | None


class SlicesFigures(TypedDict):
    """`slices`: every slice against the best prompted variant."""

    against: str
    slices: dict[str, SliceComparison]


class UndecidedSlicesFigures(TypedDict):
    """`slices_undecided`: names of the slices that cannot exclude harm; `untested`: number of slices with too few
    rows."""

    undecided: list[str]
    untested: int


class ReuseFigures(TypedDict):
    """`reuse`: how many adapters were evaluated on this test set, by how many sets of rules this one;
    `chance_of_luck`: probability that one of so many adapters is promoted though none is better."""

    adapters: int
    rule_sets: int
    chance_of_luck: float


class VariantCount(TypedDict):
    """Test rows of a variant, and how many it has exactly right."""

    rows: int
    exact: int


class Gain(PairFigures):
    """The comparison with the best prompted variant, whose name is `over`."""

    over: str


class DecisionFigures(TypedDict):
    """`champion`: the live version's name, null when nothing is live; `gain`: null when no prompted variant was
    evaluated; `smallest_gain_shown`: the smallest true gain that this test set shows with the declared power, as a
    share; `rows_needed`: by unit, empty where decided; `rules`: the declaration's section `release`; `seed`: of
    bootstraps."""

    rows: int
    variants: dict[str, VariantCount]
    best_prompted: str | None
    champion: str | None
    gain: Gain | None
    smallest_gain_shown: float | None
    rows_needed: dict[str, int]
    findings: dict[str, dict[str, Any]]
    rules: dict[str, Any]
    seed: int


def figures_of(decision: Decision) -> DecisionFigures:
    """The figures of a decision, also of one that was read from decision.json."""
    return cast(DecisionFigures, decision.figures)


def pair_of(figures: DecisionFigures, criterion: Literal["gain", "no_worse"], variant: str) -> PairFigures | None:
    """The comparison with one opponent under a criterion; None where there is none."""
    return cast("PairFigures | None", figures["findings"].get(f"{criterion}:{variant}"))


def general_of(figures: DecisionFigures) -> GeneralChange:
    return cast(GeneralChange, figures["findings"]["general"])


def slices_of(figures: DecisionFigures) -> SlicesFigures | None:
    """The comparison slice by slice; None where no prompted variant was evaluated."""
    return cast("SlicesFigures | None", figures["findings"].get("slices"))


def reuse_of(figures: DecisionFigures) -> ReuseFigures:
    return cast(ReuseFigures, figures["findings"]["reuse"])

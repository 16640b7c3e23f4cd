"""The parity gate: compares the live endpoint's answers to the held-out rows with the evaluated answers.

    result = compare(examples, served, evaluated, base, answer_format)
    evaluate_parity(result, threshold=0.97, about=registered.content_hash)
    "752 of 754 served answers equal the evaluated ones"

Another chat template, a missing system prompt, a tokenizer that adds a token, another precision, an adapter that was
loaded only in part: each of these changes answers, and shows here before any user sees it. Answers are compared as
values (JSON objects by content, labels by name); two answers that break the format are compared as text.

In bf16 the gate cannot be exact: an answer depends on which requests are computed together, where two tokens are nearly
equally probable. The share that `serve.parity` allows to differ has to cover that; a gate that fails in bf16 says so.

The gate does not evaluate the model: the release decision did. The answers come from replay.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_pipeline.baseline.metrics import canonical, score
from finetune_pipeline.baseline.variants import TUNED
from finetune_pipeline.clean.answers import parse
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.records import Answer, Check, Example, Json, Verdict
from finetune_pipeline.statistics.formatting import percent, percent_down

BF16_NOTE = (
    "; the evaluation computed in bf16, where near ties between two tokens depend on the batch: with `serve.precision: "
    "fp32` they do not; or lower `serve.parity`"
)


@dataclass(frozen=True, slots=True)
class ParityRow:
    """One replayed row: the served and the evaluated answer, whether they are equal, and whether each is correct."""

    id: str
    equal: bool
    served: str
    evaluated: str
    served_exact: bool
    evaluated_exact: bool


@dataclass(frozen=True, slots=True)
class ParityResult:
    """All replayed rows. `base_differs` of `base_rows` answers differ from the base model's to the same prompt."""

    rows: tuple[ParityRow, ...]
    base_rows: int
    base_differs: int

    @property
    def share(self) -> float:
        """Share of equal answers, 0 to 1."""
        return sum(row.equal for row in self.rows) / len(self.rows)

    @property
    def served_exact(self) -> float:
        return sum(row.served_exact for row in self.rows) / len(self.rows)

    @property
    def evaluated_exact(self) -> float:
        return sum(row.evaluated_exact for row in self.rows) / len(self.rows)


def answers_equal(first: str, second: str, answer_format: AnswerFormat) -> bool:
    """Whether two answers have equal values, or the same text where both break the format."""
    values = []
    for text in (first, second):
        try:
            values.append((True, canonical(parse(text, answer_format))))
        except ValueError:
            values.append((False, text.strip()))
    return values[0] == values[1]


def select_examples(examples: Sequence[Example], evaluated: Mapping[str, str], limit: int) -> list[Example]:
    """The rows to replay: evaluated ones, at most `limit`, the same each time (in the order of their ids, hashes)."""
    return sorted((e for e in examples if e.id in evaluated), key=lambda e: e.id)[:limit]


def compare(
    examples: Sequence[Example],
    served: Mapping[str, str],
    evaluated: Mapping[str, str],
    base: Mapping[str, str],
    answer_format: AnswerFormat,
) -> ParityResult:
    """Compare answers by row id. `served` and `evaluated` hold every example; `base` the few of the base model."""
    rows = tuple(
        ParityRow(
            e.id,
            answers_equal(served[e.id], evaluated[e.id], answer_format),
            served[e.id],
            evaluated[e.id],
            score(e, Answer(e.id, "served", served[e.id]), answer_format).exact,
            score(e, Answer(e.id, TUNED, evaluated[e.id]), answer_format).exact,
        )
        for e in examples
    )
    return ParityResult(rows, len(base), sum(served[id_] != text for id_, text in base.items()))


def evaluate_parity(parity: ParityResult, threshold: float, about: str, precision: str = "fp32") -> Verdict:
    """Passes when the share of equal answers reaches `threshold`, and one answer differs from the base model's.
    `precision`: what the evaluation computed in, "bf16" or "fp32"."""
    equal, total = sum(row.equal for row in parity.rows), len(parity.rows)
    checks = (
        Check(
            "served equals evaluated", parity.share >= threshold, f"at least {percent(threshold)} of the replayed rows",
            f"{equal} of {total} ({percent_down(parity.share)})", value=parity.share,
        ),
        Check(
            "the adapter has an effect", parity.base_differs > 0, "an answer that differs from the base model's",
            f"{parity.base_differs} of {parity.base_rows} differ", value=parity.base_differs,
        ),
    )  # fmt: skip
    passed = all(check.passed for check in checks)
    summary = f"{equal} of {total} served answers equal the evaluated ones"
    if not passed:
        failed = "; ".join(check.name for check in checks if not check.passed)
        summary += f"; failed: {failed}{_differing(parity.rows)}; no traffic was moved"
        summary += BF16_NOTE if precision == "bf16" and parity.share < threshold else ""
    figures: dict[str, Json] = {
        "rows": total,
        "equal": equal,
        "share": round(parity.share, 4),
        "served_exact": round(parity.served_exact, 4),
        "evaluated_exact": round(parity.evaluated_exact, 4),
    }
    return Verdict("deployed_endpoint", passed, about, summary, checks, figures)


def _differing(rows: Sequence[ParityRow]) -> str:
    ids = [row.id for row in rows if not row.equal]
    return f"; differing rows: {', '.join(ids[:5])}{' …' if len(ids) > 5 else ''}" if ids else ""

"""The likelihoods of the model before training, which dpo, ipo and kto compare with.

    reference = Reference.measure(forward, rows, objective, rules, bf16, report)
    reference.of(batch)                    # [61.2, 60.8, …]: negative log-likelihoods (nats) of its completions
    reference.divergence(batch)            # z of kto: by how much the model has moved on completions of other rows

They are computed once before the first step: then the model equals its base, with every initialization of an adapter
and with full weights, and no second model is needed. A resumed training computes them again, before it restores its
checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from finetune_pipeline.models.device import autocast
from finetune_pipeline.records import Reporter
from finetune_pipeline.train.distributed import ALONE, Ranks
from finetune_pipeline.train.forward import Forward, without_dropout
from finetune_pipeline.train.objective import Objective, completions_of
from finetune_pipeline.train.tokenize import TokenizedExample


@dataclass(frozen=True)
class Reference:
    """`sums` and `mismatched_sums`: by row id, of the row's completions, and of those of another row behind its prompt
    (`mismatched`; kto only)."""

    forward: Forward
    bf16: bool
    max_tokens: int
    sums: dict[str, list[float]]
    mismatched: dict[str, TokenizedExample]
    mismatched_sums: dict[str, list[float]]
    ranks: Ranks = ALONE

    @staticmethod
    def measure(
        forward: Forward,
        rows: Sequence[TokenizedExample],
        objective: Objective,
        max_tokens: int,
        bf16: bool,
        report: Reporter,
        ranks: Ranks = ALONE,
        known: dict[str, list[float]] | None = None,
    ) -> Reference | None:
        """The reference of all `rows`; None where the objective has none. `max_tokens`: of a forward pass; `known`:
        what was measured for another training of the same base model, and is measured now."""
        if not objective.uses_reference or not rows:
            return None
        known = {} if known is None else known

        def measured(keyed: Mapping[str, TokenizedExample], what: str) -> dict[str, list[float]]:
            missing = [replace(row, id=key) for key, row in keyed.items() if key not in known]
            known.update(likelihoods(forward, missing, max_tokens, bf16, report, what, ranks))
            return {row.id: known[key] for key, row in keyed.items()}

        sums = measured({row.id: row for row in rows}, "reference")
        others: dict[str, TokenizedExample] = {}  # by the ids of both rows
        if objective.uses_divergence:
            pairs = zip(rows, (*rows[1:], rows[0]), strict=True)
            others = {f"{a.id} {b.id}": TokenizedExample(a.id, a.prompt, b.completions) for a, b in pairs}
        other_sums = measured(others, "reference, other rows")
        mismatched = {row.id: row for row in others.values()}
        return Reference(forward, bf16, max_tokens, sums, mismatched, other_sums, ranks)

    def of(self, rows: Sequence[TokenizedExample]) -> list[float]:
        """Of every completion, in the order of rows."""
        return [value for row in rows for value in self.sums[row.id]]

    def divergence(self, rows: Sequence[TokenizedExample]) -> float:
        """Mean log ratio (nats) of other rows' completions behind these rows' prompts, at least 0; 0 where they were
        not measured."""
        others = [self.mismatched[row.id] for row in rows if row.id in self.mismatched]
        if not others:
            return 0.0
        now = likelihoods(self.forward, others, self.max_tokens, self.bf16, ranks=self.ranks)
        moved = [b - a for row in others for a, b in zip(now[row.id], self.mismatched_sums[row.id], strict=True)]
        return max(0.0, sum(moved) / len(moved))


def likelihoods(
    forward: Forward,
    rows: Sequence[TokenizedExample],
    max_tokens: int,
    bf16: bool,
    report: Reporter | None = None,
    what: str = "",
    ranks: Ranks = ALONE,
) -> dict[str, list[float]]:
    """Negative log-likelihood (nats) of every completion, by row id, without gradient and dropout. Each rank computes
    some of the rows, and gets the likelihoods of all."""
    import torch

    own = ranks.share(rows, [row.tokens for row in rows])
    found: dict[str, list[float]] = {}
    with torch.no_grad(), autocast(bf16), without_dropout(forward.model):
        for part, counts in ranks.even(forward.micro_batches(own, max_tokens), list(rows[:1])):
            sums = iter(completions_of(part, forward.losses(part)).sums.tolist())
            found |= {row.id: [next(sums) for _ in row.completions] for row in part} if counts else {}
            if report:
                report.alive()
                report.progress(what, len(found), len(own))
    summed = iter(ranks.sum([value for row in rows for value in found.get(row.id, [0.0] * len(row.completions))]))
    return {row.id: [next(summed) for _ in row.completions] for row in rows}

"""The objective: which rows it takes, and what loss it makes of the log-likelihoods of their completions.

    objective = objective_of(Train(objective="dpo"))
    loss, figures = objective.loss(completions, totals)        # figures: {"pairs": 16.0, "reward_accuracy": 11.0, …}

With r the log ratio of a completion's likelihood to that of the model before training (reference.py), and h the
difference of r between the chosen and the rejected completion:

    sft     all rows   mean negative log-likelihood of the learned tokens
    dpo     pairs      -log σ(β h)                 Rafailov et al., arXiv:2305.18290, equation 7
    ipo     pairs      (h - 1/(2β))²               Azar et al., arXiv:2310.12036, equation 17; r per token, as in TRL
    kto     all rows   1 - σ(±β (r - z))           Ethayarajh et al., arXiv:2402.01306, equation 7; z: mean r of
                                                   completions of other rows
    orpo    pairs      likelihood of the chosen one, and -β log σ(log odds ratio); no reference
                                                   Hong et al., arXiv:2403.07691, equations 6 and 7

A batch may be computed in parts (micro-batches): every loss is a sum over rows or tokens, divided by a total of the
whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.config import Preference, Train
from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.records import Example
from finetune_pipeline.train.tokenize import TokenizedExample

Figures = dict[str, float]
FIGURES = ("pairs", "reward_accuracy", "reward_margin")  # what an objective sums over the pairs of a batch


@dataclass(frozen=True)
class Completions:
    """The completions of a micro-batch, in the order of rows. `sums` [completions]: negative log-likelihoods (nats),
    with gradient; `counts` [completions]: learned tokens; `chosen` [completions]: false for rejected ones; `reference`
    [completions]: `sums` of the model before training (None where the objective has no reference)."""

    sums: Any
    counts: Any
    chosen: Any
    reference: Any = None

    @property
    def ratios(self) -> Any:
        """log(p / p_reference) of every completion [completions]."""
        return self.reference - self.sums

    def pairs(self, values: Any) -> tuple[Any, Any]:
        """`values` [completions] of the chosen and of the rejected completions. Every row must be a pair."""
        return values[self.chosen], values[~self.chosen]


@dataclass(frozen=True)
class Totals:
    """Of a whole batch: rows, completions, learned tokens of all completions and of the chosen ones; `divergence`: z of
    kto."""

    rows: int
    completions: int
    tokens: int
    chosen_tokens: int
    divergence: float = 0.0


class Objective:
    """`pairs`: whether it takes only rows with a rejected completion; `uses_reference`: whether it needs the
    likelihoods of the model before training; `preference`: whether rejected completions are computed at all."""

    pairs = False
    preference = True
    uses_reference = False
    uses_divergence = False

    def __init__(self, rules: Preference) -> None:
        self.beta = rules.beta
        self.rules = rules

    def loss(self, completions: Completions, totals: Totals) -> tuple[Any, Figures]:
        """The share of a micro-batch in the loss of its batch (with gradient), and sums of figures over its pairs."""
        raise NotImplementedError


class Sft(Objective):
    preference = False

    def loss(self, completions: Completions, totals: Totals) -> tuple[Any, Figures]:
        return completions.sums.sum() / totals.tokens, {}


class Dpo(Objective):
    pairs = uses_reference = True

    def loss(self, completions: Completions, totals: Totals) -> tuple[Any, Figures]:
        from torch.nn.functional import logsigmoid

        chosen, rejected = completions.pairs(completions.ratios)
        margin = self.beta * (chosen - rejected)
        smoothing = self.rules.label_smoothing  # conservative DPO: Mitchell, "A note on DPO with noisy preferences"
        loss = -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)
        return loss.sum() / totals.rows, _rewards(self.beta * chosen, self.beta * rejected)


class Ipo(Objective):
    pairs = uses_reference = True

    def loss(self, completions: Completions, totals: Totals) -> tuple[Any, Figures]:
        chosen, rejected = completions.pairs(completions.ratios / completions.counts)
        loss = (chosen - rejected - 1 / (2 * self.beta)) ** 2
        return loss.sum() / totals.rows, _rewards(chosen, rejected)


class Kto(Objective):
    uses_reference = uses_divergence = True

    def loss(self, completions: Completions, totals: Totals) -> tuple[Any, Figures]:
        import torch

        ratios, chosen = completions.ratios, completions.chosen
        sign = torch.where(chosen, 1.0, -1.0)
        weight = torch.where(chosen, self.rules.desirable_weight, self.rules.undesirable_weight)
        loss = weight * (1 - torch.sigmoid(self.beta * sign * (ratios - totals.divergence)))
        paired = torch.zeros_like(chosen)
        paired[:-1] = chosen[:-1] & ~chosen[1:]  # a row's rejected completion follows its chosen one
        figures = _rewards(self.beta * ratios[paired], self.beta * ratios[paired.roll(1)])
        return loss.sum() / totals.completions, figures


class Orpo(Objective):
    pairs = True

    def loss(self, completions: Completions, totals: Totals) -> tuple[Any, Figures]:
        import torch

        chosen, rejected = completions.pairs(-completions.sums / completions.counts)  # mean log-likelihood of a token
        odds = (chosen - _log1mexp(chosen)) - (rejected - _log1mexp(rejected))
        likelihood = completions.sums[completions.chosen].sum() / totals.chosen_tokens
        loss = likelihood - self.beta * torch.nn.functional.logsigmoid(odds).sum() / totals.rows
        return loss, _rewards(self.beta * chosen, self.beta * rejected)


OBJECTIVES: dict[str, type[Objective]] = {"sft": Sft, "dpo": Dpo, "ipo": Ipo, "kto": Kto, "orpo": Orpo}


def objective_of(rules: Train) -> Objective:
    return OBJECTIVES[rules.objective](rules.preference)


def require_rows(train: Iterable[Example], validation: Iterable[Example], objective: Objective) -> None:
    """TrainingFailed when there are no training rows, or when no training row, or none of the validation rows that
    there are, has the rejected completion that the objective needs. It reads up to the first row of each that can be
    used, so it can be called before anything is computed."""
    if not _require_pairs(train, objective, "training"):
        raise TrainingFailed("there are no rows to train on", "read the accounting of data_split")
    _require_pairs(validation, objective, "validation")


def _require_pairs(examples: Iterable[Example], objective: Objective, split: str) -> bool:
    """Whether there are rows; TrainingFailed when none of them has the rejected completion that the objective needs."""
    count = 0
    for example in examples:
        count += 1
        if example.rejected is not None or not objective.pairs:
            return True
    if count:
        hint = "use `train.objective: sft`, or a source with preference pairs (`rows: preference`)"
        raise TrainingFailed(
            f"none of the {count} {split} rows has a rejected completion, which this `train.objective` needs",
            hint if split == "training" else f"raise `split.validation`, so that it gets pairs; or {hint}",
        )
    return False


def usable(rows: Sequence[TokenizedExample], objective: Objective) -> list[TokenizedExample]:
    """The rows that an objective of preferences takes: those with a rejected completion, where it needs pairs."""
    return [row for row in rows if len(row.completions) == 2 or not objective.pairs]


def completions_of(
    rows: Sequence[TokenizedExample], losses: Any, reference: Sequence[float] | None = None
) -> Completions:
    """Sum the `losses` [learned tokens] of every completion. `reference`: the sums of the model before training."""
    import torch

    lengths = [len(completion.learned) for row in rows for completion in row.completions]
    chosen = [index == 0 for row in rows for index in range(len(row.completions))]
    counts = torch.tensor(lengths, device=losses.device)
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=losses.device), counts)
    sums = losses.new_zeros(len(lengths)).index_add(0, owner, losses)
    before = None if reference is None else torch.tensor(list(reference), device=losses.device, dtype=losses.dtype)
    return Completions(sums, counts, torch.tensor(chosen, device=losses.device), before)


def totals_of(rows: Sequence[TokenizedExample], divergence: float = 0.0) -> Totals:
    chosen = sum(len(row.completions[0].learned) for row in rows)
    return Totals(
        len(rows), sum(len(row.completions) for row in rows), sum(row.learned for row in rows), chosen, divergence
    )


def _rewards(chosen: Any, rejected: Any) -> Figures:
    """Sums over pairs: their number, how often the chosen completion has the higher reward, and by how much."""
    margins = (chosen - rejected).detach()
    accurate, margin = float((margins > 0).sum()), float(margins.sum())
    return {"pairs": float(len(margins)), "reward_accuracy": accurate, "reward_margin": margin}


def _log1mexp(x: Any) -> Any:
    """log(1 - exp(x)) for x < 0, without cancellation (Mächler, "Accurately computing log(1 - exp(-|a|))", 2012)."""
    import torch

    half = -0.6931  # log(1/2); each branch sees only its own range, since 0 times an infinite gradient is NaN
    near, far = x.clamp(min=half, max=-1e-7), x.clamp(max=half)
    return torch.where(x > half, torch.log(-torch.expm1(near)), torch.log1p(-torch.exp(far)))

"""Every objective trained for a few steps by the ranks of one job, for the tests: faster than a job for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune_pipeline.backends import worker
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.inference.model_family import decoder_parts
from finetune_pipeline.records import Reporter, Silent
from finetune_pipeline.train import checkpoint
from finetune_pipeline.train.distributed import ALONE, Ranks, joined
from finetune_pipeline.train.optimizer import optimizer_for
from finetune_pipeline.train.reference import Reference
from finetune_pipeline.train.sharding import spread
from finetune_pipeline_tests.train.setup import RULES, Setup

OBJECTIVES = ("sft", "dpo", "ipo", "kto", "orpo")


@dataclass(frozen=True)
class Trainings(JobData):
    base: Path
    out: Path


@dataclass(frozen=True)
class Losses(JobData):
    """By objective, of each step. `noticed`: what was said of ranks that disagree; `checkpointed`: losses of full
    weights in shards, with gradient checkpointing."""

    training: dict[str, list[float]]
    validation: dict[str, list[float]]
    norms: dict[str, list[float]]
    noticed: str = ""
    checkpointed: tuple[float, ...] = ()


def run(spec: Trainings, report: Reporter) -> Losses:
    with joined() as ranks:
        found = train_all(spec.base, spec.out / f"rank-{ranks.rank}", ranks)
        noticed, folder = _disagreement(ranks), spec.out / f"sharded-{ranks.rank}"
        return Losses(found.training, found.validation, found.norms, noticed, full_losses(spec.base, folder, ranks))


def train_all(base: Path, folder: Path, ranks: Ranks = ALONE) -> Losses:
    """The losses of six steps for each objective. A batch of 5 rows, which two ranks cannot share evenly."""
    found = Losses({}, {}, {})
    for objective in OBJECTIVES:
        setup = Setup(base, RULES.model_copy(update={"objective": objective, "batch_size": 5}))
        setup.reference = Reference.measure(setup.forward, setup.rows, setup.objective, 4096, False, Silent(), ranks)
        loop, state = setup.loop(folder / objective), checkpoint.TrainingState()
        loop.ranks = ranks
        loop.run(setup.rows, setup.rows[:3], state, setup.optimizer)
        found.training[objective] = [line["loss"] for line in state.history if "loss" in line]
        found.norms[objective] = [line["gradient_norm"] for line in state.history if "loss" in line]
        found.validation[objective] = [line["validation_loss"] for line in state.history if "validation_loss" in line]
    return found


def full_losses(base: Path, folder: Path, ranks: Ranks = ALONE) -> tuple[float, ...]:
    """The losses of full weights, sharded where there are several ranks, with gradient checkpointing."""
    setup = Setup(base, RULES.model_copy(update={"method": "full", "learning_rate": 1e-3}))
    setup.forward.checkpointing = True
    if ranks.size > 1:
        spread(setup.forward, decoder_parts(setup.model).layers, ranks)
    weights = dict(setup.model.named_parameters())
    loop, state = setup.loop(folder), checkpoint.TrainingState()
    loop.ranks, loop.weights = ranks, weights
    loop.run(setup.rows, setup.rows[:3], state, optimizer_for(weights, setup.rules))
    return tuple(line["loss"] for line in state.history if "loss" in line)


def _disagreement(ranks: Ranks) -> str:
    """What is said when one weight of one rank differs in its last bit, as from a broken GPU."""
    import torch

    from finetune_pipeline.errors import TrainingFailed

    weight = torch.ones(5)
    if ranks.rank == 1:
        weight[3] = torch.nextafter(weight[3], torch.tensor(2.0))
    try:
        ranks.require_agreement(7, {"a": weight})
    except TrainingFailed as error:
        return error.message
    return ""


if __name__ == "__main__":
    worker.main(run, Trainings)

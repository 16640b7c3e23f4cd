"""Everything that a training needs before its first step, put together from its description.

setup = assemble(spec, report)        # a TrainingSpec (spec.py): model and rows loaded, audited, fitted into memory
setup.measure_base(report)
setup.loop(folder, report, log_metrics).run(setup.rows["train"], setup.rows["validation"], state, setup.optimizer)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.config import Train
from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.inference.model_family import decoder_parts, max_sequence_tokens
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.device import forget_peak, uses_bf16
from finetune_pipeline.records import SILENT, Example, Reporter, read_jsonl
from finetune_pipeline.train.audit import Audit, audit
from finetune_pipeline.train.distributed import ALONE, Ranks
from finetune_pipeline.train.forward import Forward
from finetune_pipeline.train.loop import Loop
from finetune_pipeline.train.memory_fit import fit_to_memory
from finetune_pipeline.train.method import Base, Trainable, load_base, make_trainable
from finetune_pipeline.train.objective import Objective, objective_of, require_rows, usable
from finetune_pipeline.train.optimizer import optimizer_for
from finetune_pipeline.train.peak_share import PeakShare
from finetune_pipeline.train.reference import Reference
from finetune_pipeline.train.replay import Replay, general_rows, replay_for
from finetune_pipeline.train.row_selection import selected
from finetune_pipeline.train.schedule import total_steps
from finetune_pipeline.train.sharding import require_shardable, spread
from finetune_pipeline.train.shared import Shared
from finetune_pipeline.train.spec import TrainingSpec
from finetune_pipeline.train.token_view import token_view, write_view
from finetune_pipeline.train.tokenize import TokenizedExample, tokenize, tokenize_pairs

LogMetrics = Callable[[dict[str, float], int], None]


@dataclass
class TrainingSetup:
    """Everything a training loop needs. `rows`: those of "train" and "validation" that the objective takes; `audit`: of
    the training rows; `shared`: what other trainings of the base model share; `replay`: the general texts; `reference`:
    likelihoods of the model before training."""

    rules: Train
    base: Base
    trainable: Trainable
    forward: Forward
    objective: Objective
    rows: dict[str, list[TokenizedExample]]
    examples: list[Example]  # of the validation rows
    audit: Audit
    shared_prefix: int
    shared: Shared
    replay: Replay | None = None
    reference: Reference | None = None
    ranks: Ranks = ALONE
    peak_share: PeakShare | None = None
    optimizer: Any = None

    @property
    def bf16(self) -> bool:
        return uses_bf16(self.rules.precision)

    def measure_base(self, report: Reporter = SILENT) -> None:
        """Measure what the training needs of the base model, while the model still equals it: before a checkpoint is
        restored."""
        most = self.rules.max_tokens_per_batch
        rows, known = [*self.rows["train"], *self.rows["validation"]], self.shared.likelihoods
        objective, bf16, ranks = self.objective, self.bf16, self.ranks
        self.reference = Reference.measure(self.forward, rows, objective, most, bf16, report, ranks, known)
        if self.replay:
            self.replay.measure(total_steps(len(self.rows["train"]), self.rules), most, report, self.ranks)

    def loop(
        self,
        folder: Path,
        report: Reporter,
        log_metrics: LogMetrics,
        score: Callable[[], float] | None = None,
    ) -> Loop:
        """The loop, with checkpoints in `folder`; `log_metrics` gets the metrics and the step."""
        return Loop(
            self.forward,
            self.trainable.weights,
            self.rules,
            self.objective,
            self.bf16,
            folder,
            report,
            log_metrics,
            self.replay,
            self.reference,
            score,
            self.ranks,
            self.peak_share,
        )


def assemble(
    spec: TrainingSpec, report: Reporter = SILENT, ranks: Ranks = ALONE, shared: Shared | None = None
) -> TrainingSetup:
    """Load model and rows, audit them (audit.json in `out`), make the weights trainable, and choose the forward pass.

    `shared`: what an earlier training of the same base model, method and precision has loaded and computed, in this
    process; then nothing is written to `out`.
    ModelError when the model cannot be trained; TrainingFailed when there are no rows, or the audit fails.
    """
    import torch

    rules, objective = spec.rules, objective_of(spec.rules)
    sharded = _is_sharded(spec, ranks, shared)
    examples = _examples_of(spec, objective)
    shared = shared or Shared(load_base(spec.base, rules, "cpu" if sharded else None))
    base, rows = shared.base, _rows(spec, examples, shared, objective, report)
    prefix = common_prefix([row.prompt for split in rows.values() for row in split])
    texts = general_rows(base, rules)
    audited = _audited(spec, base, rows, texts, len(prefix), ranks.is_main and not shared.several)
    torch.manual_seed(rules.seed)  # the weights of an adapter depend on the seed, not on earlier computations
    trainable = make_trainable(base, rules, keep_base=shared.several)
    if not sharded:
        ranks.broadcast(trainable.weights.values())
    every = [*rows["train"], *rows["validation"]]
    forward = shared.forward(trainable, rules.layers, prefix, every, report, ranks if sharded else ALONE)
    setup = TrainingSetup(
        rules=rules,
        base=base,
        trainable=trainable,
        forward=forward,
        objective=objective,
        rows=rows,
        examples=examples["validation"],
        audit=audited,
        shared_prefix=len(prefix),
        shared=shared,
        replay=replay_for(forward, base, rules, texts, report, shared.texts),
        ranks=ranks,
    )
    _fit(setup, Architecture.of_folder(spec.base), report, sharded)
    forget_peak()
    setup.optimizer = optimizer_for(setup.trainable.weights, setup.rules)
    return setup


def _is_sharded(spec: TrainingSpec, ranks: Ranks, shared: Shared | None) -> bool:
    """Whether each rank holds a part of the weights. ModelError where that is impossible; ValueError for `shared` with
    several ranks: what it keeps is of a process that computes alone."""
    if shared is not None and ranks.size > 1:
        raise ValueError("trainings that share a base model have to compute in one process")
    sharded = spec.shard and ranks.size > 1
    if sharded:
        require_shardable(spec.rules)
    return sharded


def _examples_of(spec: TrainingSpec, objective: Objective) -> dict[str, list[Example]]:
    """All rows of the files. TrainingFailed when none of the selected training rows can be used, or none of the
    validation rows that there are."""
    found = {name: _examples(path) for name, path in (("train", spec.train), ("validation", spec.validation))}
    require_rows(_selected(spec, found["train"]), found["validation"], objective)
    return found


def _selected(spec: TrainingSpec, examples: list[Example]) -> list[Example]:
    return selected(examples, spec.share, spec.without_sources, spec.rules.seed)


def _rows(
    spec: TrainingSpec, examples: dict[str, list[Example]], shared: Shared, objective: Objective, report: Reporter
) -> dict[str, list[TokenizedExample]]:
    """The training rows that are selected and all validation rows, as token ids, as far as the objective takes them."""
    for name, found in examples.items():
        if name not in shared.rows:
            shared.rows[name] = tokenized(found, shared.base, spec.system, spec.rules, objective)
    chosen = _selected(spec, examples["train"])
    ids = {example.id for example in chosen}
    rows = {**shared.rows, "train": [row for row in shared.rows["train"] if row.id in ids]}
    _log_unused(chosen, rows["train"], report)
    return rows


def _audited(
    spec: TrainingSpec,
    base: Base,
    rows: dict[str, list[TokenizedExample]],
    texts: list[TokenizedExample],
    shared_prefix: int,
    writes: bool,
) -> Audit:
    """The audit of the rows; `writes`: it and what is learned are written to the folder `out`. TrainingFailed
    when a check failed."""
    train, longest = rows["train"], max_sequence_tokens(base.model.config)
    audited = audit(train, base.end_ids, longest, shared_prefix, rows["validation"])
    if writes:
        write_view(spec.out, token_view(train, base.tokenizer, texts), spec.task)
    require_passed(audited, spec.out if writes else None)
    return audited


def _fit(setup: TrainingSetup, architecture: Architecture, report: Reporter, sharded: bool) -> None:
    """Fit the training into the memory: by checkpointing, by smaller parts, and if `sharded`, by spreading the weights
    over the ranks."""
    rows, ranks, general = setup.rows, setup.ranks, setup.replay.longest if setup.replay else []
    setup.rules = fit_to_memory(
        setup.forward, architecture, setup.rules, rows["train"], general, report, ranks, sharded
    )
    if setup.forward.checkpointing and (ranks.is_main or not sharded):
        setup.shared.require_same(
            setup.forward, setup.trainable, setup.rules.layers, [*rows["train"], *rows["validation"]]
        )
    if sharded:
        spread(setup.forward, decoder_parts(setup.trainable.model).layers, ranks)
        setup.trainable = setup.trainable.collected()
    setup.peak_share = PeakShare.measure(setup.forward, architecture, setup.rules, setup.bf16, ranks.size)


def tokenized(
    examples: list[Example], base: Base, system: str, rules: Train, objective: Objective
) -> list[TokenizedExample]:
    """The rows that the objective takes, as token ids."""
    if not objective.preference:
        return tokenize(examples, base.tokenizer, system, base.end_ids, rules.turns)
    return usable(tokenize_pairs(examples, base.tokenizer, system, base.end_ids), objective)


def _log_unused(examples: list[Example], rows: list[TokenizedExample], report: Reporter) -> None:
    unused = len({example.id for example in examples}) - len({row.id for row in rows})
    if unused:
        report.log(f"{unused} of {len(examples)} training rows have no rejected completion and are not used")


def _examples(path: Path) -> list[Example]:
    return [Example.from_json(row) for row in read_jsonl(path)]


def require_passed(audited: Audit, out: Path | None) -> None:
    """Write audit.json into `out`; TrainingFailed when a check failed."""
    if out is not None:
        (out / "audit.json").write_text(json.dumps(audited.to_json(), indent=1), "utf-8")
    failed = [f"{check.name}: {check.observed}" for check in audited.checks if not check.passed]
    if failed:
        raise TrainingFailed(
            "the audit before training failed: " + "; ".join(failed),
            f"{audited.hint}. `finetune train TASK --show-tokens` shows the rows as the model reads them",
        )

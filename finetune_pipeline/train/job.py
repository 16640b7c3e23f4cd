"""The training process: load, audit, train (from the last checkpoint, if there is one), save; one MLflow run.

    python -m finetune_pipeline.train.job job.json        # a TrainingSpec (spec.py)

It writes to `out`: the weights (method.py), audit.json (audit.Audit), tokens.json and tokens.html (token_view.py),
history.jsonl (one checkpoint.HistoryLine per step), training.json (spec.TrainingResult) and training.html (charts).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from finetune_pipeline.backends import worker
from finetune_pipeline.config import Train
from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.inference.model_family import decoder_parts, max_sequence_tokens, within_limit
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.device import PeakDeviceMemory, name_of, uses_bf16
from finetune_pipeline.records import SILENT, Example, Reporter, read_jsonl, write_jsonl
from finetune_pipeline.train import checkpoint
from finetune_pipeline.train.audit import Audit, audit
from finetune_pipeline.train.distributed import ALONE, Ranks, joined
from finetune_pipeline.train.forward import Forward
from finetune_pipeline.train.history import overfits_from
from finetune_pipeline.train.history_page import page
from finetune_pipeline.train.loop import Loop
from finetune_pipeline.train.memory_fit import fit_to_memory
from finetune_pipeline.train.method import Base, Trainable, load_base, make_trainable
from finetune_pipeline.train.objective import Objective, objective_of, require_rows, usable
from finetune_pipeline.train.optimizer import optimizer_for
from finetune_pipeline.train.peak_share import PeakShare
from finetune_pipeline.train.reference import Reference
from finetune_pipeline.train.replay import Replay, general_texts, whole_texts
from finetune_pipeline.train.row_selection import selected
from finetune_pipeline.train.schedule import total_steps
from finetune_pipeline.train.sharding import refresh, require_shardable, spread
from finetune_pipeline.train.shared import Shared
from finetune_pipeline.train.spec import TrainingResult, TrainingSpec
from finetune_pipeline.train.token_view import token_view, write_view
from finetune_pipeline.train.tokenize import TokenizedExample, tokenize, tokenize_pairs
from finetune_pipeline.train.validation import scorer

LogMetrics = Callable[[dict[str, float], int], None]


def run(spec: TrainingSpec, report: Reporter) -> TrainingResult:
    """Train, with the processes that torch's elastic agent started beside this one. TrainingFailed, ModelError,
    StorageError; JobCanceled after a checkpoint."""
    with joined() as ranks:
        with PeakDeviceMemory() as peak:
            result = _train(spec, report, ranks)
        result = replace(result, peak_mb=round(peak.mb))
        if ranks.is_main:
            history = [cast(checkpoint.HistoryLine, line) for line in read_jsonl(spec.out / "history.jsonl")]
            (spec.out / "training.html").write_text(page(spec.task, result, history), "utf-8")
            (spec.out / "training.json").write_text(json.dumps(result.to_json(), indent=1), "utf-8")
    return result


def _train(spec: TrainingSpec, report: Reporter, ranks: Ranks) -> TrainingResult:
    checkpoint.require_same(spec.checkpoints, spec.identity)  # before a model is loaded
    log_origins(spec, report)
    setup = assemble(spec, report, ranks)
    setup.measure_base(report)
    spec.checkpoints.mkdir(parents=True, exist_ok=True)
    with ranks.first():  # it deletes what is damaged
        state = checkpoint.load(spec.checkpoints, setup.trainable.weights, setup.optimizer, report, spec.identity)
    ranks.require_agreement(state.step, setup.trainable.weights)
    refresh(setup.forward.model)
    resumed_at = state.step
    note_precision(state, name_of(uses_bf16(spec.rules.precision)), report)
    _train_in_mlflow_run(spec, report, setup, state)
    return replace(_result(setup, state, resumed_at), origins=spec.origins, search=spec.choice)


def log_origins(spec: TrainingSpec, report: Reporter) -> None:
    """Log the settings that the declaration did not give, and where they are from."""
    for name, origin in spec.origins.items():
        report.log(f"{name}: {spec.params.get(name)}, {origin}")


def note_precision(state: checkpoint.TrainingState, precision: str, report: Reporter) -> None:
    """Add the precision of this machine to `state`, and log it when the checkpoint has another one."""
    before = state.precisions[-1:]
    if before != [precision]:
        if before:
            report.log(f"the checkpoint was computed in {before[0]}; this machine continues in {precision}")
        state.precisions.append(precision)


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
    audited = _audited(spec, base, rows["train"], texts, len(prefix), ranks.is_main and not shared.several)
    torch.manual_seed(rules.seed)  # the weights of an adapter depend on the seed, not on earlier computations
    trainable = make_trainable(base, rules, keep_base=shared.several)
    if not sharded:
        ranks.broadcast(trainable.weights.values())
    forward = shared.forward(trainable, rules.layers, prefix, [*rows["train"], *rows["validation"]], report)
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
    """All rows of the files. TrainingFailed when none of the selected training rows can be used."""
    found = {name: _examples(path) for name, path in (("train", spec.train), ("validation", spec.validation))}
    require_rows(_selected(spec, found["train"]), objective)
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
    rows: list[TokenizedExample],
    texts: list[TokenizedExample],
    shared_prefix: int,
    writes: bool,
) -> Audit:
    """The audit of the training rows; `writes`: it and what is learned are written to the folder `out`. TrainingFailed
    when a check failed."""
    audited = audit(rows, base.end_ids, max_sequence_tokens(base.model.config), shared_prefix)
    if writes:
        write_view(spec.out, token_view(rows, base.tokenizer, texts), spec.task)
    _require_passed(audited, spec.out if writes else None)
    return audited


def _fit(setup: TrainingSetup, architecture: Architecture, report: Reporter, sharded: bool) -> None:
    """Fit the training into the memory: by checkpointing, by smaller parts, and if `sharded`, by spreading the weights
    over the ranks."""
    rows, ranks, general = setup.rows, setup.ranks, setup.replay.longest if setup.replay else []
    setup.rules = fit_to_memory(
        setup.forward, architecture, setup.rules, rows["train"], general, report, ranks, sharded
    )
    if setup.forward.checkpointing:
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


def _train_in_mlflow_run(
    spec: TrainingSpec, report: Reporter, setup: TrainingSetup, state: checkpoint.TrainingState
) -> None:
    """Train inside the MLflow run of the checkpoint, or a new run, and log the adapter's files there, too. The first
    rank does; the others only compute."""
    from finetune_pipeline import tracking

    train = setup.rows["train"]
    if not setup.ranks.is_main:
        _compute(spec, report, setup, state, lambda metrics, step: None)
        return
    tags = {"data": spec.dataset_digest}
    with tracking.training_run(spec.task, state.run_id, spec.params, tags, report) as run:
        if state.run_id is None:
            run.log_dataset(spec.dataset_name, spec.dataset_digest, len(train))
        state.run_id, state.experiment_id = run.run_id, run.experiment_id
        whole = _compute(spec, report, setup, state, run.log_metrics)
        setup.trainable.save(spec.out, spec.base_id, setup.base.tokenizer, whole)
        write_jsonl(spec.out / "history.jsonl", state.history)
        run.log_artifacts(spec.out, "adapter")
    state.run_id, state.experiment_id = run.run_id, run.experiment_id  # known by now, if MLflow was away at the start


def _compute(
    spec: TrainingSpec, report: Reporter, setup: TrainingSetup, state: checkpoint.TrainingState, log_metrics: LogMetrics
) -> dict[str, Any]:
    """This rank's part of the training; the weights to save where they are sharded."""
    score = scorer(setup.trainable.model, setup.base, setup.examples, spec, report, setup.ranks)
    loop = setup.loop(spec.checkpoints, report, log_metrics, score)
    loop.run(setup.rows["train"], setup.rows["validation"], state, setup.optimizer)
    setup.trainable.round()
    return setup.trainable.whole(setup.ranks)


def replay_for(
    forward: Forward,
    base: Base,
    rules: Train,
    texts: list[TokenizedExample],
    report: Reporter,
    known: dict[str, Any] | None = None,
) -> Replay | None:
    """The replay of general texts (`general_rows`), without those that are longer than the model's limit; None when
    none is left. `known`: states of texts that were measured before."""
    texts = within_limit(texts, lambda text: text.tokens, base.model.config, "general texts", report)
    if not texts:
        return None
    return Replay(forward, texts, rules.keep_general, rules.seed, uses_bf16(rules.precision), known)


def general_rows(base: Base, rules: Train) -> list[TokenizedExample]:
    """The general texts as token ids; none where `train.keep_general.weight` is 0."""
    if not rules.keep_general.weight:
        return []
    return whole_texts(tokenize(general_texts(), base.tokenizer, "", base.end_ids))


def _result(setup: TrainingSetup, state: checkpoint.TrainingState, resumed_at: int) -> TrainingResult:
    history = state.history
    losses = [line["loss"] for line in history if "loss" in line]
    validated = [line for line in history if "validation_loss" in line]
    kept = validated[-1]
    if setup.rules.validation.keep == "best" and state.best_step:
        kept = next(line for line in validated if line["step"] == state.best_step)
    divergences = [line["general_divergence"] for line in history if "general_divergence" in line][-20:]
    speeds = [line["tokens_per_second"] for line in history if "tokens_per_second" in line]
    return TrainingResult(
        mlflow_run_id=state.run_id,
        mlflow_experiment_id=state.experiment_id,
        method=setup.rules.method,
        objective=setup.rules.objective,
        forward=setup.forward.name,
        steps=state.step,
        kept_step=kept["step"],
        skipped_steps=state.skipped,
        seconds=round(state.seconds, 1),
        tokens_per_second=round(statistics.median(speeds), 1),
        rows=len(setup.rows["train"]),
        loss_first=losses[0],
        loss_last=sum(losses[-5:]) / len(losses[-5:]),
        validation_loss_start=validated[0]["validation_loss"],
        validation_loss=kept["validation_loss"],
        validation_score=kept.get("validation_score"),
        validation_reward_accuracy=kept.get("validation_reward_accuracy"),
        general_divergence=sum(divergences) / len(divergences) if divergences else None,
        resumed_at=resumed_at,
        trainable_parameters=sum(weight.numel() for weight in setup.trainable.weights.values()),
        precision=", then ".join(state.precisions),
        shared_prefix_tokens=setup.shared_prefix,
        supervised_tokens=setup.audit.supervised_tokens,
        processes=setup.ranks.size,
        validation_loss_last=validated[-1]["validation_loss"],
        overfits_from=overfits_from(history),
        learning_rate=setup.rules.learning_rate,
    )


def _examples(path: Path) -> list[Example]:
    return [Example.from_json(row) for row in read_jsonl(path)]


def _require_passed(audited: Audit, out: Path | None) -> None:
    """Write audit.json into `out`; TrainingFailed when a check failed."""
    if out is not None:
        (out / "audit.json").write_text(json.dumps(audited.to_json(), indent=1), "utf-8")
    failed = [f"{check.name}: {check.observed}" for check in audited.checks if not check.passed]
    if failed:
        raise TrainingFailed(
            "the audit before training failed: " + "; ".join(failed),
            f"{audited.hint}. `finetune train TASK --show-tokens` shows the rows as the model reads them",
        )


if __name__ == "__main__":
    worker.main(run, TrainingSpec)

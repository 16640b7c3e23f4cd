"""The training process: load, audit, train (from the last checkpoint, if there is one), save; one MLflow run.

    python -m finetune_pipeline.train.job job.json        # a TrainingSpec (spec.py)

It writes to `out`: the weights (method.py), audit.json (audit.Audit), tokens.json and tokens.html (token_view.py),
history.jsonl (one checkpoint.HistoryLine per step), training.json (spec.TrainingResult) and training.html (charts).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from finetune_pipeline.backends import worker
from finetune_pipeline.config import Train
from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.models.device import PeakDeviceMemory, kind, name_of, out_of_memory, uses_bf16
from finetune_pipeline.records import Reporter, write_jsonl
from finetune_pipeline.train import checkpoint
from finetune_pipeline.train.assembly import LogMetrics, TrainingSetup, assemble
from finetune_pipeline.train.distributed import Ranks, joined
from finetune_pipeline.train.history import overfits_from
from finetune_pipeline.train.history_page import page
from finetune_pipeline.train.sharding import refresh
from finetune_pipeline.train.spec import TrainingResult, TrainingSpec
from finetune_pipeline.train.validation import scorer


def run(spec: TrainingSpec, report: Reporter) -> TrainingResult:
    """Train, with the processes that torch's elastic agent started beside this one. TrainingFailed, ModelError,
    StorageError; JobCanceled after a checkpoint."""
    with joined() as ranks, PeakDeviceMemory() as peak:
        try:
            return _train(spec, report, ranks, peak)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise TrainingFailed(  # outside of a step, which would be computed again in smaller parts (loop.py)
                f"the memory of the {kind()} ran out: {error}",
                "lower `train.max_tokens_per_batch`, or use `train.method: qlora`, a smaller model or a larger device",
            ) from error


def _train(spec: TrainingSpec, report: Reporter, ranks: Ranks, peak: PeakDeviceMemory) -> TrainingResult:
    checkpoint.require_same(spec.checkpoints, spec.identity)  # before a model is loaded
    log_origins(spec, report)
    setup = assemble(spec, report, ranks)
    setup.measure_base(report)
    spec.checkpoints.mkdir(parents=True, exist_ok=True)
    with ranks.first():  # it deletes what is damaged
        state = checkpoint.load(
            spec.checkpoints, setup.trainable.weights, setup.optimizer, report, spec.identity, ranks
        )
    ranks.require_agreement(state.step, setup.trainable.weights)
    refresh(setup.forward.model)
    resumed_at = state.step
    note_precision(state, name_of(uses_bf16(spec.rules.precision)), report)

    def result() -> TrainingResult:
        found = _result(setup, state, resumed_at, round(peak.mb))
        return replace(found, origins=spec.origins, search=spec.choice)

    return _train_in_mlflow_run(spec, report, setup, state, result)


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


def _train_in_mlflow_run(
    spec: TrainingSpec,
    report: Reporter,
    setup: TrainingSetup,
    state: checkpoint.TrainingState,
    result: Callable[[], TrainingResult],
) -> TrainingResult:
    """Train inside the MLflow run of the checkpoint, or a new run, and log the adapter's files there, too. The first
    rank does; the others only compute. `result`: of the training as far as it is."""
    from finetune_pipeline import tracking

    train = setup.rows["train"]
    if not setup.ranks.is_main:
        _compute(spec, report, setup, state, lambda metrics, step: None)
        return result()
    tags = {"data": spec.dataset_digest}
    with tracking.training_run(spec.task, state.run_id, spec.params, tags, report) as run:
        if state.run_id is None:
            run.log_dataset(spec.dataset_name, spec.dataset_digest, len(train))
        state.run_id, state.experiment_id = run.run_id, run.experiment_id
        whole = _compute(spec, report, setup, state, run.log_metrics)
        setup.trainable.save(spec.out, spec.base_id, setup.base.tokenizer, whole)
        write_jsonl(spec.out / "history.jsonl", state.history)
        _write(spec, result(), state)
        run.log_artifacts(spec.out, "adapter")
    if state.run_id != run.run_id:  # known by now; MLflow was away at the start
        state.run_id, state.experiment_id = run.run_id, run.experiment_id
        _write(spec, result(), state)
    return result()


def _write(spec: TrainingSpec, result: TrainingResult, state: checkpoint.TrainingState) -> None:
    (spec.out / "training.html").write_text(page(spec.task, result, state.history), "utf-8")
    (spec.out / "training.json").write_text(json.dumps(result.to_json(), indent=1), "utf-8")


def _compute(
    spec: TrainingSpec, report: Reporter, setup: TrainingSetup, state: checkpoint.TrainingState, log_metrics: LogMetrics
) -> dict[str, Any]:
    """This rank's part of the training; the weights to save where they are sharded."""
    score = scorer(setup.trainable.model, setup.base, setup.examples, spec, report, setup.ranks)
    loop = setup.loop(spec.checkpoints, report, log_metrics, score)
    loop.run(setup.rows["train"], setup.rows["validation"], state, setup.optimizer)
    if not any("loss" in line for line in state.history):
        raise TrainingFailed(
            f"none of the {state.step} steps was applied: no gradient was finite", "set `train.precision: fp32`"
        )
    if setup.trainable.round():  # what is judged is what is saved
        refresh(setup.forward.model)
        _kept(state, setup.rules).update(loop.validate(setup.rows["validation"], state.max_tokens))
    return setup.trainable.whole(setup.ranks)


def _kept(state: checkpoint.TrainingState, rules: Train) -> checkpoint.HistoryLine:
    """The line of the history with the validation of the weights that are kept."""
    best = state.best_step if rules.validation.keep == "best" else 0
    return next(
        line for line in reversed(state.history) if "validation_loss" in line and (not best or line["step"] == best)
    )


def _result(setup: TrainingSetup, state: checkpoint.TrainingState, resumed_at: int, peak_mb: int) -> TrainingResult:
    history = state.history
    losses = [line["loss"] for line in history if "loss" in line]
    validated = [line for line in history if "validation_loss" in line]
    kept = _kept(state, setup.rules)
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
        peak_mb=peak_mb,
        trainable_parameters=sum(weight.numel() for weight in setup.trainable.weights.values()),
        precision=", then ".join(state.precisions),
        shared_prefix_tokens=setup.shared_prefix,
        supervised_tokens=setup.audit.supervised_tokens,
        processes=setup.ranks.size,
        validation_loss_last=validated[-1]["validation_loss"],
        overfits_from=overfits_from(history),
        learning_rate=setup.rules.learning_rate,
    )


if __name__ == "__main__":
    worker.main(run, TrainingSpec)

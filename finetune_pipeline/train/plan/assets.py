"""The asset `training_plan`: what the declared training needs, before it runs; made before `training_search`.

    plan.json      spec.TrainingPlan: memory, time and cost; the devices and methods that it fits
    report.html    the same for people (report.py)
    tokens.html    what will be learned of ten rows, token by token; audit.json: the checks of the training rows

Its gate does not block: it is a prediction. Where `train.provider` trains, plan.json has the estimated cost alone.
"""

from __future__ import annotations

import json

from finetune_pipeline.backends import launch
from finetune_pipeline.backends.deployment import backend_for, one_process
from finetune_pipeline.config import Provider
from finetune_pipeline.models.model_files import token_counter
from finetune_pipeline.models.model_source import folder_of
from finetune_pipeline.models.trained_weights import METHODS
from finetune_pipeline.providers import cost
from finetune_pipeline.providers.rows import counted
from finetune_pipeline.records import Check, Json, Verdict
from finetune_pipeline.statistics.formatting import duration
from finetune_pipeline.store import StageContext, StageResult
from finetune_pipeline.train.assets import shards, training_spec
from finetune_pipeline.train.plan.report import Heading, headline, managed_page, page
from finetune_pipeline.train.plan.spec import PlanSpec, TrainingPlan

JOB = "finetune_pipeline.train.plan.job"
FILE = "plan.json"
CHECK = "the training fits into the memory"
DISK = "the checkpoints fit on the disk"


def training_plan(context: StageContext) -> StageResult:
    """Plan the declared training in one process of the backend that will run it. DeclarationError for a backend that
    cannot be used; TrainingFailed where the audit of the training rows fails."""
    rules, config = context.task.train, context.task.suitability
    if rules.provider is not None:
        return _managed(context, rules.provider)
    backend = backend_for(rules.backend)
    folder = context.store.unfinished("training_plan", "plan", context.key).absolute()
    training = training_spec(context, folder)
    spec = PlanSpec(
        training=training,
        folder=folder,
        nodes=backend.nodes,
        processes_per_node=backend.processes_per_node,
        sharded=tuple(method for method in METHODS if shards(backend, method)),
        per_hour=config.training_per_hour,
        gpu_per_hour=config.gpu_per_hour,
    )
    plan = launch.run(JOB, spec, TrainingPlan, folder, context.report, one_process(backend), rules.threads)
    (context.out / FILE).write_text(json.dumps(plan.to_json(), indent=1), "utf-8")
    (context.out / "report.html").write_text(page(_heading(context, training.base_id), plan), "utf-8")
    context.report.log(headline(plan, config.currency))
    verdict = evaluate_plan(plan, context.inputs["data_split"].content_hash, config.currency)
    return StageResult(_summary(plan, config.currency), verdict, unfinished=folder)


def evaluate_plan(plan: TrainingPlan, about: str, currency: str) -> Verdict:
    """The gate: whether the predicted memory is there. `about`: content hash of the split."""
    fit, available = plan.fit, plan.device.available_mb
    observed = f"{fit.verdict}: about {fit.memory.total_mb:,.0f} MB of {available:,.0f} MB"
    passed = fit.verdict != "TOO BIG"
    checks = (
        Check(CHECK, passed, "FITS or TIGHT", observed, value=round(fit.memory.total_mb)),
        _disk(plan),
    )
    figures = {"seconds": round(plan.times.total), "need_mb": round(fit.memory.total_mb)}
    passed = all(check.passed for check in checks)
    return Verdict("training_plan", passed, about, headline(plan, currency), checks, figures)


def _disk(plan: TrainingPlan) -> Check:
    need, free = plan.checkpoints_mb, plan.device.disk_mb
    observed = f"about {need:,.0f} MB of {free:,.0f} MB"
    return Check(DISK, need < free, "less than is free", observed, value=round(need))


def _summary(plan: TrainingPlan, currency: str) -> dict[str, Json]:
    return {
        "verdict": plan.fit.verdict,
        "training_time": duration(plan.times.total),
        "training_cost": round(plan.cost, 2),
        "need_mb": round(plan.fit.memory.total_mb),
        "available_mb": round(plan.device.available_mb),
        "method": plan.method,
        "recommended_method": plan.recommended or "none fits",
        "steps": plan.steps,
        "seconds": round(plan.times.total, 1),
        "measured_steps": plan.probe.steps if plan.probe else 0,
        "max_tokens_that_fit": plan.most_tokens,
        "gradient_checkpointing": plan.fit.checkpointing,
        "currency": currency,
    }


def _managed(context: StageContext, provider: Provider) -> StageResult:
    """A provider trains: what it will cost, by tokens of the local tokenizer. DataError above `max_cost`."""
    base, examples = context.inputs["base_model"], context.inputs["data_split"].examples("train.jsonl")
    count = token_counter(folder_of(base, context.task.base, context.report))
    file = counted(examples, context.task.prompt.system, provider, count)
    found = cost.estimate(file.tokens, file.rows, provider)
    cost.require_within(found, provider)
    described = {"provider": provider.name, "model": provider.model, "rows": file.rows, **found.to_json()}
    (context.out / FILE).write_text(json.dumps(described, indent=1), "utf-8")
    heading = _heading(context, str(base.json("base_model.json")["id"]))
    (context.out / "report.html").write_text(managed_page(heading, provider, file.rows, found), "utf-8")
    about = context.inputs["data_split"].content_hash
    summary = f"{provider.model} of {provider.name}: about {found}"
    check = Check(CHECK, True, "the provider's machines train", summary)
    return StageResult(described, Verdict("training_plan", True, about, summary, (check,), {}))


def _heading(context: StageContext, base: str) -> Heading:
    return Heading(context.task.name, base, context.now, context.task.suitability.currency)

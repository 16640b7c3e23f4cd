"""The release's two assets: the decision on one adapter, and its entry in the registry.

    release_decision   decision.json (records.Decision), decision.md; the verdict is about the evaluation's content and
                       passes for PROMOTE alone
    registered_model   model.json {name, version, run_id, adapter, evaluation, decision, data, base, registered_at},
                       MODEL_CARD.md; a version in MLflow with the alias `challenger`

The registry's own rule: the decision is read again for this very adapter and this very evaluation, whatever Dagster or
a person thinks has happened. An adapter is registered once: the same content finds its version again. The alias
`champion` is not set here: it belongs to the deployment, after parity.

What it is not: how to decide (decide.py), or MLflow (tracking.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from finetune_pipeline.config import Split
from finetune_pipeline.errors import DataError, GateRefused
from finetune_pipeline.records import (
    Artifact,
    Check,
    Decision,
    Example,
    Json,
    Score,
    Verdict,
    dumps,
    read_jsonl,
)
from finetune_pipeline.release import holdout_reuse
from finetune_pipeline.release.card import Registration, card
from finetune_pipeline.release.criteria import Reuse
from finetune_pipeline.release.decide import TUNED, Evidence, decide
from finetune_pipeline.release.report import markdown
from finetune_pipeline.store import StageContext, StageResult

ARTIFACT_PATH = "adapter"  # where the training's run keeps the adapter's files in MLflow


def release_decision(context: StageContext) -> StageResult:
    """Decide on the current adapter. GateRefused when the evaluation is another adapter's, DataError when it did not
    score the very test rows of the current split."""
    evaluation, rules = context.inputs["eval_report"], context.task.release
    tests = list(context.inputs["data_split"].examples("test.jsonl"))
    use = holdout_reuse.HoldoutUse(
        context.inputs["adapter"].content_hash, holdout_reuse.rules_hash(rules), frozenset(row.id for row in tests)
    )
    decision = decide(evidence(context, tests, holdout_reuse.count(holdout_reuse.recall(context.store), use)), rules)
    holdout_reuse.remember(context.store, use, decision, context.now)
    (context.out / "decision.json").write_text(dumps(asdict(decision)), "utf-8")
    (context.out / "decision.md").write_text(markdown(decision, context.now), "utf-8")
    context.report.log(decision.summary)
    return StageResult(_decision_summary(decision), _verdict(decision, evaluation))


def evidence(context: StageContext, tests: Sequence[Example], past: Reuse) -> Evidence:
    """What the evaluation measured, checked to be about this adapter and these test rows."""
    evaluation, adapter = context.inputs["eval_report"], context.inputs["adapter"]
    evaluated = evaluation.manifest["inputs"].get("adapter")
    if evaluated != adapter.content_hash:
        raise GateRefused(
            f"the evaluation is of adapter {evaluated}, and the current one is {adapter.content_hash}",
            "materialize eval_report again",
        )
    scores = [Score(**row) for row in read_jsonl(evaluation.path("scores.jsonl"))]
    odd = {row.id for row in tests} ^ {score.id for score in scores if score.variant == TUNED}
    if odd:
        raise DataError(
            f"the evaluation scored other rows than the split's test rows: {len(odd)} differ, such as {min(odd)}",
            "materialize eval_report again",
        )
    general = None
    if evaluation.path("general.jsonl").exists():
        general = [(row["base"], row["tuned"]) for row in read_jsonl(evaluation.path("general.jsonl"))]
    groups = together(tests, context.task.split)
    live = evaluation.json("report.json").get("champion")
    champion = f"version {live['version']}" if live else None
    return Evidence(scores, general, groups, adapter.content_hash, evaluation.content_hash, past, champion)


def together(rows: Sequence[Example], rules: Split) -> dict[str, str | None]:
    """Row id -> the unit it shares with others (by the split's own definition: a declared group, or near duplicates).
    Such rows are right or wrong together, and do not count as independent evidence."""
    from finetune_pipeline.split.assignment import units
    from finetune_pipeline.split.leakage import alike_of

    near = alike_of(rows, rules.near_duplicate_threshold).similarity.clusters()
    return {rows[i].id: rows[unit[0]].id if len(unit) > 1 else None for unit in units(rows, near) for i in unit}


def registered_model(context: StageContext) -> StageResult:
    """Enter the promoted adapter in MLflow's registry. GateRefused unless the decision is PROMOTE for this adapter and
    this evaluation; StorageError when the adapter's files are not those that were evaluated."""
    from finetune_pipeline import tracking

    adapter = context.inputs["adapter"]
    decision = promoted(context.inputs["release_decision"], adapter, context.inputs["eval_report"])
    context.store.verify(adapter)
    run_id = str(adapter.json("training.json")["mlflow_run_id"])
    name = context.task.name
    version = tracking.find_version(name, "adapter", adapter.content_hash)
    new = version is None
    if version is None:
        about = _tags(context), _description(decision)
        version = tracking.register(name, run_id, ARTIFACT_PATH, *about, folder=adapter.folder)
    tracking.set_alias(name, "challenger", version)
    facts = _facts(context, name, version, run_id)
    (context.out / "model.json").write_text(dumps(facts), "utf-8")
    (context.out / "MODEL_CARD.md").write_text(card(_registration(context, version, decision)), "utf-8")
    context.report.log(f"version {version} of {name} is " + ("new" if new else "this very adapter, registered before"))
    return StageResult({"name": name, "version": version, "new": new, "mlflow_run_id": run_id, "alias": "challenger"})


def promoted(made: Artifact, adapter: Artifact, evaluation: Artifact) -> Decision:
    """The decision, if it says PROMOTE about exactly these two. GateRefused otherwise."""
    raw = made.json("decision.json")
    decision = Decision(**{**raw, "checks": tuple(Check(**check) for check in raw["checks"])})
    for what, evaluated, now in (
        ("adapter", decision.adapter, adapter.content_hash),
        ("evaluation", decision.evaluation, evaluation.content_hash),
    ):
        if evaluated != now:
            raise GateRefused(
                f"the decision was about {what} {evaluated}, and the current one is {now}",
                "materialize release_decision again",
            )
    if decision.outcome != "PROMOTE":
        raise GateRefused(
            f"adapter {adapter.content_hash} is not registered: {decision.summary}",
            "read decision.md; more test rows, more training data or another declaration makes a new candidate",
        )
    return decision


def _verdict(decision: Decision, evaluation: Artifact) -> Verdict:
    passed = decision.outcome == "PROMOTE"
    return Verdict(
        "release_decision", passed, evaluation.content_hash, decision.summary, decision.checks, _figures(decision)
    )


def _figures(decision: Decision) -> dict[str, Json]:
    """The figures a dashboard wants; all of them are in decision.json."""
    all_: Any = decision.figures
    gain = all_["gain"] or {}
    return {
        "outcome": decision.outcome,
        "difference": gain.get("difference"),
        "interval": gain.get("interval"),
        "over": gain.get("over"),
        "smallest_gain_shown": all_["smallest_gain_shown"],
        "rows_needed": all_["rows_needed"],
        "test_set_decisions": all_["findings"]["reuse"]["adapters"],
    }


def _decision_summary(decision: Decision) -> dict[str, Json]:
    return {**_figures(decision), "rows": decision.figures["rows"], "reason": decision.summary}


def _lineage(context: StageContext) -> dict[str, str]:
    names = ("data_split", "base_model", "adapter", "eval_report", "release_decision")
    return {name: context.inputs[name].content_hash for name in names}


def _tags(context: StageContext) -> dict[str, str]:
    """What the registry can be searched by, and what another machine needs to check the files."""
    lineage = _lineage(context)
    return {
        "adapter": lineage["adapter"],
        "data": lineage["data_split"],
        "base": lineage["base_model"],
        "evaluation": lineage["eval_report"],
        "decision": lineage["release_decision"],
        "license": context.task.base.license,
        "use": context.task.use,
        "sha256": context.inputs["adapter"].manifest["files"]["adapter_model.safetensors"]["sha256"],
    }


def _description(decision: Decision) -> str:
    return decision.summary[:1000]  # the registry's column holds 5000 characters on a server's database


def _facts(context: StageContext, name: str, version: int, run_id: str) -> dict[str, Json]:
    lineage = _lineage(context)
    return {
        "name": name,
        "version": version,
        "run_id": run_id,
        "adapter": lineage["adapter"],
        "evaluation": lineage["eval_report"],
        "decision": lineage["release_decision"],
        "data": lineage["data_split"],
        "base": lineage["base_model"],
        "registered_at": context.now,
    }


def _registration(context: StageContext, version: int, decision: Decision) -> Registration:
    adapter, base = context.inputs["adapter"], context.inputs["base_model"].json("base_model.json")
    checksums = {name: str(file["sha256"]) for name, file in adapter.manifest["files"].items()}
    return Registration(
        task=context.task,
        version=version,
        decision=decision,
        base=base,
        accounting=context.inputs["data_split"].json("accounting.json"),
        training=adapter.json("training.json"),
        memorization=context.inputs["eval_report"].json("report.json").get("memorization"),
        checksums={**checksums, "base model weights": str(base["weights_sha256"])},
        lineage={**_lineage(context), "mlflow run": str(adapter.json("training.json")["mlflow_run_id"])},
        at=context.now,
    )

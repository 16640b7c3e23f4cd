"""The two assets of the release: the decision on one adapter, and its version in the model registry.

    release_decision   decision.json (records.Decision; its parts are in figures.py), decision.md; the verdict is about
                       the evaluation's content and passes for PROMOTE alone
    registered_model   model.json (registration.ModelRecord), MODEL_CARD.md; a version in MLflow with the alias
                       `challenger`

`registered_model` reads the decision again and requires that it is about this adapter and this evaluation, also when
the gate was passed before. An adapter is registered once: the same content gets the version that it has. The alias
`champion` is set by the deployment, after parity (serve/).
"""

from __future__ import annotations

from dataclasses import asdict

from finetune_pipeline.records import Artifact, Decision, Json, Verdict, dumps
from finetune_pipeline.release.card import card
from finetune_pipeline.release.decide import decide
from finetune_pipeline.release.evidence import evidence
from finetune_pipeline.release.figures import figures_of, reuse_of
from finetune_pipeline.release.holdout_reuse import HoldoutUse, count_reuse, record_use, recorded_uses, rules_hash
from finetune_pipeline.release.registration import description, model_record, promoted, registration, tags
from finetune_pipeline.release.report import markdown
from finetune_pipeline.store import StageContext, StageResult

ARTIFACT_PATH = "adapter"  # where the training's MLflow run keeps the adapter's files


def release_decision(context: StageContext) -> StageResult:
    """Decide on the current adapter. GateRefused when the evaluation is of another adapter, DataError when it did not
    score exactly the test rows of the current split."""
    rules, adapter = context.task.release, context.inputs["adapter"]
    tests = list(context.inputs["data_split"].examples("test.jsonl"))
    use = HoldoutUse(adapter.content_hash, rules_hash(rules), frozenset(row.id for row in tests))
    decision = decide(evidence(context, tests, count_reuse(recorded_uses(context.store), use)), rules)
    record_use(context.store, use, decision, context.now)
    (context.out / "decision.json").write_text(dumps(asdict(decision)), "utf-8")
    (context.out / "decision.md").write_text(markdown(decision, context.now), "utf-8")
    context.report.log(decision.summary)
    return StageResult(_summary(decision), _verdict(decision, context.inputs["eval_report"]))


def registered_model(context: StageContext) -> StageResult:
    """Register the promoted adapter in MLflow. GateRefused unless the decision is PROMOTE for this adapter and this
    evaluation; StorageError when the adapter's files are not those that were evaluated, or MLflow is away."""
    from finetune_pipeline import tracking

    adapter, name = context.inputs["adapter"], context.task.name
    decision = promoted(context.inputs["release_decision"], adapter, context.inputs["eval_report"])
    context.store.verify(adapter)
    run_id = tracking.delivered_run(name, str(adapter.json("training.json")["mlflow_run_id"]))
    version = tracking.find_version(name, "adapter", adapter.content_hash)
    new = version is None
    if version is None:
        about = tags(context), description(decision)
        version = tracking.register(name, run_id, ARTIFACT_PATH, *about, folder=adapter.folder)
    tracking.set_alias(name, "challenger", version)
    (context.out / "model.json").write_text(dumps(model_record(context, version, run_id)), "utf-8")
    page = card(registration(context, version, run_id, decision))
    (context.out / "MODEL_CARD.md").write_text(page, "utf-8")
    context.report.log(f"version {version} of {name} is " + ("new" if new else "this adapter, registered before"))
    return StageResult({"name": name, "version": version, "new": new, "mlflow_run_id": run_id, "alias": "challenger"})


def _verdict(decision: Decision, evaluation: Artifact) -> Verdict:
    passed = decision.outcome == "PROMOTE"
    figures = _headline(decision)
    return Verdict("release_decision", passed, evaluation.content_hash, decision.summary, decision.checks, figures)


def _headline(decision: Decision) -> dict[str, Json]:
    """The figures for a dashboard; all of them are in decision.json."""
    figures = figures_of(decision)
    gain = figures["gain"]
    return {
        "outcome": decision.outcome,
        "difference": gain["difference"] if gain else None,
        "interval": gain["interval"] if gain else None,
        "over": gain["over"] if gain else None,
        "smallest_gain_shown": figures["smallest_gain_shown"],
        "rows_needed": figures["rows_needed"],
        "adapters_on_test_set": reuse_of(figures)["adapters"],
    }


def _summary(decision: Decision) -> dict[str, Json]:
    return {**_headline(decision), "rows": figures_of(decision)["rows"], "reason": decision.summary}

"""What is written about a registered version: its tags in MLflow, model.json, and the values of its model card.

{"name": "support_tickets", "version": 4, "run_id": "1f0c…", "adapter": "9be0…", "evaluation": "51aa…",
 "decision": "07cd…", "data": "3fa9…", "base": "c01f…", "registered_at": "2026-01-05T10:00:00+00:00"}
"""

from __future__ import annotations

from hashlib import sha256
from typing import TypedDict

from finetune_pipeline.errors import GateRefused, StorageError
from finetune_pipeline.models.model_source import ModelFacts
from finetune_pipeline.models.trained_weights import HINT, method_of, weight_files
from finetune_pipeline.providers.record import FILE as PROVIDER_FILE
from finetune_pipeline.providers.record import ProviderRecord, read_record
from finetune_pipeline.records import Artifact, Check, Decision
from finetune_pipeline.release.card import Registration, TrainedBy
from finetune_pipeline.split.accounting import account_of
from finetune_pipeline.store import StageContext

MAX_DESCRIPTION = 1000  # characters; the registry's column holds 5000 on a server's database


class ModelRecord(TypedDict):
    """model.json. `run_id`: the MLflow run of the training; content hashes of the artifacts behind the version."""

    name: str
    version: int
    run_id: str
    adapter: str
    evaluation: str
    decision: str
    data: str
    base: str
    registered_at: str


def promoted(artifact: Artifact, adapter: Artifact, evaluation: Artifact) -> Decision:
    """The decision, if it is PROMOTE and about exactly these two. GateRefused otherwise."""
    row = artifact.json("decision.json")
    with artifact.reading("decision.json"):
        decision = Decision(**{**row, "checks": tuple(Check(**check) for check in row["checks"])})
    for what, decided, current in (
        ("adapter", decision.adapter, adapter.content_hash),
        ("evaluation", decision.evaluation, evaluation.content_hash),
    ):
        if decided != current:
            raise GateRefused(
                f"the decision is about {what} {decided}, and the current one is {current}",
                "materialize release_decision again",
            )
    if decision.outcome != "PROMOTE":
        raise GateRefused(
            f"adapter {adapter.content_hash} is not registered: {decision.summary}",
            "read decision.md; more test rows, more training data or another declaration make a new candidate",
        )
    return decision


def tags(context: StageContext) -> dict[str, str]:
    """What the registry can be searched by, and what another machine needs to check the files."""
    hashes = lineage(context)
    return {
        "adapter": hashes["adapter"],
        "data": hashes["data_split"],
        "base": hashes["base_model"],
        "evaluation": hashes["eval_report"],
        "decision": hashes["release_decision"],
        "license": context.task.base.license,
        "use": context.task.use,
        **_model_tags(context.inputs["adapter"]),
    }


def _model_tags(adapter: Artifact) -> dict[str, str]:
    """How it was trained, and the checksum of its weights, or of the record of a provider's model."""
    record = read_record(adapter.folder)
    method = trained_by(adapter, record)
    if record is None:
        return {"method": method, "sha256": weights_checksum(adapter)}
    named = {"provider": record.provider.name, "provider_model": record.model, "provider_url": record.base_url}
    return {"method": method, **named, "sha256": str(adapter.manifest["files"][PROVIDER_FILE]["sha256"])}


def trained_by(adapter: Artifact, record: ProviderRecord | None) -> TrainedBy:
    return "managed" if record else method_of(adapter.folder)


def weights_checksum(adapter: Artifact) -> str:
    """SHA-256 of the file of weights; where there are several, of their names and hashes."""
    files = adapter.manifest["files"]
    hashes = {name: str(files[name]["sha256"]) for name in weight_files(method_of(adapter.folder), files)}
    if not hashes:
        raise StorageError(f"{adapter.folder} holds no weights", HINT)
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return sha256("".join(f"{name}:{hash_}\n" for name, hash_ in hashes.items()).encode()).hexdigest()


def description(decision: Decision) -> str:
    return decision.summary[:MAX_DESCRIPTION]


def model_record(context: StageContext, version: int, run_id: str) -> ModelRecord:
    hashes = lineage(context)
    return {
        "name": context.task.name,
        "version": version,
        "run_id": run_id,
        "adapter": hashes["adapter"],
        "evaluation": hashes["eval_report"],
        "decision": hashes["release_decision"],
        "data": hashes["data_split"],
        "base": hashes["base_model"],
        "registered_at": context.now,
    }


def registration(context: StageContext, version: int, run_id: str, decision: Decision) -> Registration:
    """The values of the model card."""
    adapter = context.inputs["adapter"]
    base: ModelFacts = context.inputs["base_model"].json("base_model.json")
    checksums = {name: str(file["sha256"]) for name, file in adapter.manifest["files"].items()}
    record = read_record(adapter.folder)
    return Registration(
        task=context.task,
        version=version,
        decision=decision,
        base=base,
        accounting=account_of(context.inputs["data_split"]),
        training=adapter.json("training.json"),
        method=trained_by(adapter, record),
        provider=record,
        memorization=context.inputs["eval_report"].json("report.json").get("memorization"),
        checksums={**checksums, "base model weights": base["weights_sha256"]},
        lineage={**lineage(context), "mlflow run": run_id},
        at=context.now,
    )


def lineage(context: StageContext) -> dict[str, str]:
    """Asset -> content hash of what the version is made from."""
    names = ("data_split", "base_model", "adapter", "eval_report", "release_decision")
    return {name: context.inputs[name].content_hash for name in names}

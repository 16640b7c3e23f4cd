"""The two assets over a real store and a real MLflow on SQLite."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_pipeline.config import Task
from finetune_pipeline.errors import DataError, GateRefused, StorageError
from finetune_pipeline.records import Artifact, Example, ServedVersion, Verdict, write_jsonl
from finetune_pipeline.release.assets import registered_model, release_decision
from finetune_pipeline.release.card import LANGUAGE
from finetune_pipeline.release.evidence import dependent_rows
from finetune_pipeline.store import StageContext, StageResult, TaskStore, require_verdict
from finetune_pipeline.train.spec import SearchChoice, TrainingResult
from finetune_pipeline_tests.artifacts import example, finished, stage_context, task, task_store
from finetune_pipeline_tests.mlflow_registry import alias_version, version_tags
from finetune_pipeline_tests.release.evidence import bits, losses, scores

ROWS = 100
TOPICS = ("parcel", "kettle", "refund", "router", "invoice", "lamp", "watch", "heater", "fan", "camera")
Inputs = dict[str, Artifact]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return task_store(tmp_path, monkeypatch)


def declared() -> Task:
    return task(
        description="Sorts messages about parcels.",
        answer={"format": "label", "labels": ["delivery", "returns"]},
        sources=[{"path": "raw/test.csv", "license": "CC0-1.0"}],
        base={"path": "model", "license": "apache-2.0", "license_approval": "the legal department"},
    )


HEADER = (
    "Notice: this message was sent through the contact form of our web shop. Do not answer the sender by telephone; "
    "use the mail address that is stored with the order, attach the invoice where it is missing, and copy the "
    "warehouse if goods have to be collected. Questions about vouchers belong to accounting. The customer writes: "
)


def holdout_rows(prefix: str = "r", seed: int = 0, headers: int = 0) -> list[Example]:
    """Rows that are near duplicates of none of the others; the first ones begin with HEADER."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(list("abcdefghijklmnopqrstuvwxyz"), 9)) for _ in range(6 * ROWS)]
    texts = [f"{TOPICS[i % 10]} {' '.join(words[6 * i : 6 * i + 6])}" for i in range(ROWS)]
    return [example(f"{prefix}{i:04}", (i < headers) * HEADER + t, "delivery") for i, t in enumerate(texts)]


def commit_eval(
    store: TaskStore, adapter: Artifact, right: dict[str, Sequence[bool]], general: bool = True
) -> Artifact:
    live = asdict(ServedVersion(3, "9be0", "3fa9", "77c1", 20)) if "champion" in right else None
    with store.scratch("eval_report") as folder:
        write_jsonl(folder / "scores.jsonl", scores(right, slices=2))
        if general:
            rows = [{"id": f"t{i}", "base": b, "tuned": t} for i, (b, t) in enumerate(losses())]
            write_jsonl(folder / "general.jsonl", rows)
        (folder / "report.json").write_text(
            json.dumps({"rows": ROWS, "memorization": {"auc": 0.52}, "champion": live}), "utf-8"
        )
        facts = {"summary": {}, "inputs": {"adapter": adapter.content_hash}, "verdict": None}
        return store.commit("eval_report", adapter.content_hash + str(sum(right["tuned"])), folder, facts)


def adapter_of(store: TaskStore, weights: str, run_id: str = "0" * 32) -> Artifact:
    training = TrainingResult(
        mlflow_run_id=run_id,
        mlflow_experiment_id="1",
        method="lora",
        objective="sft",
        forward="packed",
        steps=12,
        kept_step=12,
        skipped_steps=0,
        seconds=3.5,
        tokens_per_second=900.0,
        rows=700,
        loss_first=2.0,
        loss_last=1.0,
        validation_loss_start=1.9,
        validation_loss=1.1,
        validation_score=0.8,
        validation_reward_accuracy=None,
        general_divergence=None,
        resumed_at=0,
        trainable_parameters=4000,
        precision="fp32",
        shared_prefix_tokens=20,
        supervised_tokens=8000,
        search=SearchChoice(7, 20, "loss", {"lora.r": 8}, "4be0"),
    )
    with store.scratch("adapter") as folder:
        (folder / "adapter_model.safetensors").write_bytes(weights.encode())
        (folder / "adapter_config.json").write_text("{}", "utf-8")
        (folder / "training.json").write_text(json.dumps(training.to_json()), "utf-8")
        return store.commit("adapter", f"key-{weights}", folder, {"summary": {}, "inputs": {}, "verdict": None})


def split_of(
    store: TaskStore, tests: list[Example], accounting: dict[str, Any], train: Sequence[Example] = ()
) -> Artifact:
    files: dict[str, Any] = {"train.jsonl": train, "validation.jsonl": [], "test.jsonl": tests}
    return finished(store, "data_split", {**files, "accounting.json": accounting})


def inputs_of(store: TaskStore, adapter: Artifact, right: dict[str, Sequence[bool]], general: bool = True) -> Inputs:
    accounting = {
        "raw": 900,
        "splits": {"train": 700, "validation": 60, "test": ROWS},
        "dropped": {"clean": {"html": 40}},
    }
    split = split_of(store, holdout_rows(), accounting)
    base = {"id": "tiny/base", "weights_sha256": "ab" * 32, "license": "apache-2.0"}
    return {
        "adapter": adapter,
        "eval_report": commit_eval(store, adapter, right, general),
        "data_split": split,
        "base_model": finished(store, "base_model", {"base_model.json": base}),
    }


GOOD: dict[str, Sequence[bool]] = {"zero_shot": bits(ROWS, 5), "few_shot": bits(ROWS, 40), "tuned": bits(ROWS, 85)}
BAD: dict[str, Sequence[bool]] = {"zero_shot": bits(ROWS, 5), "few_shot": bits(ROWS, 60), "tuned": bits(ROWS, 40)}


def commit(store: TaskStore, context: StageContext, result: StageResult, asset: str) -> Artifact:
    """What `materialize` does with a result."""
    facts: dict[str, Any] = {"summary": dict(result.summary), "inputs": {}, "verdict": None}
    if result.verdict:
        facts["verdict"] = result.verdict.to_json()
    return store.commit(asset, context.out.name, context.out, facts)


@pytest.fixture
def decided(store: TaskStore, tmp_path: Path) -> Callable[[Inputs], Artifact]:
    def decide(inputs: Inputs) -> Artifact:
        names = ("eval_report", "adapter", "data_split")
        context = stage_context(declared(), store, tmp_path, **{name: inputs[name] for name in names})
        return commit(store, context, release_decision(context), "release_decision")

    return decide


def test_a_promotion_is_a_verdict_on_the_evaluation(store: TaskStore, decided: Callable[[Inputs], Artifact]) -> None:
    inputs = inputs_of(store, adapter_of(store, "w"), GOOD)
    decision = decided(inputs)
    verdict: Verdict | None = decision.verdict
    assert verdict is not None
    assert (verdict.passed, verdict.about) == (True, inputs["eval_report"].content_hash)
    require_verdict(decision, "release_decision", inputs["eval_report"])
    assert decision.json("decision.json")["adapter"] == inputs["adapter"].content_hash
    assert decision.summary["outcome"] == "PROMOTE"
    page = decision.path("decision.md").read_text("utf-8")
    assert page.startswith("# PROMOTE")
    assert "| Base model, fixed examples (few_shot) | 40 of 100 (40 %) | 45.0 points |" in page
    assert "| better | yes |" in page
    assert "No version is live" in page


def test_a_rejection_is_stored_and_blocks(store: TaskStore, decided: Callable[[Inputs], Artifact]) -> None:
    inputs = inputs_of(store, adapter_of(store, "w"), BAD)
    decision = decided(inputs)
    assert decision.json("decision.json")["outcome"] == "REJECT"
    with pytest.raises(GateRefused, match="better than few_shot"):
        require_verdict(decision, "release_decision", inputs["eval_report"])


def test_a_candidate_worse_than_the_live_version_is_rejected_on_the_page_too(
    store: TaskStore, decided: Callable[[Inputs], Artifact]
) -> None:
    decision = decided(inputs_of(store, adapter_of(store, "w"), {**GOOD, "champion": bits(ROWS, 97)}))
    assert decision.json("decision.json")["outcome"] == "REJECT"
    assert decision.verdict is not None
    assert not decision.verdict.passed
    assert "no worse than live version 3" in decision.verdict.summary
    page = decision.path("decision.md").read_text("utf-8")
    assert "| Live version 3 (champion) | 97 of 100 (97 %) | -12.0 points |" in page
    assert "| not shown to be worse, a loss of 5.0 points or more excluded | **no: shown to be worse** |" in page


def test_without_general_texts_the_decision_warns(store: TaskStore, decided: Callable[[Inputs], Artifact]) -> None:
    decision = decided(inputs_of(store, adapter_of(store, "w"), GOOD, general=False))
    assert "not measured" in decision.path("decision.md").read_text("utf-8")


def test_the_fifth_adapter_on_one_test_set_is_a_warning(
    store: TaskStore, decided: Callable[[Inputs], Artifact]
) -> None:
    decisions = [decided(inputs_of(store, adapter_of(store, f"w{i}"), GOOD)) for i in range(5)]
    assert [a.summary["adapters_on_test_set"] for a in decisions] == [1, 2, 3, 4, 5]
    assert "holdout reuse" not in decisions[3].summary["reason"]
    assert "holdout reuse" in decisions[4].summary["reason"]


def test_an_evaluation_of_another_adapter_is_an_error(store: TaskStore, decided: Callable[[Inputs], Artifact]) -> None:
    inputs = inputs_of(store, adapter_of(store, "old"), GOOD)
    new = adapter_of(store, "new")
    with pytest.raises(GateRefused, match=new.content_hash):
        decided({**inputs, "adapter": new})


def test_an_evaluation_of_other_rows_is_an_error(store: TaskStore, decided: Callable[[Inputs], Artifact]) -> None:
    inputs = inputs_of(store, adapter_of(store, "w"), GOOD)
    other = split_of(store, holdout_rows()[1:], {})
    with pytest.raises(DataError, match="r0000"):
        decided({**inputs, "data_split": other})


def test_rows_are_dependent_by_group_and_by_near_duplicate() -> None:
    rows = [
        example("a", "where is my parcel, it should have been here on monday morning", "x", group="anna"),
        example("b", "my kettle leaks since yesterday and the kitchen is wet", "x", group="anna"),
        example("c", "where is my parcel? It should have been here on Monday morning!", "x"),
        example("d", "how do I reset the password of my account", "x", group="carl"),
    ]
    groups = dependent_rows(rows, "abcd", declared().split)
    assert groups["a"] == groups["b"] == groups["c"] is not None
    assert groups["d"] is None
    assert dependent_rows(rows, "ad", declared().split) == {"a": None, "d": None}, "b and c are not test rows"


def test_test_rows_that_share_only_a_header_are_independent(
    store: TaskStore, decided: Callable[[Inputs], Artifact]
) -> None:
    """30 test rows have it, too few to cut it from them; 130 rows of the split have it, so the split cut it."""
    tests = holdout_rows(headers=30)
    split = split_of(store, tests, {}, train=holdout_rows("t", seed=1, headers=ROWS))
    decision = decided({**inputs_of(store, adapter_of(store, "w"), GOOD), "data_split": split})
    assert decision.json("decision.json")["figures"]["findings"]["rows"]["independent"] == ROWS
    alone = dependent_rows(tests, {row.id for row in tests}, declared().split)
    assert sum(group is not None for group in alone.values()) == 30


# the registry -----------------------------------------------------------------------------------------------


def trained(store: TaskStore, weights: str) -> Artifact:
    """An adapter whose files lie in a real MLflow run, as training leaves them."""
    import mlflow

    from finetune_pipeline.tracking.client import connect
    from finetune_pipeline.tracking.delivery import experiment_id

    connect()
    client = mlflow.MlflowClient()
    run_id = str(client.create_run(experiment_id(store.task)).info.run_id)
    adapter = adapter_of(store, weights, run_id)
    client.log_artifacts(run_id, str(adapter.folder), "adapter")
    return adapter


def register(store: TaskStore, tmp_path: Path, inputs: Inputs, decision: Artifact) -> Artifact:
    context = stage_context(declared(), store, tmp_path, **inputs, release_decision=decision)
    return commit(store, context, registered_model(context), "registered_model")


def test_registration_is_complete_and_happens_once(
    store: TaskStore, tmp_path: Path, decided: Callable[[Inputs], Artifact]
) -> None:
    from huggingface_hub import ModelCard

    inputs = inputs_of(store, trained(store, "w1"), GOOD)
    decision = decided(inputs)
    registered = register(store, tmp_path, inputs, decision)
    facts = registered.json("model.json")
    assert facts["version"] == alias_version(store.task, "challenger") == 1
    assert facts["adapter"] == inputs["adapter"].content_hash
    assert facts["evaluation"] == inputs["eval_report"].content_hash
    tags = version_tags(store.task, 1)
    assert (tags["adapter"], tags["decision"]) == (inputs["adapter"].content_hash, decision.content_hash)
    assert (tags["data"], tags["license"]) == (inputs["data_split"].content_hash, "apache-2.0")
    assert alias_version(store.task, "champion") is None  # that is the deployment's, after parity

    head = ModelCard.load(registered.path("MODEL_CARD.md")).data
    assert (head.base_model, head.license, head.language) == ("tiny/base", "apache-2.0", LANGUAGE)
    assert head.eval_results[0].metric_value == 0.85
    text = registered.path("MODEL_CARD.md").read_text("utf-8")
    assert "the best of 20 trainings, compared by loss on validation rows" in text
    assert inputs["adapter"].manifest["files"]["adapter_model.safetensors"]["sha256"] in text
    assert "| dropped by clean: html | 40 |" in text
    assert "checked for internal use. Approval of that license: the legal department. The licenses of the data" in text
    assert "- steps: 12\n- kept_step: 12\n" in text

    again = register(store, tmp_path, inputs, decision)
    assert (again.json("model.json")["version"], again.summary["new"]) == (1, False)

    other = inputs_of(store, trained(store, "w2"), GOOD)
    assert register(store, tmp_path, other, decided(other)).json("model.json")["version"] == 2
    assert alias_version(store.task, "challenger") == 2


def test_only_a_promotion_of_this_adapter_and_evaluation_is_registered(
    store: TaskStore, tmp_path: Path, decided: Callable[[Inputs], Artifact]
) -> None:
    bad = inputs_of(store, adapter_of(store, "w"), BAD)
    with pytest.raises(GateRefused, match="not registered: REJECT"):
        register(store, tmp_path, bad, decided(bad))
    good = inputs_of(store, adapter_of(store, "w3"), GOOD)
    decision = decided(good)
    other = adapter_of(store, "never evaluated")
    with pytest.raises(GateRefused, match=f"adapter {good['adapter'].content_hash}"):
        register(store, tmp_path, {**good, "adapter": other}, decision)
    with pytest.raises(GateRefused, match=f"evaluation {good['eval_report'].content_hash}"):
        register(store, tmp_path, {**good, "eval_report": bad["eval_report"]}, decision)


def test_changed_weights_are_not_registered(
    store: TaskStore, tmp_path: Path, decided: Callable[[Inputs], Artifact]
) -> None:
    inputs = inputs_of(store, adapter_of(store, "w"), GOOD)
    decision = decided(inputs)
    inputs["adapter"].path("adapter_model.safetensors").write_bytes(b"other weights")
    with pytest.raises(StorageError, match="adapter_model"):
        register(store, tmp_path, inputs, decision)


def full_weights(store: TaskStore) -> Artifact:
    """The artifact of full weights in two files, in a real MLflow run."""
    import mlflow

    from finetune_pipeline.tracking.client import connect
    from finetune_pipeline.tracking.delivery import experiment_id

    connect()
    client = mlflow.MlflowClient()
    run_id = str(client.create_run(experiment_id(store.task)).info.run_id)
    training = adapter_of(store, "any", run_id).json("training.json")
    with store.scratch("adapter") as folder:
        for number in (1, 2):
            (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(bytes([number]))
        (folder / "config.json").write_text("{}", "utf-8")
        (folder / "weights.json").write_text('{"method": "full"}', "utf-8")
        (folder / "training.json").write_text(json.dumps(training), "utf-8")
        adapter = store.commit("adapter", "key-full", folder, {"summary": {}, "inputs": {}, "verdict": None})
    client.log_artifacts(run_id, str(adapter.folder), "adapter")
    return adapter


def test_full_weights_are_registered_with_the_checksum_of_all_their_files(
    store: TaskStore, tmp_path: Path, decided: Callable[[Inputs], Artifact]
) -> None:
    from hashlib import sha256

    from huggingface_hub import ModelCard

    inputs = inputs_of(store, full_weights(store), GOOD)
    registered = register(store, tmp_path, inputs, decided(inputs))
    tags = version_tags(store.task, 1)
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    lines = "".join(f"{name}:{sha256(bytes([i])).hexdigest()}\n" for i, name in enumerate(names, 1))
    assert (tags["method"], tags["sha256"]) == ("full", sha256(lines.encode()).hexdigest())
    head = ModelCard.load(registered.path("MODEL_CARD.md")).data
    assert (head.library_name, "lora" in head.tags) == ("transformers", False)


def test_an_adapter_is_registered_with_its_method(
    store: TaskStore, tmp_path: Path, decided: Callable[[Inputs], Artifact]
) -> None:
    from huggingface_hub import ModelCard

    inputs = inputs_of(store, trained(store, "w1"), GOOD)
    registered = register(store, tmp_path, inputs, decided(inputs))
    head = ModelCard.load(registered.path("MODEL_CARD.md")).data
    assert (version_tags(store.task, 1)["method"], head.library_name, head.tags[0]) == ("lora", "peft", "lora")

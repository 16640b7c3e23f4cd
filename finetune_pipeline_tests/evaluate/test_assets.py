"""The evaluation report with the tiny model, in real job processes."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.backends import launch
from finetune_pipeline.baseline.assets import baseline_report
from finetune_pipeline.baseline.figures import VariantFigures, variant_figures
from finetune_pipeline.config import Backend, Prompt, Task, Train
from finetune_pipeline.errors import GateRefused, StorageError
from finetune_pipeline.evaluate import job
from finetune_pipeline.evaluate.assets import eval_report, evaluation_request
from finetune_pipeline.evaluate.cost import cost
from finetune_pipeline.evaluate.request import EvaluationRequest
from finetune_pipeline.records import Answer, Artifact, ServedVersion, Silent, read_jsonl
from finetune_pipeline.store import StageResult, TaskStore
from finetune_pipeline_tests.artifacts import example, finished, stage_context, task_store
from finetune_pipeline_tests.baseline.color_task import TEST_ROWS, base_and_split, color_task, commit


@pytest.fixture
def declared(tiny_model: Path) -> Task:
    return color_task(tiny_model)


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: Task) -> tuple[TaskStore, dict[str, Artifact]]:
    store = task_store(tmp_path, monkeypatch)
    return store, base_and_split(store, declared)


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.5 * torch.randn(weight.shape, generator=generator)
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    return folder


def test_the_tuned_model_is_added_to_the_baselines(
    tmp_path: Path, declared: Task, inputs: tuple[TaskStore, dict[str, Artifact]], adapter: Path
) -> None:
    store, artifacts = inputs
    first = stage_context(declared, store, tmp_path, **artifacts)
    baseline_report(first)
    baseline = commit(store, first, "baseline_report")
    tuned = Artifact("adapter", "k", "c", adapter, {"files": {}, "inputs": {}})
    second = stage_context(declared, store, tmp_path, **artifacts, baseline_report=baseline, adapter=tuned)
    result = eval_report(second)
    report = json.loads((second.out / "report.json").read_text("utf-8"))
    assert list(report["variants"])[-1] == "tuned"
    assert report["variants"]["zero_shot"] == baseline.json("report.json")["variants"]["zero_shot"]
    assert len(list(read_jsonl(second.out / "answers.jsonl"))) == 5 * TEST_ROWS
    losses = list(read_jsonl(second.out / "general.jsonl"))
    assert len(losses) >= 60
    assert any(row["base"] != row["tuned"] for row in losses), "the adapter has to be off for the base"
    assert report["memorization"]["train_rows"] == TEST_ROWS
    assert report["cost"]["per_1000"]["tuned"] == pytest.approx(24.0)
    assert "champion" not in report
    assert isinstance(result, StageResult)
    assert {"tuned", "general_rise", "memorization_auc"} <= set(result.summary)
    assert "<svg" in (second.out / "report.html").read_text("utf-8")


def test_the_live_version_answers_the_same_rows_as_it_is_served(
    tmp_path: Path, declared: Task, inputs: tuple[TaskStore, dict[str, Artifact]], adapter: Path
) -> None:
    """Beside the candidate, under the system prompt it was trained with; another prompt, other answers."""
    store, artifacts = inputs
    old = declared.model_copy(update={"prompt": Prompt(system="Name the color of the door, please.")})
    live = committed(store, "adapter", adapter, old)
    base = committed(store, "base_model", artifacts["base_model"].folder, declared)
    version = ServedVersion(3, live.content_hash, live.key, base.content_hash, 5)
    baseline = finished(
        store, "baseline_report", {"answers.jsonl": [], "scores.jsonl": [], "report.json": {"variants": {}}}
    )
    context = stage_context(
        answers_only(declared), store, tmp_path, **artifacts, baseline_report=baseline, adapter=live
    )
    context = replace(context, fingerprint=asdict(version))
    eval_report(context)
    report = json.loads((context.out / "report.json").read_text("utf-8"))
    assert report["champion"] == asdict(version)
    assert list(report["variants"]) == ["champion", "tuned"]
    answers = {(row["variant"], row["id"]): row for row in read_jsonl(context.out / "answers.jsonl")}
    assert len(answers) == 2 * TEST_ROWS
    assert all(answers["champion", f"q{i}"]["completion_tokens"] <= 5 for i in range(TEST_ROWS))
    lengths = {name: answers[name, "q0"]["prompt_tokens"] for name in ("champion", "tuned")}
    assert lengths["champion"] > lengths["tuned"]
    page = (context.out / "report.html").read_text("utf-8")
    assert "Live version 3 has" in page


def test_both_models_answer_in_one_process_of_the_backend(
    tmp_path: Path,
    declared: Task,
    inputs: tuple[TaskStore, dict[str, Artifact]],
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Backend] = []

    def in_this_process(module: str, spec: EvaluationRequest, *others: Any) -> Any:
        seen.append(others[-1])
        return job.run(EvaluationRequest.from_json(spec.to_json()), Silent())

    monkeypatch.setattr(launch, "run", in_this_process)
    store, artifacts = inputs
    backend = {"kind": "kubernetes", "nodes": 2, "processes_per_node": 8}
    backend |= {"kubernetes": {"image": "a@sha256:1", "volume_claim": "data", "mount_path": str(tmp_path)}}
    spread = answers_only(declared).model_copy(update={"train": Train.model_validate({"backend": backend})})
    live = committed(store, "adapter", adapter, spread)
    base = committed(store, "base_model", artifacts["base_model"].folder, spread)
    version = ServedVersion(3, live.content_hash, live.key, base.content_hash, 5)
    files = {"answers.jsonl": [], "scores.jsonl": [], "report.json": {"variants": {}}}
    baseline = finished(store, "baseline_report", files)
    context = stage_context(spread, store, tmp_path, **artifacts, baseline_report=baseline, adapter=live)
    eval_report(replace(context, fingerprint=asdict(version)))
    assert [(each.kind, each.nodes, each.processes_per_node) for each in seen] == [("kubernetes", 1, 1)] * 2


def test_a_live_version_with_missing_files_is_named(
    tmp_path: Path, declared: Task, inputs: tuple[TaskStore, dict[str, Artifact]], adapter: Path
) -> None:
    store, artifacts = inputs
    baseline = finished(store, "baseline_report", {"answers.jsonl": [], "scores.jsonl": []})
    tuned = Artifact("adapter", "k", "c", adapter, {"files": {}, "inputs": {}})
    context = stage_context(declared, store, tmp_path, **artifacts, baseline_report=baseline, adapter=tuned)
    missing = asdict(ServedVersion(3, "gone", "gone", artifacts["base_model"].content_hash, 5))
    with pytest.raises(StorageError, match="version 3 is live, and its adapter gone"):
        eval_report(replace(context, fingerprint=missing))


def committed(store: TaskStore, asset: str, files: Path, declared: Task) -> Artifact:
    """The files as an artifact that was made under this declaration."""
    plain = {name: getattr(declared, name).model_dump(mode="json", by_alias=True) for name in ("base", "prompt")}
    with store.scratch(asset) as scratch:
        shutil.copytree(files, scratch, dirs_exist_ok=True)
        return store.commit(
            asset, f"{asset} made", scratch, {"summary": {}, "inputs": {}, "declaration": plain, "verdict": None}
        )


def answers_only(declared: Task) -> Task:
    evaluate = declared.evaluate.model_copy(update={"general": False, "memorization": False})
    return declared.model_copy(update={"evaluate": evaluate})


def test_baselines_on_other_rows_are_refused(
    tmp_path: Path, declared: Task, inputs: tuple[TaskStore, dict[str, Artifact]]
) -> None:
    store, artifacts = inputs
    old = finished(
        store, "baseline_report", {"answers.jsonl": [Answer("gone", "zero_shot", "red")], "scores.jsonl": []}
    )
    with pytest.raises(GateRefused, match="the baselines answered other rows"):
        eval_report(stage_context(declared, store, tmp_path, **artifacts, baseline_report=old, adapter=old))


def test_a_request_survives_json_and_a_missing_key_is_named(
    tmp_path: Path, declared: Task, inputs: tuple[TaskStore, dict[str, Artifact]], adapter: Path
) -> None:
    store, artifacts = inputs
    tuned = Artifact("adapter", "k", "c", adapter, {"files": {}, "inputs": {}})
    request = evaluation_request(stage_context(declared, store, tmp_path, **artifacts, adapter=tuned), tmp_path)
    row = json.loads(json.dumps(request.to_json()))
    assert EvaluationRequest.from_json(row) == request
    del row["answers"]["base"]
    with pytest.raises(StorageError, match=r"EvaluationRequest: answers\.base: Field required"):
        EvaluationRequest.from_json(row)


def test_without_requests_there_is_no_hosting_per_answer(declared: Task) -> None:
    def figures(variant: str) -> VariantFigures:
        return variant_figures(
            {"a": example("a", "q", "red")}, [Answer("a", variant, "red", 90, 10)], [], declared.answer
        )

    prices = declared.suitability.model_copy(update={"requests_per_day": 0, "prompted_price": 2.0})
    variants = {name: figures(name) for name in ("zero_shot", "tuned", "classical")}
    assert cost(variants, prices)["per_1000"] == {"zero_shot": 0.2}

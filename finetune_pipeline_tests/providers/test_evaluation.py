"""A provider's model in baselines, evaluation, decision and registry, over a real store and real job processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from finetune_pipeline.baseline.assets import baseline_report
from finetune_pipeline.config import Release, Task
from finetune_pipeline.errors import ServingError
from finetune_pipeline.evaluate.assets import eval_report
from finetune_pipeline.records import Artifact, read_jsonl
from finetune_pipeline.release.assets import registered_model, release_decision
from finetune_pipeline.release.decide import decide
from finetune_pipeline.release.registration import tags
from finetune_pipeline.store import TaskStore
from finetune_pipeline.train.assets import adapter
from finetune_pipeline_tests.artifacts import finished, stage_context, task_store
from finetune_pipeline_tests.baseline.color_task import TEST_ROWS, base_and_split, commit, rows
from finetune_pipeline_tests.mlflow_registry import version_tags
from finetune_pipeline_tests.providers.conftest import managed
from finetune_pipeline_tests.providers.fake_provider import KEY, MODEL, FakeProvider
from finetune_pipeline_tests.release.evidence import bits, evidence
from finetune_pipeline_tests.release.test_assets import GOOD
from finetune_pipeline_tests.release.test_assets import commit as commit_result
from finetune_pipeline_tests.release.test_assets import inputs_of as release_inputs

WHY = "it answers one closed question, and is asked nothing else"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    return task_store(tmp_path, monkeypatch)


def inputs_of(store: TaskStore, declared: Task) -> dict[str, Artifact]:
    split = {"train.jsonl": rows("t", 30), "validation.jsonl": rows("v", 6), "test.jsonl": rows("q", TEST_ROWS)}
    return base_and_split(store, declared) | {"data_split": finished(store, "data_split", split)}


def trained(store: TaskStore, declared: Task, tmp_path: Path, inputs: dict[str, Artifact]) -> Artifact:
    context = stage_context(declared, store, tmp_path, **inputs)
    adapter(context)
    files = {path.name: json.loads(path.read_text("utf-8")) for path in context.out.glob("*.json")}
    return finished(store, "adapter", {**files, "history.jsonl": list(read_jsonl(context.out / "history.jsonl"))})


def test_prompts_and_tuned_model_are_answered_at_the_provider(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    declared = managed(tiny_model, url)
    inputs = inputs_of(store, declared)
    provider.answers = {row.prompt: row.completion for row in rows("q", TEST_ROWS)}
    first = stage_context(declared, store, tmp_path, **inputs)
    baseline_report(first)
    assert {chat["model"] for chat in provider.chats} == {MODEL}, "prompts are answered by the model that is tuned"
    assert all("response_format" in chat for chat in provider.chats)
    inputs["baseline_report"] = commit(store, first, "baseline_report")
    inputs["adapter"] = trained(store, declared, tmp_path, inputs)
    tuned_name = inputs["adapter"].json("provider.json")["model"]
    second = stage_context(declared, store, tmp_path, **inputs)
    eval_report(second)
    tuned = [chat for chat in provider.chats if chat["model"] == tuned_name]
    assert len(tuned) == TEST_ROWS
    assert tuned[0]["messages"][0] == {"role": "system", "content": "Say the color."}
    report = json.loads((second.out / "report.json").read_text("utf-8"))
    assert report["variants"]["tuned"]["exact"] == 1.0
    assert "general" not in report
    assert "precision" not in report, "what the provider computes in is not known"
    assert report["not_measured"]["general"] == "the provider's API gives no likelihood of a given text"
    figures = report["variants"]["tuned"]
    price = (figures["prompt_tokens"] * 0.8 + figures["completion_tokens"] * 3.2) / 1000
    assert report["cost"]["per_1000"]["tuned"] == pytest.approx(price, abs=1e-4)
    page = (second.out / "report.html").read_text("utf-8")
    assert "Not measured: general ability" in page
    assert "at the prices declared under train.provider" in page
    assert not any(KEY in path.read_text("utf-8") for path in second.out.iterdir())


def test_an_interrupted_evaluation_sends_no_row_twice(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    declared = managed(tiny_model, url, requests_at_once=1).model_copy(
        update={"baseline": managed(tiny_model, url).baseline.model_copy(update={"variants": ("zero_shot",)})}
    )
    context = stage_context(declared, store, tmp_path, **inputs_of(store, declared))
    provider.faults = {("POST", "/chat"): [0, 0, 0, 0, 400]}
    with pytest.raises(ServingError):
        baseline_report(context)
    baseline_report(context)
    assert len(provider.chats) == TEST_ROWS
    assert len(list(read_jsonl(context.out / "answers.jsonl"))) == TEST_ROWS


RIGHT = {"few_shot": bits(135, 60), "tuned": bits(135, 112)}


def test_general_ability_that_cannot_be_measured_is_not_shown() -> None:
    """The same answers are promoted where the loss on general texts was measured."""
    assert decide(evidence(RIGHT), Release()).outcome == "PROMOTE"
    unmeasured = replace(evidence(RIGHT), general=None, unmeasurable="the API gives no likelihoods")
    decision = decide(unmeasured, Release())
    assert decision.outcome == "INCONCLUSIVE"
    assert "not decided: general ability kept" in decision.summary
    assert "give a reason in `release.general_waiver`" in decision.summary
    assert "train a better model" not in decision.summary


def test_a_declared_reason_waives_it_and_is_shown() -> None:
    unmeasured = replace(evidence(RIGHT), general=None, unmeasurable="the API gives no likelihoods")
    decision = decide(unmeasured, Release(general_waiver=WHY))
    assert decision.outcome == "PROMOTE"
    check = next(check for check in decision.checks if check.name == "general ability kept")
    assert (check.passed, check.severity) == (False, "warning")
    assert WHY in check.observed


def test_the_waiver_covers_nothing_that_was_measured() -> None:
    lost = evidence(RIGHT, [(1.0, 1.5), (2.0, 3.1), (1.5, 2.2)] * 20)
    assert decide(lost, Release(general_waiver=WHY)).outcome == "REJECT"


def test_a_waiver_does_not_hide_that_no_gain_is_shown() -> None:
    same = replace(evidence({"few_shot": bits(100, 60), "tuned": bits(100, 60)}), general=None, unmeasurable="no")
    assert "train a better model; general ability cannot be measured" in decide(same, Release()).summary


def test_decision_and_registry_name_the_providers_model(
    tiny_model: Path, tmp_path: Path, store: TaskStore, url: str
) -> None:
    declared = managed(tiny_model, url)
    inputs = inputs_of(store, declared)
    inputs["adapter"] = trained(store, declared, tmp_path, inputs)
    inputs["baseline_report"] = finished(
        store, "baseline_report", {"answers.jsonl": [], "scores.jsonl": [], "report.json": {"variants": {}}}
    )
    context = stage_context(declared, store, tmp_path, **inputs)
    eval_report(context)
    report = commit(store, context, "eval_report")
    manifest = {**report.manifest, "inputs": {"adapter": inputs["adapter"].content_hash}}
    inputs["eval_report"] = replace(report, manifest=manifest)
    second = stage_context(declared, store, tmp_path, **inputs)
    verdict = release_decision(second).verdict
    assert verdict is not None
    assert not verdict.passed
    decision = json.loads((second.out / "decision.json").read_text("utf-8"))
    inputs["release_decision"] = finished(store, "release_decision", {"decision.json": decision})
    named = tags(stage_context(declared, store, tmp_path, **inputs))
    assert named["provider_model"].startswith(f"ft:{MODEL}")
    assert named["provider_url"] == url
    assert named["method"] == "managed"
    assert named["sha256"] == inputs["adapter"].manifest["files"]["provider.json"]["sha256"]


def test_a_registered_version_names_the_providers_model_and_its_limits(
    tiny_model: Path, tmp_path: Path, store: TaskStore, url: str
) -> None:
    from huggingface_hub import ModelCard

    declared = managed(tiny_model, url).model_copy(update={"release": Release(general_waiver=WHY)})
    named = trained(store, declared, tmp_path, inputs_of(store, declared))
    inputs = release_inputs(store, named, GOOD, general=False)
    report = inputs["eval_report"].path("report.json")
    report.write_text(json.dumps({**json.loads(report.read_text("utf-8")), "not_measured": {"general": "no"}}), "utf-8")
    context = stage_context(declared, store, tmp_path, **inputs)
    decision = commit_result(store, context, release_decision(context), "release_decision")
    second = stage_context(declared, store, tmp_path, **inputs, release_decision=decision)
    registered_model(second)
    card = second.out / "MODEL_CARD.md"
    head, text = ModelCard.load(card).data, card.read_text("utf-8")
    assert (head.base_model, head.license, head.library_name) == (MODEL, "other", "openai")
    assert head.tags[0] == "managed"
    assert "lora" not in head.tags
    assert f"at {url}: its weights are not here" in text
    assert WHY in text
    assert version_tags(store.task, 1)["provider_model"] == named.json("provider.json")["model"]

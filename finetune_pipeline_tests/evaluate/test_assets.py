"""Both reports with the tiny model, in real job processes."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from finetune_pipeline.config import Prompt, Task
from finetune_pipeline.errors import GateRefused, JobCancelled, StorageError
from finetune_pipeline.evaluate import job
from finetune_pipeline.evaluate.answer_log import AnswerFile
from finetune_pipeline.evaluate.assets import baseline_report, cost, eval_report, job_spec
from finetune_pipeline.records import Answer, Artifact, ServedVersion, Silent, read_jsonl
from finetune_pipeline.store import StageContext, StageResult, TaskStore
from finetune_pipeline_tests.artifacts import example, finished, stage_context, task, task_store

LABELS = ("red", "green", "blue")


def rows(prefix: str, count: int) -> list[object]:
    dice = random.Random(prefix)
    return [example(f"{prefix}{i}", f"{dice.choice(LABELS)} door {i}", dice.choice(LABELS)) for i in range(count)]


@pytest.fixture
def declared(tiny_model: Path) -> Task:
    return task(
        base={"path": str(tiny_model), "license": "apache-2.0"},
        answer={"format": "label", "labels": LABELS},
        prompt={"system": "Say the color."},
        baseline={"shots": 2},
        evaluate={"batch_size": 4},
        suitability={"hosting_per_month": 73.0, "requests_per_day": 100},
    )


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: Task) -> tuple[TaskStore, dict[str, Artifact]]:
    from finetune_pipeline.models.model_source import prepare

    store = task_store(tmp_path, monkeypatch)
    _, facts = prepare(declared.base, store.task, Silent())
    base = finished(store, "base_model", {"base_model.json": facts})
    split = finished(store, "data_split", {"train.jsonl": rows("t", 30), "test.jsonl": rows("q", 9)})
    return store, {"base_model": base, "data_split": split}


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    random_ = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.5 * torch.randn(weight.shape, generator=random_)
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    return folder


class CancelAfter(Silent):
    """Cancels once two answers were told."""

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        if done >= 2:
            raise JobCancelled("stopped", "run again")


def commit(store: TaskStore, made: StageContext, asset: str) -> Artifact:
    files = {p.name: list(read_jsonl(p)) for p in made.out.glob("*.jsonl")}
    report = json.loads((made.out / "report.json").read_text("utf-8"))
    return finished(store, asset, {**files, "report.json": report})


def test_both_reports(
    tmp_path: Path, declared: Task, inputs: tuple[TaskStore, dict[str, Artifact]], adapter: Path
) -> None:
    store, artifacts = inputs
    first = stage_context(declared, store, tmp_path, **artifacts)
    outcome = baseline_report(first)
    report = json.loads((first.out / "report.json").read_text("utf-8"))
    assert set(report["variants"]) == {"zero_shot", "few_shot", "few_shot_retrieved", "classical"}
    assert all(figure["rows"] == 9 for figure in report["variants"].values())
    assert report["variants"]["few_shot"]["prompt_tokens"] > report["variants"]["zero_shot"]["prompt_tokens"]
    assert outcome.summary["rows"] == 9
    assert outcome.unfinished == store.local_root / "07_baseline" / "answers" / "key"  # goes when the report is stored

    baseline = commit(store, first, "baseline_report")
    tuned = Artifact("adapter", "k", "c", adapter, {"files": {}})
    second = stage_context(declared, store, tmp_path, **artifacts, baseline_report=baseline, adapter=tuned)
    outcome = eval_report(second)
    report = json.loads((second.out / "report.json").read_text("utf-8"))
    assert list(report["variants"])[-1] == "tuned"
    assert report["variants"]["zero_shot"] == baseline.json("report.json")["variants"]["zero_shot"]
    assert len(list(read_jsonl(second.out / "answers.jsonl"))) == 5 * 9
    losses = list(read_jsonl(second.out / "general.jsonl"))
    assert len(losses) >= 60
    assert any(row["base"] != row["tuned"] for row in losses), "the adapter has to be off for the base"
    assert report["memorization"]["train_rows"] == 9
    assert report["cost"]["per_1000"]["tuned"] == pytest.approx(24.0)
    assert isinstance(outcome, StageResult)
    assert {"tuned", "general_rise", "memorization_auc"} <= set(outcome.summary)
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
    made = stage_context(quick(declared), store, tmp_path, **artifacts, baseline_report=baseline, adapter=live)
    made = replace(made, fingerprint=asdict(version))
    eval_report(made)
    report = json.loads((made.out / "report.json").read_text("utf-8"))
    assert report["champion"] == asdict(version)
    assert list(report["variants"]) == ["champion", "tuned"]
    said = {(row["variant"], row["id"]): row for row in read_jsonl(made.out / "answers.jsonl")}
    assert len(said) == 2 * 9
    assert all(said["champion", f"q{i}"]["completion_tokens"] <= 5 for i in range(9))
    lengths = {name: said[name, "q0"]["prompt_tokens"] for name in ("champion", "tuned")}
    assert lengths["champion"] > lengths["tuned"]
    page = (made.out / "report.html").read_text("utf-8")
    assert "Live version 3 reaches" in page


def test_a_live_version_whose_files_are_gone_is_named(
    tmp_path: Path, declared: Task, inputs: tuple[TaskStore, dict[str, Artifact]], adapter: Path
) -> None:
    store, artifacts = inputs
    baseline = finished(store, "baseline_report", {"answers.jsonl": [], "scores.jsonl": []})
    tuned = Artifact("adapter", "k", "c", adapter, {"files": {}})
    made = stage_context(declared, store, tmp_path, **artifacts, baseline_report=baseline, adapter=tuned)
    gone = asdict(ServedVersion(3, "gone", "gone", artifacts["base_model"].content_hash, 5))
    with pytest.raises(StorageError, match="version 3 is live, and its adapter gone"):
        eval_report(replace(made, fingerprint=gone))


def committed(store: TaskStore, asset: str, files: Path, declared: Task) -> Artifact:
    """The files as an artifact that was made under this declaration."""
    plain = {name: getattr(declared, name).model_dump(mode="json", by_alias=True) for name in ("base", "prompt")}
    with store.scratch(asset) as scratch:
        shutil.copytree(files, scratch, dirs_exist_ok=True)
        return store.commit(asset, f"{asset} made", scratch, {"summary": {}, "declaration": plain, "verdict": None})


def quick(declared: Task) -> Task:
    evaluate = declared.evaluate.model_copy(update={"general": False, "memorization": False})
    return declared.model_copy(update={"evaluate": evaluate})


def test_a_stopped_evaluation_goes_on_where_it_was(
    tmp_path: Path, declared: Task, inputs: tuple[TaskStore, dict[str, Artifact]]
) -> None:
    store, artifacts = inputs
    only = declared.model_copy(
        update={
            "baseline": declared.baseline.model_copy(update={"variants": ("zero_shot",)}),
            "evaluate": declared.evaluate.model_copy(update={"batch_size": 2, "max_new_tokens": 20}),
        }
    )
    first = stage_context(only, store, tmp_path, **artifacts)
    partial = store.local_root / "07_baseline" / "answers" / "key"
    with pytest.raises(JobCancelled):
        job.run(job_spec(first, partial, ["zero_shot"]), CancelAfter())
    kept = partial / "answers.jsonl"
    before = kept.read_text("utf-8").splitlines()
    assert 2 <= len(before) < 9
    kept.write_text("\n".join(before) + '\n{"id": "cut o', "utf-8")
    baseline_report(first)
    answers = (first.out / "answers.jsonl").read_text("utf-8").splitlines()
    assert answers[: len(before)] == before, "what was answered is not answered again"
    assert len({json.loads(line)["id"] for line in answers}) == len(answers) == 9


def test_a_baseline_of_other_rows_is_refused(
    tmp_path: Path, declared: Task, inputs: tuple[TaskStore, dict[str, Artifact]]
) -> None:
    store, artifacts = inputs
    old = finished(
        store, "baseline_report", {"answers.jsonl": [Answer("gone", "zero_shot", "red")], "scores.jsonl": []}
    )
    with pytest.raises(GateRefused, match="the baseline answered other rows"):
        eval_report(stage_context(declared, store, tmp_path, **artifacts, baseline_report=old, adapter=old))


def test_lines_are_kept_whatever_stands_in_them(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answer = Answer("a", "tuned", "line\u2028separator\n")
    AnswerFile(path).append(answer)
    assert AnswerFile(path).answers == [answer]


def test_cost_without_traffic_has_no_share_of_the_hosting(declared: Task) -> None:
    prices = declared.suitability.model_copy(update={"requests_per_day": 0, "prompted_price": 2.0})
    variants = {"zero_shot": {"prompt_tokens": 90, "completion_tokens": 10}, "tuned": {}, "classical": {}}
    assert cost(variants, prices)["per_1000"] == {"zero_shot": 0.2}

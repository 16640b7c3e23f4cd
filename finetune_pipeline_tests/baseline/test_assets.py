"""The baseline report with the tiny model, in a real job process."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.backends import launch
from finetune_pipeline.baseline import job
from finetune_pipeline.baseline.answer_log import AnswerFile
from finetune_pipeline.baseline.answering import AnswerCounts, AnswerRequest, answer_request, run_job
from finetune_pipeline.baseline.assets import baseline_report
from finetune_pipeline.config import Backend, Baseline, Provider, Task, Train
from finetune_pipeline.errors import JobCanceled, StorageError
from finetune_pipeline.providers.record import ProviderModel
from finetune_pipeline.records import Answer, Artifact, Silent, read_jsonl
from finetune_pipeline.store import TaskStore
from finetune_pipeline_tests.artifacts import stage_context, task_store
from finetune_pipeline_tests.baseline.color_task import TEST_ROWS, base_and_split, color_task


@pytest.fixture
def declared(tiny_model: Path) -> Task:
    return color_task(tiny_model)


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: Task) -> tuple[TaskStore, dict[str, Artifact]]:
    store = task_store(tmp_path, monkeypatch)
    return store, base_and_split(store, declared)


class CancelAfterTwoAnswers(Silent):
    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        if done >= 2:
            raise JobCanceled("stopped", "run again")


def test_every_variant_answers_every_test_row(
    tmp_path: Path, declared: Task, inputs: tuple[TaskStore, dict[str, Artifact]]
) -> None:
    store, artifacts = inputs
    context = stage_context(declared, store, tmp_path, **artifacts)
    result = baseline_report(context)
    report = json.loads((context.out / "report.json").read_text("utf-8"))
    assert set(report["variants"]) == {"zero_shot", "few_shot", "few_shot_retrieved", "classical"}
    assert all(figures["rows"] == TEST_ROWS for figures in report["variants"].values())
    assert all(0 <= figures["metrics"]["macro_f1"] <= 1 for figures in report["variants"].values())
    assert report["variants"]["few_shot"]["prompt_tokens"] > report["variants"]["zero_shot"]["prompt_tokens"]
    assert result.summary["rows"] == TEST_ROWS
    assert result.unfinished == Path(str(store.root)) / "07_baseline" / "answers" / "key"  # removed once stored
    assert "<svg" in (context.out / "report.html").read_text("utf-8")


def test_on_a_backend_the_answers_are_those_of_this_machine(
    tmp_path: Path, declared: Task, inputs: tuple[TaskStore, dict[str, Artifact]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process of the backend that trains, whatever the training gets."""
    store, artifacts = inputs
    short = declared.model_copy(update={"baseline": Baseline(variants=("zero_shot",))})
    answers = []
    for kind in ("local", "torchrun"):
        (tmp_path / "backend.yaml").write_text(f"kind: {kind}\nprocesses_per_node: {1 + (kind != 'local')}\n", "utf-8")
        monkeypatch.setenv("FINETUNE_BACKEND", str(tmp_path / "backend.yaml"))
        context = stage_context(short, store, tmp_path, **artifacts)
        left = baseline_report(context).unfinished
        answers.append([(row["id"], row["text"]) for row in read_jsonl(context.out / "answers.jsonl")])
        assert left is not None and bool(list(left.glob("launch-*"))) is (kind == "torchrun")
        shutil.rmtree(left)
    assert answers[0] == answers[1] and len(answers[0]) == TEST_ROWS


def test_the_job_is_one_process_and_reads_from_any_folder(
    tmp_path: Path, declared: Task, inputs: tuple[TaskStore, dict[str, Artifact]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Backend] = []

    def recorded(module: str, spec: AnswerRequest, *others: Any) -> AnswerCounts:
        seen.append(others[-1])
        return AnswerCounts(0, 0, None)

    monkeypatch.setattr(launch, "run", recorded)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINETUNE_DATA", "data")
    _, artifacts = inputs
    backend = {"kind": "ray", "nodes": 2, "processes_per_node": 4}
    spread = declared.model_copy(update={"train": Train.model_validate({"backend": backend})})
    context = stage_context(spread, TaskStore("colors"), tmp_path, **artifacts)
    request = answer_request(context, Path("answers"), ["zero_shot"])
    assert all(path.is_absolute() for path in (request.base, request.split, request.partial))
    run_job("a.job", request, request, Silent())
    assert (seen[0].kind, seen[0].nodes, seen[0].processes_per_node) == ("ray", 1, 1)
    assert request.task.train.provider is None
    managed = ProviderModel(Provider(model="gpt", price_per_million_training_tokens=1.0), "gpt")
    run_job("a.job", request, replace(request, provider=managed), Silent())
    assert seen[1].kind == "local", "a provider's key is in the environment of this machine"


def test_few_shot_prompts_have_fewer_examples_where_the_context_is_short(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model as a Mistral, whose weights have the same names; its window is no limit."""
    folder, limit, longest = Path(shutil.copytree(tiny_model, tmp_path / "short")), 8, 80
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 16}
    config |= {"max_position_embeddings": longest}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    store, declared = task_store(tmp_path, monkeypatch), color_task(folder)
    declared = declared.model_copy(
        update={"evaluate": declared.evaluate.model_copy(update={"max_new_tokens": limit})},
    )
    context = stage_context(declared, store, tmp_path, **base_and_split(store, declared))
    request = answer_request(context, tmp_path / "answers", ["zero_shot", "few_shot"])
    job.run(request, Silent())
    log = AnswerFile(tmp_path / "answers" / "answers.jsonl")
    zero, few = ({id_: row.prompt_tokens for id_, row in log.of(name).items()} for name in request.variants)
    assert len(few) == TEST_ROWS and all(few[id_] > zero[id_] for id_ in zero)
    assert all(16 < tokens + limit <= longest for tokens in few.values())


def test_a_canceled_job_resumes_after_the_last_whole_line(
    tmp_path: Path, declared: Task, inputs: tuple[TaskStore, dict[str, Artifact]]
) -> None:
    store, artifacts = inputs
    zero_shot = declared.model_copy(
        update={
            "baseline": declared.baseline.model_copy(update={"variants": ("zero_shot",)}),
            "evaluate": declared.evaluate.model_copy(update={"batch_size": 2, "max_new_tokens": 20}),
        }
    )
    context = stage_context(zero_shot, store, tmp_path, **artifacts)
    partial = Path(str(store.root)) / "07_baseline" / "answers" / "key"
    with pytest.raises(JobCanceled):
        job.run(answer_request(context, partial, ["zero_shot"]), CancelAfterTwoAnswers())
    log = partial / "answers.jsonl"
    before = log.read_text("utf-8").splitlines()
    assert 2 <= len(before) < TEST_ROWS
    log.write_text("\n".join(before) + '\n{"id": "cut o', "utf-8")
    baseline_report(context)
    answers = (context.out / "answers.jsonl").read_text("utf-8").splitlines()
    assert answers[: len(before)] == before, "a row with an answer is not answered again"
    assert len({json.loads(line)["id"] for line in answers}) == len(answers) == TEST_ROWS


def test_a_request_survives_json_and_a_wrong_key_is_named(
    tmp_path: Path, declared: Task, inputs: tuple[TaskStore, dict[str, Artifact]]
) -> None:
    store, artifacts = inputs
    request = answer_request(stage_context(declared, store, tmp_path, **artifacts), tmp_path / "answers", ["tuned"])
    row = json.loads(json.dumps(request.to_json()))
    assert AnswerRequest.from_json(row) == request
    with pytest.raises(StorageError, match="AnswerRequest: more: Unexpected keyword argument"):
        AnswerRequest.from_json({**row, "more": 1})
    del row["split"]
    with pytest.raises(StorageError, match="AnswerRequest: split: Field required"):
        AnswerRequest.from_json(row)


def test_answers_with_line_separators_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    answer = Answer("a", "tuned", "line\u2028separator\n")
    AnswerFile(path).append(answer)
    assert AnswerFile(path).answers == [answer]

"""A search from its declaration to the training that uses it: in this process where its inside is looked at, else as a
job, with a tiny model."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.backends.job_files import JobFiles
from finetune_pipeline.backends.local import job_environment
from finetune_pipeline.config import Backend, Lora, Search, Train
from finetune_pipeline.errors import DeclarationError, JobCanceled, TrainingFailed
from finetune_pipeline.records import Silent, write_jsonl
from finetune_pipeline.tracking.client import connect
from finetune_pipeline.train import job as training_job
from finetune_pipeline.train.declared import problems
from finetune_pipeline.train.loop import Loop
from finetune_pipeline.train.method import load_base
from finetune_pipeline.train.search import job, trial
from finetune_pipeline.train.search.job import run
from finetune_pipeline.train.search.placement import search_backend
from finetune_pipeline.train.search.spec import SearchResult, SearchSpec
from finetune_pipeline.train.search.trial import check_steps, trial_spec
from finetune_pipeline_tests.artifacts import task
from finetune_pipeline_tests.train.setup import RULES, LogRecorder, rows
from finetune_pipeline_tests.train.test_training import spec_of

SPACE = {"learning_rate": [0.01, 0.00001, 0.02], "lora.r": [2, 4]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: MLflow takes seconds to make its database."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def mlflow_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def searched(
    tiny_model: Path, folder: Path, rules: Train = RULES, pairs: bool = False, parameters: Any = None, **settings: Any
) -> SearchSpec:
    shutil.rmtree(folder / "llama", ignore_errors=True)
    folder.mkdir(exist_ok=True)
    spec = spec_of("llama", tiny_model, folder, count=8)
    keep = rules.keep_general.model_copy(update={"weight": 0.0})
    write_jsonl(folder / "validation.jsonl", rows_of(6, pairs))
    write_jsonl(spec.train, rows_of(8, pairs))
    training = replace(
        spec, rules=rules.model_copy(update={"keep_general": keep}), validation=folder / "validation.jsonl"
    )
    search = Search.model_validate({"trials": 4, "pruner": "none", "parameters": parameters or SPACE, **settings})
    return SearchSpec(training, search, folder / "search")


def rows_of(count: int, pairs: bool) -> list[Any]:
    return [replace(row, source="shop" if n % 2 else "web") for n, row in enumerate(rows(count, pairs))]


def runs_of(result: SearchResult) -> tuple[Any, dict[str, Any]]:
    """The MLflow run of a search, and those below it by their ids."""
    client = connect().MlflowClient()
    below = f"tags.`mlflow.parentRunId` = '{result.mlflow_run_id}'"
    found = client.search_runs([str(result.mlflow_experiment_id)], below)
    return client.get_run(str(result.mlflow_run_id)), {run.info.run_id: run for run in found}


class KilledAt(Silent):
    """Cancels during the training of a trial, as SIGTERM does."""

    def __init__(self, name: str) -> None:
        self.name, self.stopped = name, False

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        self.stopped |= what == self.name

    def alive(self) -> None:
        if self.stopped:
            raise JobCanceled("stopped", "go on")


def test_the_best_trial_is_the_training_that_its_values_give(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []

    def counting(*arguments: Any) -> Any:
        loads.append(1)
        return load_base(*arguments)

    monkeypatch.setattr(job, "load_base", counting)
    parameters = {"learning_rate": [0.00001, 0.02], "lora.r": [2]}
    spec = searched(tiny_model, tmp_path, trials=2, parameters=parameters)
    result = run(spec, Silent())
    assert len(loads) == 1 and result.states()["complete"] == 2
    assert [each.number for each in result.trials] == [1, 2]
    best = result.best_trial
    assert best is not None and best.loss == min(each.loss for each in result.trials if each.loss is not None)
    assert best.values["learning_rate"] != 0.00001
    chosen = replace(trial_spec(spec, best.values, tmp_path / "alone"), validation=spec.training.validation)
    (tmp_path / "alone").mkdir()
    alone = training_job.run(replace(chosen, rules=chosen.rules.model_copy(update={"checkpoint_seconds": 0})), Silent())
    assert alone.validation_loss == pytest.approx(best.loss, rel=1e-5)
    assert SearchResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_every_trial_is_a_run_below_that_of_the_search(tiny_model: Path, tmp_path: Path) -> None:
    result = run(searched(tiny_model, tmp_path, trials=2, checks=2), Silent())
    parent, runs = runs_of(result)
    assert parent.data.params["search.trials"] == "2" and parent.data.metrics["trials"] == 2
    assert runs.keys() == {each.mlflow_run_id for each in result.trials}
    for each in result.trials:
        child = runs[str(each.mlflow_run_id)]
        assert child.data.tags["trial_state"] == "complete" and child.info.status == "FINISHED"
        assert child.data.params["learning_rate"] == str(each.values["learning_rate"])
        assert child.data.params["lora.r"] == str(each.values["lora.r"])
        assert child.data.metrics["validation_loss"] == pytest.approx(each.checks[-1])
        assert len(each.checks) == 2 and each.steps == 4


def test_a_killed_search_goes_on_after_its_finished_trials(tiny_model: Path, tmp_path: Path) -> None:
    whole = run(searched(tiny_model, tmp_path / "whole", trials=3), Silent())
    spec = searched(tiny_model, tmp_path / "killed", trials=3)
    with pytest.raises(JobCanceled):
        run(spec, KilledAt("trial 2 of 3"))
    report = LogRecorder()
    resumed = run(spec, report)
    assert report.lines[0] == "resuming the search after 1 of 3 trials"
    assert [each.values for each in resumed.trials] == [each.values for each in whole.trials]
    assert [each.loss for each in resumed.trials] == pytest.approx([each.loss for each in whole.trials], rel=1e-6)
    assert resumed.interrupted == 1 and resumed.best == whole.best
    _, children = runs_of(resumed)
    assert sorted(child.info.status for child in children.values()) == ["FINISHED"] * 3 + ["KILLED"]
    assert run(spec, Silent()).trials == resumed.trials, "nothing is left to do"


def test_a_search_whose_process_is_killed_goes_on_and_no_run_stays_open(tiny_model: Path, tmp_path: Path) -> None:
    parameters = {"learning_rate": [0.01, 0.02, 0.03]}
    spec = searched(tiny_model, tmp_path, trials=3, parameters=parameters)
    files, journal = JobFiles(spec.folder), spec.folder / job.JOURNAL
    files.prepare(spec.to_json())
    command = [sys.executable, "-m", job.__name__, str(files.description), str(os.getpid())]
    with subprocess.Popen(command, env=job_environment(1), start_new_session=True) as process:
        while process.poll() is None and not (journal.exists() and b'"record"' in journal.read_bytes()):
            time.sleep(0.02)
        process.kill()
    done = journal.read_bytes().count(b'"record"')
    report = LogRecorder()
    resumed = run(spec, report)
    assert report.lines[0] == f"resuming the search after {done} of 3 trials" and 1 <= done <= 3
    assert [each.number for each in resumed.trials] == [1, 2, 3]
    assert sorted(each.values["learning_rate"] for each in resumed.trials) == [0.01, 0.02, 0.03]
    parent, children = runs_of(resumed)
    found = [child.info.status for child in children.values()]
    assert found.count("FINISHED") == 3 and {*found} <= {"FINISHED", "KILLED"} and parent.info.status == "FINISHED"


def test_a_trial_that_is_worse_than_the_others_ends_early(tiny_model: Path, tmp_path: Path) -> None:
    parameters = {"learning_rate": [0.02, 0.018, 0.016, 0.014, 1e-8]}
    result = run(searched(tiny_model, tmp_path, trials=5, pruner="median", parameters=parameters), Silent())
    pruned = [each for each in result.trials if each.state == "pruned"]
    assert [each.values["learning_rate"] for each in pruned] == [1e-8]
    assert pruned[0].steps < 4 and len(pruned[0].checks) < 4 and pruned[0].loss == pruned[0].checks[-1]
    child = connect().MlflowClient().get_run(str(pruned[0].mlflow_run_id))
    assert child.data.tags["trial_state"] == "pruned" and child.info.status == "FINISHED"


def test_a_trial_whose_loss_is_not_finite_fails_alone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = Loop._backward

    def broken(self: Loop, *arguments: Any) -> Any:
        loss, *others = backward(self, *arguments)
        return (math.nan if self.rules.learning_rate == 1.0 else loss, *others)

    monkeypatch.setattr(Loop, "_backward", broken)
    rules = RULES.model_copy(update={"num_epochs": 4.0})
    parameters = {"learning_rate": [0.005, 1.0]}
    result = run(searched(tiny_model, tmp_path, rules, trials=2, parameters=parameters), Silent())
    failed = {each.values["learning_rate"]: each for each in result.trials}[1.0]
    assert failed.state == "failed" and "the loss is nan at step 5" in failed.reason
    found = connect().MlflowClient().get_run(str(failed.mlflow_run_id))
    assert found.info.status == "FAILED" and found.data.tags["trial_state"] == "failed"
    assert result.best_trial is not None and result.best_trial.values["learning_rate"] == 0.005
    with pytest.raises(TrainingFailed, match="none of 1 trials was completed: the loss is nan"):
        run(searched(tiny_model, tmp_path / "x", rules, trials=1, parameters={"learning_rate": [1.0]}), Silent())


def test_a_trial_whose_validation_loss_is_not_finite_fails_alone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training loss is finite: one value of a validation row is too large for the precision, for example."""
    validate = Loop.validate

    def broken(self: Loop, *arguments: Any) -> Any:
        line = validate(self, *arguments)
        return {**line, "validation_loss": math.nan} if self.rules.learning_rate == 0.02 else line

    monkeypatch.setattr(Loop, "validate", broken)
    parameters = {"learning_rate": [0.02, 0.005]}
    result = run(searched(tiny_model, tmp_path, trials=2, parameters=parameters), Silent())
    assert [each.state for each in result.trials] == ["failed", "complete"] and result.best == 2
    assert "the validation loss is nan at step" in result.trials[0].reason
    with pytest.raises(TrainingFailed, match="none of 1 trials was completed: the validation loss is nan"):
        run(searched(tiny_model, tmp_path / "x", trials=1, parameters={"learning_rate": [0.02]}), Silent())


def test_a_search_that_is_canceled_while_the_model_loads_tries_every_combination(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = {"learning_rate": [0.01, 0.02]}
    spec = searched(tiny_model, tmp_path, trials=2, parameters=parameters)

    def canceled(*arguments: Any) -> Any:
        raise JobCanceled("stopped", "go on")

    with monkeypatch.context() as loading:
        loading.setattr(job, "load_base", canceled)
        for _ in range(3):
            with pytest.raises(JobCanceled):
                run(spec, Silent())
    for _ in range(3):
        with pytest.raises(JobCanceled):
            run(spec, KilledAt("trial 1 of 2"))
    resumed = run(spec, Silent())
    assert sorted(each.values["learning_rate"] for each in resumed.trials) == [0.01, 0.02]
    assert resumed.states()["complete"] == 2 and resumed.interrupted == 3


def test_a_search_waits_for_an_earlier_process_of_it_on_whatever_machine(tiny_model: Path, tmp_path: Path) -> None:
    """The folders of two launches differ, so that the lock of the job's folder does not keep them apart."""
    spec = searched(tiny_model, tmp_path, trials=1)

    class Waiting(LogRecorder):
        def alive(self) -> None:
            raise JobCanceled("stopped", "go on")

    report = Waiting()
    with job.alone(spec.folder, Silent()), pytest.raises(JobCanceled):
        run(spec, report)
    assert report.lines == ["an earlier process of this search still works; waiting for it"]
    assert not (spec.folder / job.JOURNAL).exists()


def test_the_limit_of_hours_ends_the_search_between_trials(tiny_model: Path, tmp_path: Path) -> None:
    result = run(searched(tiny_model, tmp_path, hours=1e-9), Silent())
    assert len(result.trials) == 1 and result.limited and result.best == 1


def test_variants_of_the_data_train_on_fewer_rows_and_are_compared_on_the_same(
    tiny_model: Path, tmp_path: Path
) -> None:
    parameters = {"row_share": [0.5, 1.0], "without_sources": [[], ["web"]]}
    result = run(searched(tiny_model, tmp_path, parameters=parameters), Silent())
    found = {(each.values["row_share"], tuple(each.values["without_sources"])): each.rows for each in result.trials}
    assert found == {(1.0, ()): 8, (0.5, ()): 4, (1.0, ("web",)): 4, (0.5, ("web",)): 2}
    assert result.validation_rows == 6


def test_preferences_are_compared_by_reward_accuracy(tiny_model: Path, tmp_path: Path) -> None:
    rules = RULES.model_copy(update={"objective": "dpo"})
    result = run(searched(tiny_model, tmp_path, rules, pairs=True, trials=2, metric="reward_accuracy"), Silent())
    accuracies = [each.reward_accuracy for each in result.trials]
    assert all(value is not None and 0 <= value <= 1 for value in accuracies)
    assert result.best_trial is not None
    assert result.best_trial.reward_accuracy == max(value for value in accuracies if value is not None)


def test_answers_are_scored_with_the_kept_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.25, 0.75])
    monkeypatch.setattr(trial, "scorer", lambda *arguments: lambda: next(scores))
    result = run(searched(tiny_model, tmp_path, trials=2, metric="score"), Silent())
    assert [each.score for each in result.trials] == [0.25, 0.75] and result.best == 2
    assert trial_spec(searched(tiny_model, tmp_path), {}, tmp_path).rules.validation.keep == "last"
    assert trial_spec(searched(tiny_model, tmp_path, metric="score"), {}, tmp_path).rules.validation.keep == "best"


@pytest.mark.parametrize(
    "changed", [{"method": "full"}, {"lora": Lora(r=2, init_lora_weights="pissa"), "layers": 1}], ids=["full", "pissa"]
)
def test_equal_trials_have_equal_losses_whatever_was_tried_between(
    tiny_model: Path, tmp_path: Path, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = RULES.model_copy(update={**changed, "learning_rate": 0.001})
    one, two = (
        run(searched(tiny_model, tmp_path / str(n), rules, trials=3, parameters={"learning_rate": order}), Silent())
        for n, order in enumerate(([0.001, 0.003], [0.003, 0.001]))
    )
    losses = [{each.values["learning_rate"]: each.loss for each in result.trials} for result in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and len({*losses[0].values()}) == 2


def test_only_training_and_validation_rows_are_opened(tiny_model: Path, tmp_path: Path) -> None:
    spec = searched(tiny_model, tmp_path, trials=1)
    write_jsonl(tmp_path / "test.jsonl", rows(4))
    opened: list[str] = []
    watching = [True]
    sys.addaudithook(lambda event, found: opened.append(str(found[0])) if event == "open" and watching else None)
    run(spec, Silent())
    watching.clear()
    assert {Path(path).name for path in opened if path.endswith(".jsonl") and str(tmp_path) in path} >= {
        "rows.jsonl",
        "validation.jsonl",
    }
    assert not [path for path in opened if Path(path).name == "test.jsonl"]


def test_trials_run_in_one_process_of_the_backend_and_not_with_spread_weights() -> None:
    several = Backend(kind="torchrun", processes_per_node=4)
    found = search_backend(RULES.model_copy(update={"backend": several}))
    assert (found.kind, found.nodes, found.processes_per_node) == ("torchrun", 1, 1)
    full = RULES.model_copy(update={"backend": several, "method": "full"})
    with pytest.raises(DeclarationError, match="weights of this one are spread over 4") as refused:
        search_backend(full)
    assert "shard: never" in refused.value.hint
    declared = task(
        train={"method": "full", "backend": several.model_dump()}, search={"parameters": {"batch_size": [2, 4]}}
    )
    assert "search: `search` compares" in problems(declared)[-1]


def test_checks_are_even_over_the_steps_of_a_trial() -> None:
    assert check_steps(100, 4) == [25, 50, 75, 100]
    assert check_steps(3, 4) == [1, 2, 3] and check_steps(1, 4) == [1]

"""The asset `adapter` at a provider: real job processes against a server on loopback, with faults and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from finetune_pipeline import errors
from finetune_pipeline.backends import local
from finetune_pipeline.config import Task
from finetune_pipeline.errors import DataError, DeclarationError, JobCanceled, ModelError, ServingError, TrainingFailed
from finetune_pipeline.providers import job, transfer
from finetune_pipeline.providers.assets import provider_spec
from finetune_pipeline.providers.record import read_record
from finetune_pipeline.providers.spec import ProviderSpec
from finetune_pipeline.records import Artifact, Silent, read_jsonl
from finetune_pipeline.store import StageContext, StageResult, TaskStore
from finetune_pipeline.train.assets import adapter
from finetune_pipeline_tests.artifacts import finished, stage_context, task_store
from finetune_pipeline_tests.baseline.color_task import base_and_split, rows
from finetune_pipeline_tests.providers.conftest import managed
from finetune_pipeline_tests.providers.fake_provider import KEY, MODEL, FakeProvider

Inputs = Mapping[str, Artifact]


class Lines(Silent):
    """Collects what is reported; cancels once `until` holds."""

    def __init__(self, until: Callable[[], bool] = lambda: False) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self.until = until

    def log(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        self.steps.append((done, total))

    def alive(self) -> None:
        if self.until():
            raise JobCanceled("stopped", "run again")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    return task_store(tmp_path, monkeypatch)


def context_of(declared: Task, store: TaskStore, tmp_path: Path, report: Silent | None = None) -> StageContext:
    inputs = dict(base_and_split(store, declared))
    validation = {"train.jsonl": rows("t", 30), "validation.jsonl": rows("v", 6), "test.jsonl": rows("q", 9)}
    inputs["data_split"] = finished(store, "data_split", validation)
    return replace(stage_context(declared, store, tmp_path, **inputs), report=report or Lines())


def test_a_training_at_the_provider_becomes_an_adapter(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    report = Lines()
    context = context_of(managed(tiny_model, url, hyperparameters={"n_epochs": 3}), store, tmp_path, report)
    result = adapter(context)
    record = read_record(context.out)
    assert record is not None
    assert record.model.startswith(f"ft:{MODEL}")
    assert (record.base_url, record.job, record.files) == (url, "ftjob-1", {"train": "file-1", "validation": "file-2"})
    first = json.loads(provider.contents["file-1"].splitlines()[0])["messages"]
    assert [message["role"] for message in first] == ["system", "user", "assistant"]
    assert first[0]["content"] == "Say the color."
    trained = provider.jobs["ftjob-1"]
    assert trained["method"] == {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}
    assert record.cost.cost == pytest.approx(trained["trained_tokens"] * 5e-6, abs=1e-4)
    assert record.estimate.epochs == 3
    assert any("tokens are counted with the tokenizer" in line for line in report.lines)
    assert report.steps[-1] == (20, 20)
    history = list(read_jsonl(context.out / "history.jsonl"))
    assert history[-1]["step"] == 20
    assert history[-1]["full_validation_loss"] == 0.4
    assert result.verdict is not None
    assert result.verdict.passed
    assert "0.400 (on all validation rows" in result.verdict.summary
    everything = "".join(path.read_text("utf-8") for path in context.out.iterdir()) + "".join(report.lines)
    assert KEY not in everything


def test_the_run_in_mlflow_has_the_providers_metrics(
    tiny_model: Path, tmp_path: Path, store: TaskStore, url: str
) -> None:
    import mlflow

    from finetune_pipeline.tracking.client import connect

    context = context_of(managed(tiny_model, url), store, tmp_path)
    run_id = adapter(context).summary["mlflow_run_id"]
    connect()
    run = mlflow.MlflowClient().get_run(str(run_id))
    assert run.data.metrics["loss"] == pytest.approx(0.1)
    assert run.data.metrics["validation_loss"] == pytest.approx(0.125)
    assert run.data.params["provider.model"] == MODEL
    assert KEY not in json.dumps(run.data.params)


def test_where_no_validation_loss_is_reported_the_gate_says_so(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    provider.with_validation_loss = False
    verdict = adapter(context_of(managed(tiny_model, url), store, tmp_path)).verdict
    assert verdict is not None
    assert verdict.passed
    check = verdict.checks[1]
    assert (check.name, check.passed, check.severity) == ("the validation loss fell", False, "warning")
    assert "not reported by the provider" in check.observed


def test_a_lost_answer_is_neither_a_second_upload_nor_a_second_job(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    """The request was done, and the connection broke before its answer: the same as a kill in that moment."""
    provider.faults = {("POST", "/files"): ["lose"], ("POST", "/fine_tuning/jobs"): ["lose"]}
    adapter(context_of(managed(tiny_model, url), store, tmp_path))
    assert (len(provider.files), len(provider.jobs)) == (2, 1)
    assert provider.count("POST", "/fine_tuning/jobs") == 1


def test_a_job_is_found_again_where_the_server_keeps_no_metadata(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    provider.keeps_metadata = False
    provider.faults = {("POST", "/fine_tuning/jobs"): ["lose"]}
    adapter(context_of(managed(tiny_model, url), store, tmp_path))
    assert len(provider.jobs) == 1


def test_a_dropped_connection_429_and_500_are_retried(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    provider.faults = {
        ("POST", "/files"): ["drop", 500],
        ("POST", "/fine_tuning/jobs"): [429],
        ("GET", "/fine_tuning/jobs/"): [500, 429],
    }
    report = Lines()
    adapter(context_of(managed(tiny_model, url), store, tmp_path, report))
    assert (len(provider.files), len(provider.jobs)) == (2, 1)
    assert sum("trying again" in line for line in report.lines) == 3


def spec_of(context: StageContext, store: TaskStore) -> ProviderSpec:
    """What the job's process is told, for a job in this process."""
    assert context.task.train.provider is not None
    folder = store.unfinished("adapter", "provider", context.key)
    return provider_spec(context, context.task.train.provider, folder)


def test_an_outage_while_the_job_trains_is_waited_out(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    """Five refusals are more than the client's own retries."""
    provider.faults = {
        ("GET", "/fine_tuning/jobs/ftjob-1/checkpoints"): [500] * 5,
        ("GET", "/fine_tuning/jobs/"): [0, 0, *[500] * 5, 0, 0, *[503] * 5],
    }
    report = Lines()
    result = adapter(context_of(managed(tiny_model, url), store, tmp_path, report))
    outages = [line for line in report.lines if "for up to 10 minutes" in line or "answers again" in line]
    assert len(outages) == 6 and outages[1::2] == [f"{url} answers again"] * 3
    assert outages[0].startswith(f"{url} could not look at job ftjob-1: fault 500")
    assert "fault 503" in outages[2] and "list the checkpoints of job ftjob-1" in outages[4]
    assert result.summary["resumed"] is False and len(provider.jobs) == 1
    assert result.summary["steps"] == 20, "no event is lost"


def test_a_connection_that_stays_broken_is_an_error_and_the_next_run_goes_on(
    tiny_model: Path,
    tmp_path: Path,
    store: TaskStore,
    provider: FakeProvider,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider.faults = {("GET", "/fine_tuning/jobs/"): [500] * 10}
    context = context_of(managed(tiny_model, url), store, tmp_path)
    with monkeypatch.context() as impatient, pytest.raises(ServingError, match="look at job ftjob-1: fault") as caught:
        impatient.setattr(transfer, "OUTAGE_SECONDS", 1e-9)
        job.run(spec_of(context, store), Silent())
    assert "run again" in caught.value.hint
    assert not provider.faults[("GET", "/fine_tuning/jobs/")], "the second look was the last"
    assert adapter(context).summary["resumed"] is True
    assert (len(provider.files), len(provider.jobs)) == (2, 1)


def test_a_run_can_be_canceled_in_an_outage(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    provider.faults = {("GET", "/fine_tuning/jobs/"): [500] * 10_000}
    report = Lines(lambda: any("for up to 10 minutes" in line for line in report.lines))
    with pytest.raises(JobCanceled):
        job.run(spec_of(context_of(managed(tiny_model, url), store, tmp_path), store), report)


def test_an_error_that_does_not_pass_is_not_waited_for(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    provider.faults = {("GET", "/fine_tuning/jobs/"): [0, 0, 403]}
    report = Lines()
    with pytest.raises(ServingError, match="could not look at job ftjob-1: fault 403"):
        adapter(context_of(managed(tiny_model, url), store, tmp_path, report))
    assert not any("minutes" in line for line in report.lines)


def test_a_job_that_the_key_does_not_see_is_named_with_its_file(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    """A key of another project: a second job there would be paid for as well."""
    provider.faults = {("GET", "/fine_tuning/jobs/"): [403]}
    context = context_of(managed(tiny_model, url), store, tmp_path)
    with pytest.raises(ServingError, match="fault 403"):
        adapter(context)
    other = provider.jobs.copy()
    provider.jobs.clear()
    with pytest.raises(
        ServingError, match=r"could not find job ftjob-1, which is in \S+state\.json: No such"
    ) as caught:
        adapter(context)
    assert not provider.jobs
    assert "OPENAI_API_KEY" in caught.value.hint and "delete" in caught.value.hint
    provider.jobs |= other
    assert adapter(context).summary["resumed"] is True
    assert list(provider.jobs) == ["ftjob-1"]


def test_a_file_that_the_provider_refuses_names_the_rows(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    provider.fail_job = 'The job failed due to an invalid training file. Line 3, message 2: key "content" is invalid.'
    with pytest.raises(TrainingFailed, match=r"refused train.jsonl: The job failed.*\(line 3 is row t2\)"):
        adapter(context_of(managed(tiny_model, url), store, tmp_path))


def test_a_file_that_is_refused_at_upload_has_the_providers_reason(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    provider.refuse_file = "Invalid JSON at line 1"
    with pytest.raises(TrainingFailed, match=r"refused train.jsonl: Invalid JSON at line 1"):
        adapter(context_of(managed(tiny_model, url), store, tmp_path))
    assert not provider.jobs


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"model": "gpt-9"}, ModelError, "the provider has no model 'gpt-9'"),
        ({"min_examples": 31}, DataError, r"enough examples: 30 \(at least 31\)"),
        ({"max_example_tokens": 20}, DataError, "no row is longer than 20 tokens .*: 30 rows: t0"),
        ({"max_cost": 0.001}, DataError, "max_cost` is 0.00"),
        ({"key_variable": "NO_SUCH_KEY"}, DeclarationError, "environment variable NO_SUCH_KEY"),
        ({"method": "dpo"}, DataError, "no training row has a rejected completion"),
    ],
)
def test_what_can_be_known_before_costs_nothing(
    tiny_model: Path,
    tmp_path: Path,
    store: TaskStore,
    provider: FakeProvider,
    url: str,
    settings: dict[str, object],
    kind: type[errors.FinetuneError],
    message: str,
) -> None:
    with pytest.raises(kind, match=message):
        adapter(context_of(managed(tiny_model, url, **settings), store, tmp_path))
    assert not provider.files
    assert not provider.jobs


def test_a_wrong_key_is_named_by_its_variable_and_never_shown(
    tiny_model: Path, tmp_path: Path, store: TaskStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-key-1234")
    with pytest.raises(ServingError, match=r"Incorrect API key provided: \*\*\*") as caught:
        adapter(context_of(managed(tiny_model, url), store, tmp_path))
    assert "check the key in OPENAI_API_KEY" in caught.value.hint
    assert "sk-wrong-key-1234" not in str(caught.value)


def test_a_quota_that_is_used_up_is_not_retried(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    provider.faults, provider.quota_code = {("POST", "/fine_tuning/jobs"): [429] * 9}, "insufficient_quota"
    with pytest.raises(ServingError, match="could not create the job") as caught:
        adapter(context_of(managed(tiny_model, url), store, tmp_path))
    assert "add credit" in caught.value.hint
    assert provider.count("POST", "/fine_tuning/jobs") == 1


def test_a_canceled_run_cancels_the_job_and_the_next_run_uploads_nothing(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    provider.polls = 10_000
    report = Lines(lambda: any(looks > 1 for looks in provider.looks.values()))
    context = context_of(managed(tiny_model, url), store, tmp_path, report)
    with pytest.raises(JobCanceled):
        adapter(context)
    assert provider.jobs["ftjob-1"]["status"] == "cancelled"
    provider.polls = 1
    again = replace(context, report=Lines())
    adapter(again)
    assert (len(provider.files), list(provider.jobs)) == (2, ["ftjob-1", "ftjob-2"])
    record = read_record(context.out)
    assert record is not None and [event["id"] for event in record.events] == ["ftevent-ftjob-2-0"]
    assert [line["step"] for line in read_jsonl(context.out / "history.jsonl")] == [*range(1, 11), 20]


@pytest.mark.parametrize("where", [("GET", "/fine_tuning/jobs/"), ("POST", "/fine_tuning/jobs")])
def test_a_run_that_is_canceled_while_the_provider_does_not_answer_cancels_the_job_as_well(
    tiny_model: Path,
    tmp_path: Path,
    store: TaskStore,
    provider: FakeProvider,
    url: str,
    where: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its process hangs in a request and is killed; the id of the job may not be written down yet."""
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.5)
    provider.polls, provider.faults = 10_000, {where: ["hold"]}
    report = Lines(lambda: bool(provider.jobs) and not provider.faults[where])
    with pytest.raises(JobCanceled):
        adapter(context_of(managed(tiny_model, url), store, tmp_path, report))
    assert provider.jobs["ftjob-1"]["status"] == "cancelled"
    assert "job ftjob-1 is canceled at the provider" in report.lines[-1]


def test_a_forced_run_trains_anew_with_the_files_that_are_there(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    context = context_of(managed(tiny_model, url), store, tmp_path)
    result: StageResult = adapter(context)
    store.commit("adapter", context.key, context.out, {"summary": dict(result.summary), "verdict": None})
    context.out.mkdir(exist_ok=True)
    adapter(context)
    assert (len(provider.files), len(provider.jobs)) == (2, 2)


# In a parent process that is killed with SIGKILL: the job ends by itself, and the provider's job goes on.
PARENT = """
import sys
from pathlib import Path
from finetune_pipeline.backends import local
from finetune_pipeline.providers.spec import ProviderSpec
from finetune_pipeline.providers.record import ProviderTraining
from finetune_pipeline.records import SILENT
import json
spec = json.loads(Path(sys.argv[1]).read_text())
local.run("finetune_pipeline.providers.job", ProviderSpec.from_json(spec), ProviderTraining, Path(sys.argv[2]), SILENT)
"""


MOMENTS = {  # the fault, when to kill, and how often files are sent in all
    "in the middle of the upload": (("POST", "/files"), "stall", 3),
    "after the upload, before its answer": (("POST", "/files"), "hold", 2),
    "after the job's creation, before its answer": (("POST", "/fine_tuning/jobs"), "hold", 2),
    "while the job runs": (("GET", "/fine_tuning/jobs/"), "hold", 2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_is_resumed_without_a_second_upload_and_without_a_second_job(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str, moment: str
) -> None:
    context = context_of(managed(tiny_model, url), store, tmp_path)
    folder = store.unfinished("adapter", "provider", context.key)
    spec = spec_of(context, store)
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()), "utf-8")
    where, fault, uploads = MOMENTS[moment]
    provider.faults = {where: [fault]}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "spec.json"), str(folder)])
    while provider.faults[where]:
        assert parent.poll() is None
        time.sleep(0.02)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _wait_for_end_of_job(folder, provider)
    assert "cancelled" not in [each["status"] for each in provider.jobs.values()]
    result = adapter(context)
    assert (len(provider.files), len(provider.jobs)) == (2, 1)
    assert provider.count("POST", "/fine_tuning/jobs") == 1
    assert provider.count("POST", "/files") == uploads
    assert result.summary["resumed"] is (moment == "while the job runs")


def _wait_for_end_of_job(folder: Path, provider: FakeProvider) -> None:
    """The orphaned job is killed where it waits for an answer, as a machine that fails would do."""
    import psutil

    time.sleep(0.3)
    for process in psutil.process_iter(["cmdline"]):
        if str(folder / "job.json") in (process.info["cmdline"] or []):
            process.kill()
            process.wait(60)
    provider.released.set()
    time.sleep(0.3)


def test_an_orphaned_job_ends_by_itself_and_leaves_the_providers_job_alone(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    """The run was killed, not canceled: nobody asked to stop what is paid for."""
    import psutil

    provider.polls = 10_000
    context = context_of(managed(tiny_model, url), store, tmp_path)
    folder = store.unfinished("adapter", "provider", context.key)
    spec = spec_of(context, store)
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()), "utf-8")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "spec.json"), str(folder)])
    while provider.looks["ftjob-1"] < 3:
        assert parent.poll() is None
        time.sleep(0.02)
    children = psutil.Process(parent.pid).children(recursive=True)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    psutil.wait_procs(children, timeout=60)
    assert not any(child.is_running() for child in children)
    assert provider.jobs["ftjob-1"]["status"] == "running"


def test_dpo_sends_the_rows_with_a_rejected_completion(
    tiny_model: Path, tmp_path: Path, store: TaskStore, provider: FakeProvider, url: str
) -> None:
    declared = managed(tiny_model, url, method="dpo", hyperparameters={"beta": 0.2})
    context = context_of(declared, store, tmp_path)
    pairs = [row.to_json() | {"rejected": "mauve"} for row in rows("p", 12)]
    train = [*pairs, *(row.to_json() for row in rows("t", 5))]
    split = finished(store, "data_split", {"train.jsonl": train, "validation.jsonl": [], "test.jsonl": rows("q", 9)})
    adapter(replace(context, inputs={**context.inputs, "data_split": split}))
    assert list(provider.files) == ["file-1"], "no validation file without rows"
    lines = [json.loads(line) for line in provider.contents["file-1"].splitlines()]
    assert len(lines) == 12
    assert lines[0]["non_preferred_output"] == [{"role": "assistant", "content": "mauve"}]
    assert provider.jobs["ftjob-1"]["method"] == {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}

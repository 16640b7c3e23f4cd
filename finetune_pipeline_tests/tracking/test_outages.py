"""MLflow is away at the start, in the middle, at the end of a training: nothing is lost, and nothing arrives twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline import tracking
from finetune_pipeline.config import AnswerFormat, Lora, Train
from finetune_pipeline.errors import JobCanceled, StorageError
from finetune_pipeline.records import Example, Message, Silent, write_jsonl
from finetune_pipeline.tracking import background
from finetune_pipeline.tracking import sender as sending
from finetune_pipeline.tracking.client import connect
from finetune_pipeline.tracking.journal import Journal, Place, journals
from finetune_pipeline_tests.mlflow_registry import version_tags
from finetune_pipeline_tests.tracking.conftest import MlflowServer
from finetune_pipeline_tests.train.setup import LogRecorder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}", "utf-8")
    return tmp_path / "adapter"


def steps_of(run_id: str) -> list[tuple[int, float]]:
    import mlflow

    return [(m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(run_id, "loss")]


def runs_of(task: str) -> list[Any]:
    client = connect().MlflowClient()
    experiment = client.get_experiment_by_name(task)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def test_a_training_without_mlflow_is_delivered_with_its_own_times(server: MlflowServer, adapter: Path) -> None:
    report = LogRecorder()
    began = int(time.time() * 1000)
    with tracking.training_run("parcels", None, {"lora.r": 4}, {"data": "d1"}, report) as run:
        run.log_dataset("train.jsonl", "d1", rows=12)
        for step in range(3):
            run.log_metrics({"loss": 3.0 - step}, step)
        run.log_artifacts(adapter, "adapter")
    ended = int(time.time() * 1000)
    local = run.run_id
    assert local.startswith("local-") and "is away, and the training goes on" in report.lines[0]
    (adapter / "adapter_config.json").unlink()  # the folder of a stage is moved when the stage has ended
    with pytest.raises(StorageError, match="could not take over the records") as caught:
        tracking.delivered_run("parcels", local)
    assert "check that it runs" in caught.value.hint

    server.start()
    shown: list[str] = []
    tracking.sync(shown.append)
    (found,) = runs_of("parcels")
    run_id = tracking.delivered_run("parcels", local)
    assert found.info.run_id == run_id and shown == [f"parcels: the run {run_id} is in MLflow"]
    assert (found.info.status, found.data.params, found.data.tags["data"]) == ("FINISHED", {"lora.r": "4"}, "d1")
    assert found.data.tags["mlflow.user"] and found.inputs.dataset_inputs[0].dataset.digest == "d1"
    assert steps_of(run_id) == [(0, 3.0), (1, 2.0), (2, 1.0)]
    import mlflow

    times = [found.info.start_time, found.info.end_time]
    times += [m.timestamp for m in mlflow.MlflowClient().get_metric_history(run_id, "loss")]
    assert all(began <= at <= ended for at in times)
    assert [file.path for file in mlflow.MlflowClient().list_artifacts(run_id, "adapter")] == [
        "adapter/adapter_config.json"
    ]
    tracking.sync(shown.append)
    assert len(shown) == 1 and not journals()
    assert tracking.register("parcels", run_id, "adapter", {"adapter": "a1"}, "first") == 1
    assert version_tags("parcels", 1) == {"adapter": "a1"}


def test_a_server_that_is_killed_and_comes_back_has_every_step_once(server: MlflowServer, adapter: Path) -> None:
    """Killed in the middle; the training is stopped, goes on with the server still away, and ends with it back."""
    server.start()
    report = LogRecorder()
    with pytest.raises(JobCanceled), tracking.training_run("parcels", None, {"lora.r": 4}) as run:
        run.log_metrics({"loss": 1.0}, 1)
        server.signal(signal.SIGSTOP)  # it hangs
        began = time.monotonic()
        for step in range(2, 6):
            run.log_metrics({"loss": 1.0}, step)
        assert time.monotonic() - began < 1
        server.kill()
        raise JobCanceled("stopped", "")
    with tracking.training_run("parcels", run.run_id, {"lora.r": 99}, report=report) as again:
        assert again.run_id == run.run_id
        for step in range(6, 10):
            again.log_metrics({"loss": 1.0}, step)
        server.start()
        again.log_artifacts(adapter, "adapter")
    (found,) = runs_of("parcels")
    assert (found.info.run_id, found.info.status) == (run.run_id, "FINISHED")
    assert found.data.params == {"lora.r": "4"}
    assert [step for step, _ in steps_of(run.run_id)] == list(range(1, 10))
    assert not journals() and len(report.lines) == 1


def test_a_run_that_began_without_mlflow_is_resumed_and_found_by_its_tag(server: MlflowServer) -> None:
    with pytest.raises(JobCanceled), tracking.training_run("parcels", None, {"lora.r": 4}) as run:
        run.log_metrics({"loss": 2.0}, 1)
        raise JobCanceled("stopped", "")
    server.start()
    tracking.sync(lambda text: None)
    assert [each.info.status for each in runs_of("parcels")] == ["KILLED"]
    with tracking.training_run("parcels", run.run_id, {"lora.r": 4}) as again:  # the id in the checkpoint is local
        assert [each.info.status for each in runs_of("parcels")] == ["RUNNING"]
        again.log_metrics({"loss": 1.0}, 2)
    (found,) = runs_of("parcels")
    assert again.run_id == found.info.run_id and found.info.status == "FINISHED"
    assert steps_of(again.run_id) == [(1, 2.0), (2, 1.0)]


def test_a_record_whose_answer_was_lost_arrives_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: Path
) -> None:
    """Every request is made twice: its answer is lost the first time."""
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking.training_run("parcels", None, {"lora.r": 4}) as run:
        run.log_dataset("train.jsonl", "d1", rows=12)
        run.log_metrics({"loss": 3.0}, 0)
        run.log_artifacts(adapter, "adapter")
        run.log_metrics({"loss": 2.0}, 1)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    real, lost = Journal.advance, [0]

    def advance(self: Journal, place: Place) -> None:
        lost[0] += 1
        if lost[0] % 2:
            raise ConnectionError("the answer was lost")
        real(self, place)

    monkeypatch.setattr(Journal, "advance", advance)
    for _ in range(20):
        try:
            tracking.sync(lambda text: None)
            break
        except StorageError:
            continue
    assert lost[0] == 12 and not journals()  # the run, and five records
    (found,) = runs_of("parcels")
    assert steps_of(found.info.run_id) == [(0, 3.0), (1, 2.0)]
    assert len(found.inputs.dataset_inputs) == 1 and found.info.status == "FINISHED"


KILLED = """
import os, signal, sys
from finetune_pipeline import tracking
with tracking.training_run("parcels", None, {"lora.r": 4}) as run:
    run.log_metrics({"loss": 2.0}, 1)
    with (run.journal.folder / "records.jsonl").open("a") as file:
        file.write('{"kind": "metrics", "val')
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_wrote_is_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    killed = subprocess.run([sys.executable, "-c", KILLED], env=dict(os.environ), check=False, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [journal.about.task for journal in tracking.pending()] == ["parcels"]
    with tracking.training_run("other", None, {}):  # the next training delivers it at its end
        pass
    (found,) = runs_of("parcels")
    assert found.info.status == "KILLED" and steps_of(found.info.run_id) == [(1, 2.0)]
    assert not tracking.pending()


def test_the_weights_of_an_earlier_training_are_not_delivered_by_the_process_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: Path
) -> None:
    """It may hold a GPU. A trial delivers nothing of others: its search does, once."""
    import mlflow

    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking.training_run("parcels", None, {"lora.r": 4}) as earlier:
        earlier.log_metrics({"loss": 2.0}, 1)
        earlier.log_artifacts(adapter, "adapter")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    started: list[int] = []
    monkeypatch.setattr(background, "start", lambda: started.append(len(tracking.pending())))
    with tracking.training_run("other", None, {}) as search:
        with tracking.training_run("other", None, {}, parent=search.run_id):
            pass
        assert not runs_of("parcels") and not started
    (found,) = runs_of("parcels")
    assert steps_of(found.info.run_id) == [(1, 2.0)] and started == [1]
    assert not mlflow.MlflowClient().list_artifacts(found.info.run_id, "adapter")
    shown: list[str] = []
    tracking.sync(shown.append)
    assert [file.path for file in mlflow.MlflowClient().list_artifacts(found.info.run_id, "adapter")]
    (found,) = runs_of("parcels")
    assert found.info.status == "FINISHED" and len(shown) == 1 and not journals()


def test_the_records_of_a_training_that_runs_are_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with tracking.training_run("parcels", None, {}) as run:
        tracking.sync(lambda text: None)
        assert not tracking.pending() and [each.info.status for each in runs_of("parcels")] == ["RUNNING"]
        run.log_metrics({"loss": 1.0}, 1)
    assert steps_of(run.run_id) == [(1, 1.0)]


def test_a_run_below_another_is_delivered_before_it_and_shown_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking.training_run("parcels", None, {"search.trials": 2}) as parent:
        with tracking.training_run("parcels", None, {"lora.r": 4}, parent=parent.run_id) as child:
            child.set_tags({"trial_state": "complete"})
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        tracking.sync(lambda text: None)  # the parent runs, and delivers by itself
        (found,) = [run for run in runs_of("parcels") if run.data.params == {"lora.r": "4"}]
        assert found.data.tags["trial_state"] == "complete" and found.info.status == "FINISHED"
    assert {run.info.status for run in runs_of("parcels")} == {"FINISHED"} and len(runs_of("parcels")) == 2
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id and parent.run_id != found.info.run_id
    for known, tagged in ((parent.run_id, parent.run_id), ("local-deleted", None)):
        with tracking.training_run("parcels", None, {}, parent=known) as late:
            pass
        tags = connect().MlflowClient().get_run(late.run_id).data.tags
        assert tags.get("mlflow.parentRunId") == tagged


def test_a_damaged_journal_is_named_and_keeps_no_other_run_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "tracking" / "local-1").mkdir(parents=True)
    (tmp_path / "tracking" / "local-1" / "run.json").write_text("{", "utf-8")
    with tracking.training_run("parcels", None, {}):
        pass
    assert [each.info.status for each in runs_of("parcels")] == ["FINISHED"]
    with pytest.raises(StorageError, match="local-1") as caught:
        tracking.sync(lambda text: None)
    assert "delete the folder" in caught.value.hint


def test_a_run_that_is_nowhere_is_named_with_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(StorageError, match="does not know the run local-1 of the training") as caught:
        tracking.delivered_run("parcels", "local-1")
    assert "finetune sync" in caught.value.hint


class Refuses(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        return None


def test_a_login_that_is_refused_is_an_error_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{http.server_port}")
    try:
        with pytest.raises(StorageError, match="could not open a run") as caught, tracking.training_run("t", None, {}):
            pass
    finally:
        http.shutdown()
    assert "MLFLOW_TRACKING_URI" in caught.value.hint and not journals()


def test_the_thread_ends_while_a_request_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "CLOSE_TIMEOUT_SECONDS", 0.1)
    responds = threading.Event()
    sender = sending.Sender(lambda: responds.wait(30))
    sender.wake()
    time.sleep(0.05)
    assert sender.close() is False
    responds.set()


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened within 5 s")


def test_what_was_not_accepted_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sending, "RETRY_SECONDS", 0.01)
    calls: list[int] = []

    def deliver() -> None:
        calls.append(1)
        if len(calls) < 4:
            raise ConnectionError("refused")

    sender = sending.Sender(deliver)
    sender.wake()
    wait_for(lambda: len(calls) == 4)
    assert sender.close() and len(calls) == 4
    assert caplog.text.count("MLflow did not accept a record") == 1


def test_metrics_of_the_machine_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SAMPLE_SECONDS", 0.05)
    seen: list[tuple[int, set[str]]] = []
    metrics = sending.MachineMetrics(lambda values, sample: seen.append((sample, set(values))))
    wait_for(lambda: len(seen) >= 2)
    metrics.close()
    assert [sample for sample, _ in seen[:2]] == [0, 1]
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= seen[0][1]


def test_a_training_whose_mlflow_is_killed_still_saves_the_adapter(
    server: MlflowServer, tiny_model: Path, tmp_path: Path
) -> None:
    """The whole training job; the server is killed after the first step."""
    from finetune_pipeline.train import job
    from finetune_pipeline.train.spec import TrainingSpec

    class KillsServer(Silent):
        def progress(self, what: str, done: int, total: int, **figures: float) -> None:
            if what == "training":
                server.signal(signal.SIGKILL)

    server.start()
    rows = [Example(f"r{n}", (Message("user", f"q {n}"), Message("assistant", "a")), "t", "t:1") for n in range(8)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "out"
    out.mkdir()
    spec = TrainingSpec(
        task="parcels",
        base=tiny_model,
        base_id="tiny",
        train=tmp_path / "rows.jsonl",
        validation=tmp_path / "rows.jsonl",
        system="",
        answer=AnswerFormat(),
        rules=Train(lora=Lora(r=4, alpha=8), num_epochs=2, batch_size=4, learning_rate=2e-4, precision="fp32"),
        checkpoints=tmp_path / "steps",
        out=out,
        params={"lora.r": 4},
        dataset_name="parcels",
        dataset_digest="d1",
    )
    training = job.run(spec, KillsServer())
    assert training.steps == 4 and training.mlflow_run_id
    assert training.general_divergence  # general texts are on by default
    assert (out / "adapter_model.safetensors").exists()
    server.start()
    run_id = tracking.delivered_run("parcels", training.mlflow_run_id)
    assert [step for step, _ in steps_of(run_id)] == [1, 2, 3, 4]


def test_a_background_process_delivers_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `finetune up` and the sensor do."""
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert background.start() is None
    with tracking.training_run("parcels", None, {}):
        pass
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    process = background.start()
    assert process is not None and process.wait(timeout=300) == 0
    assert "is in MLflow" in (tmp_path / "home" / "logs" / "sync.log").read_text("utf-8")
    assert [each.info.status for each in runs_of("parcels")] == ["FINISHED"]

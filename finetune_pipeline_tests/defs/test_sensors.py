"""Sensors and schedules, evaluated against a real Dagster instance with real runs and a task's real artifacts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from finetune_pipeline.definitions import build
from finetune_pipeline.defs.sensors import RUN_KEY_TAG, SENSOR_NAME_TAG
from finetune_pipeline.graph import BY_NAME
from finetune_pipeline.materialize import open_task
from finetune_pipeline.records import Example, Json, Message, Review, Verdict, write_jsonl
from finetune_pipeline.review import verdict_store
from finetune_pipeline.store import TaskStore

from .conftest import declare

ROWS = "input,output\none,1\ntwo,2\nthree,3\n"
OTHER = "input,output\nfour,4\n"
EMPTY = "input,output\n"  # reading it fails


class Daemon:
    """One sensor as Dagster's daemon drives it: the cursor is kept, a run key is started once, runs are real ones.

    A run makes only `assets`, so that a tick does not take as long as the whole job.
    """

    def __init__(self, dagster: dg.DagsterInstance, sensor: str, assets: list[str]) -> None:
        self.dagster, self.assets = dagster, assets
        self.definitions = build(["parcels"])
        self.sensor = self.definitions.resolve_sensor_def(f"parcels_{sensor}")
        self.cursor: str | None = None
        self.events: list[object] = []

    def tick(self) -> str:
        """Evaluate it once; "started", "failed", or why no run was started."""
        data = self._evaluate()
        for request in data.run_requests or ():
            if not self.dagster.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: str(request.run_key)})):
                return self._run(request)
        return str(data.skip_message)

    def _evaluate(self) -> Any:
        context = dg.build_sensor_context(instance=self.dagster, cursor=self.cursor, sensor_name=self.sensor.name)
        data = self.sensor.evaluate_tick(context)
        self.cursor = data.cursor or self.cursor
        self.events += data.asset_events
        return data

    def _run(self, request: dg.RunRequest) -> str:
        job = str(self.sensor.job_name)
        result = self.definitions.resolve_job_def(job).execute_in_process(
            instance=self.dagster,
            asset_selection=[dg.AssetKey(["parcels", asset]) for asset in self.assets],
            tags={**request.tags, RUN_KEY_TAG: str(request.run_key), SENSOR_NAME_TAG: self.sensor.name},
            raise_on_error=False,
        )
        return "started" if result.success else "failed"


@pytest.fixture
def folder(data: Path) -> Path:
    return declare(data, "parcels")


@pytest.fixture
def files(folder: Path, dagster: dg.DagsterInstance) -> Daemon:
    return Daemon(dagster, "new_files", ["raw_examples"])


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Moves the sensors' clock."""

    def move(by: timedelta) -> None:
        class Later(datetime):
            @classmethod
            def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
                return datetime.now(UTC) + by

        monkeypatch.setattr("finetune_pipeline.defs.sensors.datetime", Later)

    return move


def put(folder: Path, text: str) -> None:
    (folder / "raw" / "rows.csv").write_text(text, "utf-8")


def rows_read() -> int:
    artifact = open_task("parcels")[1].current("raw_examples")
    assert artifact is not None
    return sum(1 for _ in artifact.examples())


def test_new_files_start_one_run(files: Daemon) -> None:
    assert files.tick() == "started"
    assert files.tick() == "nothing changed since the last run"


def test_an_earlier_file_that_is_restored_is_a_change(files: Daemon, folder: Path) -> None:
    for text, rows in ((ROWS, 3), (OTHER, 1), (ROWS, 3), (OTHER, 1)):
        put(folder, text)
        assert files.tick() == "started"
        assert rows_read() == rows


def test_a_run_that_failed_is_requested_again_and_not_for_ever(
    files: Daemon, folder: Path, later: Callable[[timedelta], None]
) -> None:
    put(folder, EMPTY)
    assert files.tick() == "failed"
    assert "the next attempt starts at" in files.tick()
    reasons = []
    for hours in range(1, 8):
        later(timedelta(hours=hours))
        reasons.append(files.tick())
    assert reasons[:2] == ["failed", "failed"]
    assert all("the last of 3 attempts" in text for text in reasons[2:])
    put(folder, ROWS)
    assert files.tick() == "started"


def test_a_source_that_is_missing_starts_nothing_and_is_named(files: Daemon, folder: Path) -> None:
    (folder / "raw" / "rows.csv").unlink()
    assert "raw/rows.csv, which does not exist: put it there" in files.tick()


def test_a_declaration_that_broke_since_is_named_by_the_tick(files: Daemon, folder: Path) -> None:
    (folder / "task.yaml").write_text("name: [", "utf-8")
    with pytest.raises(Exception, match=r"parcels/task\.yaml is not valid YAML") as caught:
        files.tick()
    assert caught.type.__name__ == "DeclarationError"


def commit(store: TaskStore, asset: str, verdict: Verdict | None = None, rows: int = 0, **summary: Json) -> None:
    """A finished artifact as a stage would leave it."""
    examples = [Example(str(n), (Message("user", f"q{n}"), Message("assistant", "a")), "s", "o") for n in range(rows)]
    with store.scratch(asset) as out:
        write_jsonl(out / ("sample.jsonl" if asset == "review_sample" else "examples.jsonl"), examples)
        (out / "figures.txt").write_text(str(summary), "utf-8")
        facts = {
            "made_at": "2026-01-05T10:00:00+00:00",
            "inputs": {},
            "summary": summary,
            "verdict": verdict.to_json() if verdict else None,
        }
        store.commit(asset, f"{asset}{summary}", out, facts)


def report(store: TaskStore, alarm: str, passed: bool = False) -> None:
    commit(store, "traffic_report", Verdict("traffic_report", passed, "deployment", alarm), alarm=alarm)


@pytest.fixture
def alarm(folder: Path, dagster: dg.DagsterInstance) -> Daemon:
    """The alarm's sensor, with rows that were read."""
    files = Daemon(dagster, "new_files", ["raw_examples"])
    assert files.tick() == "started"
    return Daemon(dagster, "traffic_alarm", ["raw_examples"])


def test_an_alarm_on_unchanged_data_is_reported_once_and_starts_nothing(alarm: Daemon) -> None:
    _, store = open_task("parcels")
    assert alarm.tick() == "no traffic report yet"
    report(store, "9 % of the answers are invalid")
    for _ in range(3):
        reason = alarm.tick()
        assert "alarm: 9 % of the answers are invalid. No retraining is started" in reason
        assert "Add examples" in reason
    (event,) = alarm.events
    assert isinstance(event, dg.AssetObservation)
    assert event.asset_key == dg.AssetKey(["parcels", "traffic_report"])
    assert "No retraining is started" in str(event.description)
    report(store, "drift")
    assert "alarm: drift" in alarm.tick()
    assert len(alarm.events) == 2
    report(store, "no alarm", passed=True)
    assert alarm.tick() == "no alarm"


def test_an_alarm_with_new_data_starts_a_run_and_cools_down(
    alarm: Daemon, folder: Path, later: Callable[[timedelta], None]
) -> None:
    _, store = open_task("parcels")
    report(store, "drift")
    put(folder, OTHER)
    assert alarm.tick() == "started"
    assert "No retraining is started" in alarm.tick(), "what was just read is not new any more"
    put(folder, ROWS)
    assert "the next one waits 24 h" in alarm.tick()
    later(timedelta(hours=25))
    assert alarm.tick() == "started"


def test_an_alarm_whose_run_failed_is_requested_again(
    alarm: Daemon, folder: Path, later: Callable[[timedelta], None]
) -> None:
    _, store = open_task("parcels")
    report(store, "drift")
    put(folder, EMPTY)
    assert alarm.tick() == "failed"
    later(timedelta(minutes=6))
    assert alarm.tick() == "failed"


def approve(store: TaskStore, rows: int, decision: str = "approve") -> None:
    for n in range(rows):
        row = Example(str(n), (Message("user", f"q{n}"), Message("assistant", "a")), "s", "o")
        verdict_store.save(store, Review(row.id, row.content_hash, "anna", decision, "2026-01-05T10:00:00+00:00"))  # type: ignore[arg-type]


def test_train_starts_with_the_last_verdict_and_again_after_a_failure(
    folder: Path, dagster: dg.DagsterInstance, later: Callable[[timedelta], None]
) -> None:
    """The run fails, since these made-up rows passed no quality gate; what counts here is when it is started."""
    daemon = Daemon(dagster, "review_finished", ["expert_review"])
    _, store = open_task("parcels")
    assert daemon.tick() == "there is no sample yet: run `prepare`"
    commit(store, "base_model")
    commit(store, "clean_examples", rows=30)
    commit(store, "review_sample", rows=3)
    approve(store, 2)
    assert daemon.tick() == "2 of 3 rows reviewed"
    approve(store, 3)
    assert daemon.tick() == "failed"
    assert "the next attempt starts at" in daemon.tick()
    later(timedelta(minutes=6))
    assert daemon.tick() == "failed"


def evaluate(dagster: dg.DagsterInstance, name: str) -> dg.RunRequest | str:
    schedule = build(["parcels"]).resolve_schedule_def(f"parcels_{name}")
    with dg.build_schedule_context(dagster, datetime(2026, 1, 5, 6, tzinfo=UTC)) as context:
        data = schedule.evaluate_tick(context)
    (request,) = data.run_requests or (None,)
    return request or str(data.skip_message)


def test_the_schedules_start_what_is_not_up_to_date(folder: Path, dagster: dg.DagsterInstance) -> None:
    request = evaluate(dagster, "retraining")
    assert isinstance(request, dg.RunRequest)
    assert "raw_examples" in request.tags["finetune/reason"]
    assert evaluate(dagster, "traffic_hourly") == "nothing is deployed yet, so there is no traffic to report on"
    commit(open_task("parcels")[1], "deployed_endpoint")
    assert isinstance(evaluate(dagster, "traffic_hourly"), dg.RunRequest)
    assert BY_NAME["traffic_report"].needs[0] == "deployed_endpoint"

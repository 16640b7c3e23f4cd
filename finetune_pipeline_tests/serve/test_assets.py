"""Deployment end to end: parity through the live endpoint, promotion, rollback, held versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline import tracking
from finetune_pipeline.errors import GateRefused, JobCanceled, ServingError, StorageError
from finetune_pipeline.materialize import materialize
from finetune_pipeline.records import Silent, read_jsonl
from finetune_pipeline.serve import deployment_state
from finetune_pipeline.serve.api_keys import pipeline_key
from finetune_pipeline.serve.client import EndpointClient, wait_until_served
from finetune_pipeline.serve.deployment_state import Role
from finetune_pipeline.serve.replay import CONCURRENCY, replay
from finetune_pipeline.serve.rollback import rollback, unhold
from finetune_pipeline.store import home, traffic_folder
from finetune_pipeline_tests.mlflow_registry import alias_version
from finetune_pipeline_tests.serve.deployment import (
    KEY,
    ROWS,
    TEST,
    Deployment,
    candidate,
    deploy,
    evaluated_answers,
)


def test_first_deployment_then_a_second_then_rollback_then_unhold(deployment: Deployment) -> None:
    task = deployment.task("parcels")
    first, second = deployment.make_adapter(1), deployment.make_adapter(2)

    candidate(task, 1, first, evaluated_answers(task, first))
    deployed_first = deploy(task)
    assert (
        deployed_first.verdict is not None
        and deployed_first.verdict.passed
        and deployed_first.verdict.figures["share"] == 1.0
    )
    assert deployed_first.verdict.about == task.store.current("registered_model").content_hash  # type: ignore[union-attr]
    report = deployed_first.json("endpoint.json")
    assert report["champion"]["version"] == 1 and report["sample"]["tuned"] != report["sample"]["base"]
    assert len(list(deployed_first.path("parity.jsonl").read_text().splitlines())) == ROWS
    assert alias_version("parcels", "champion") == 1
    assert deploy(task).key == deployed_first.key  # unchanged: it is not deployed again

    candidate(task, 2, second, evaluated_answers(task, second))
    deployed_second = deploy(task)
    assert deployed_second.summary["version"] == 2 and deployment.server.status("parcels")["champion"]["version"] == 2
    assert deployment.server.status("parcels")["challenger"] is None

    assert "version 1 serves again" in rollback("parcels", "complaints")
    deployment.server.wait_until_serves("parcels", 1)
    assert alias_version("parcels", "champion") == 1
    held = deploy(task)
    assert held.key != deployed_second.key and held.verdict is not None and not held.verdict.passed
    assert (
        "rolled back" in held.verdict.summary
        and "complaints" in held.verdict.summary
        and "version 1 serves" in held.verdict.summary
    )
    assert deployment.server.status("parcels")["champion"]["version"] == 1
    assert deploy(task).key == held.key

    assert "may be deployed again" in unhold("parcels")
    again = deploy(task)
    assert again.verdict is not None and again.verdict.passed
    assert deployment.server.status("parcels")["champion"]["version"] == 2
    with pytest.raises(GateRefused, match="is not held"):
        unhold("parcels")

    candidate(task, 1, first, evaluated_answers(task, first))  # the older model becomes the current one again
    back = deploy(task)
    assert back.key != deployed_first.key and deployment.server.status("parcels")["champion"]["version"] == 1


def test_new_settings_are_deployed_without_changing_the_model(deployment: Deployment) -> None:
    task = deployment.task("settings")
    candidate(task, 1, deployment.make_adapter(1), evaluated_answers(task, deployment.make_adapter(1)))
    before = deploy(task)
    serve = task.task.serve.model_copy(update={"on_invalid": "reject"})
    task.task = task.task.model_copy(update={"serve": serve})
    assert deploy(task).key != before.key
    assert deployment.server.endpoint.supervisor.table.routes["settings"].on_invalid == "reject"
    assert deployment_state.read(task.store).previous == ()


def test_parity_fails_when_another_adapter_was_evaluated(deployment: Deployment) -> None:
    task = deployment.task("unlike")
    first, second = deployment.make_adapter(1), deployment.make_adapter(2)
    candidate(task, 1, first, evaluated_answers(task, first))
    deploy(task)
    candidate(task, 2, second, evaluated_answers(task, first))  # the answers of another adapter
    failed = deploy(task)
    assert failed.verdict is not None and not failed.verdict.passed
    assert "served equals evaluated" in failed.verdict.summary and TEST[0].id in failed.verdict.summary
    assert deployment_state.read(task.store).champion.version == 1  # type: ignore[union-attr]
    assert deployment_state.read(task.store).challenger is None
    assert alias_version("unlike", "champion") == 1
    assert deployment.server.status("unlike")["champion"]["version"] == 1
    assert failed.json("endpoint.json")["champion"]["version"] == 1


def test_parity_fails_for_an_adapter_without_effect(deployment: Deployment) -> None:
    task = deployment.task("idle")
    zero = deployment.make_adapter(0)
    candidate(task, 1, zero, evaluated_answers(task, zero))
    failed = deploy(task)
    assert (
        failed.verdict is not None
        and not failed.verdict.passed
        and "the adapter has an effect" in failed.verdict.summary
    )
    assert failed.verdict.figures["share"] == 1.0 and deployment_state.read(task.store).champion is None
    assert failed.summary["version"] is None and failed.json("endpoint.json")["champion"] is None


def test_a_changed_adapter_file_moves_no_traffic(deployment: Deployment) -> None:
    task = deployment.task("tampered")
    first, third = deployment.make_adapter(1), deployment.make_adapter(3)
    candidate(task, 1, first, evaluated_answers(task, first))
    deploy(task)
    adapter = candidate(task, 2, third, evaluated_answers(task, third))
    (adapter.folder / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(StorageError, match=r"is not what adapter wrote"):
        deploy(task)
    state = deployment_state.read(task.store)
    assert state.challenger is None and state.champion is not None and state.champion.version == 1
    assert deployment.server.complete("tampered").headers["x-finetune-version"] == "1"


def test_a_rollback_during_a_deployment_is_kept(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once before the traffic moves, and once after it."""
    from finetune_pipeline.serve import assets

    task = deployment.task("crossed")
    for number in (1, 2):
        candidate(
            task, number, deployment.make_adapter(number), evaluated_answers(task, deployment.make_adapter(number))
        )
        deploy(task)

    def wait_with_rollback(endpoint: EndpointClient, name: str, role: Role, *rest: Any) -> None:
        if role == rollback_at[0]:
            rollback("crossed", "wrong prices")
        return wait_until_served(endpoint, name, role, *rest)

    monkeypatch.setattr(assets, "wait_until_served", wait_with_rollback)
    rollback_at = [""]
    for rollback_at[0], serves, held in (("challenger", 1, 1), ("champion", 1, 2)):
        candidate(
            task, 3, deployment.make_adapter(3), evaluated_answers(task, deployment.make_adapter(3))
        )  # evaluated against the live version
        with pytest.raises(ServingError, match="is not the desired state of crossed any more"):
            deploy(task)
        state = deployment_state.read(task.store)
        assert state.champion is not None and state.champion.version == serves and len(state.held) == held
        assert state.challenger is None
        deployment.server.wait_until_serves("crossed", serves)
        assert alias_version("crossed", "champion") == serves


def test_an_unreachable_registry_stops_no_rollback_and_no_deployment(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object) -> None:
        raise StorageError("MLflow at http://db does not set an alias: connection refused")

    task = deployment.task("unlisted")
    for number in (1, 2):
        candidate(
            task, number, deployment.make_adapter(number), evaluated_answers(task, deployment.make_adapter(number))
        )
        deploy(task)
    monkeypatch.setattr(tracking, "set_alias", down)
    assert "was not updated: MLflow at http://db does not set an alias: connection refused" in rollback(
        "unlisted", "complaints"
    )
    deployment.server.wait_until_serves("unlisted", 1)
    candidate(task, 3, deployment.make_adapter(3), evaluated_answers(task, deployment.make_adapter(3)))
    assert deploy(task).summary["version"] == 3


def test_a_failed_replay_names_the_row_and_the_response(deployment: Deployment) -> None:
    with pytest.raises(ServingError, match=rf"row {TEST[0].id} with status 404: .*there is no model 'unknown'"):
        replay(EndpointClient(deployment.server.url, pipeline_key(home())), "unknown", TEST[:1], Silent())
    with pytest.raises(ServingError, match=r"the connection to .* failed at row"):
        replay(EndpointClient("http://127.0.0.1:9", KEY), "unknown", TEST, Silent())


def test_an_interrupted_replay_continues(deployment: Deployment, tmp_path: Path) -> None:
    """In a deployment: rows with an answer are not sent again, and the answer log is removed at the end."""
    task = deployment.task("resumed")
    candidate(task, 1, deployment.make_adapter(1), evaluated_answers(task, deployment.make_adapter(1)))

    class CancelAfterFive(Silent):
        def progress(self, what: str, done: int, total: int, **figures: float) -> None:
            if done == 5:
                raise JobCanceled("stopped")

    with pytest.raises(JobCanceled):
        materialize("deployed_endpoint", task.task, task.store, CancelAfterFive())
    (file,) = Path(str(task.store.stage_folder("serve"))).glob("answers/*/answers.jsonl")
    before = [json.loads(line)["id"] for line in file.read_text().splitlines()]
    assert len(before) >= 5
    messages: list[str] = []

    class RecordLog(Silent):
        def log(self, text: str) -> None:
            messages.append(text)

    deployed = materialize("deployed_endpoint", task.task, task.store, RecordLog())
    assert deployed.verdict is not None and deployed.verdict.passed and deployed.verdict.figures["rows"] == ROWS
    assert f"{len(before)} answers of resumed@1 are kept from an interrupted replay" in messages
    assert not file.exists()
    checks = [row for path in traffic_folder("resumed").glob("checks/*.jsonl") for row in read_jsonl(path)]
    assert sum(row["model"] == "resumed@1" for row in checks if row["status"] == "ok") <= ROWS + CONCURRENCY - 5


def test_a_candidate_is_not_deployed_over_a_version_it_was_not_compared_with(deployment: Deployment) -> None:
    """Another version went live after the decision, which did not include it."""
    task = deployment.task("overtaken")
    new = candidate(task, 2, deployment.make_adapter(2), {row.id: "" for row in TEST})
    task.promote(1, deployment.make_adapter(1))
    task.store.point(new)
    with pytest.raises(GateRefused, match="compared the candidate with no version, and now version 1 is live"):
        deploy(task)
    served = deployment_state.read(task.store).champion
    assert served is not None and served.version == 1

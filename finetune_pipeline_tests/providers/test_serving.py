"""A provider's version behind the endpoint: parity, answers, streams, errors and the traffic log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Provider
from finetune_pipeline.providers.cost import TrainingCost
from finetune_pipeline.providers.record import ProviderRecord
from finetune_pipeline.records import read_jsonl
from finetune_pipeline.serve import supervisor
from finetune_pipeline.serve.engine import Engine
from finetune_pipeline.serve.provider_engine import ProviderEngine
from finetune_pipeline.store import traffic_folder
from finetune_pipeline_tests.providers.fake_provider import KEY as PROVIDER_KEY
from finetune_pipeline_tests.providers.fake_provider import MODEL, FakeProvider
from finetune_pipeline_tests.serve.deployment import (
    KEY,
    ROWS,
    TEST,
    Deployed,
    RunningEndpoint,
    candidate,
    declare,
    deploy,
    register,
    running,
)

TUNED = f"ft:{MODEL}:acme:parcels:9x1"
FREE = TrainingCost(None, None, True, None, None, "USD")


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningEndpoint]:
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FINETUNE_API_KEYS", f"tests:{KEY}")
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.1)
    (tmp_path / "data").mkdir()
    with running() as server:
        monkeypatch.setenv("FINETUNE_ENDPOINT_URL", server.url)
        yield server


def managed_adapter(folder: Path, url: str, **settings: Any) -> Path:
    """The files of an adapter that a provider trained."""
    folder.mkdir(exist_ok=True)
    declared = Provider.model_validate({"model": MODEL, "base_url": url, **settings})
    record = ProviderRecord(declared, url, TUNED, "ftjob-1", {"train": "file-1"}, 10, FREE, FREE, 1, 2)
    (folder / "provider.json").write_text(json.dumps(record.to_json()), "utf-8")
    (folder / "training.json").write_text(json.dumps({"mlflow_run_id": "1"}), "utf-8")
    return folder


def served(
    endpoint: RunningEndpoint, model: Path, tmp_path: Path, provider: FakeProvider, url: str, **sections: Any
) -> Deployed:
    """Version 1 of `parcels`, promoted without the asset."""
    provider.tuned = [TUNED]
    task = declare(tmp_path / "data", "parcels", model, **sections)
    task.promote(1, managed_adapter(tmp_path / "adapter", url))
    endpoint.wait_until_serves("parcels", 1)
    return task


def test_a_deployment_replays_the_test_rows_through_the_endpoint(
    endpoint: RunningEndpoint, tiny_model: Path, tmp_path: Path, provider: FakeProvider, url: str
) -> None:
    provider.tuned, provider.answers = [TUNED], {row.prompt: f"answer {row.id[-2:]}" for row in TEST}
    task = declare(tmp_path / "data", "parcels", tiny_model)
    register("parcels")
    answers = {row.id: provider.answers[row.prompt] for row in TEST}
    candidate(task, 1, managed_adapter(tmp_path / "adapter", url), answers)
    deployed = deploy(task)
    assert deployed.verdict is not None
    assert deployed.verdict.passed
    assert deployed.verdict.figures["equal"] == ROWS
    assert endpoint.status("parcels")["champion"]["version"] == 1
    assert {chat["model"] for chat in provider.chats} == {TUNED, MODEL}, "the base is the model before the tuning"
    supervisor = endpoint.endpoint.supervisor
    assert not supervisor.engine.models.loaded, "no model is loaded on this machine"
    assert [type(engine) for engine in supervisor.engines] == [Engine, ProviderEngine]


def test_parity_fails_where_the_provider_answers_otherwise_than_evaluated(
    endpoint: RunningEndpoint, tiny_model: Path, tmp_path: Path, provider: FakeProvider, url: str
) -> None:
    provider.tuned, provider.answers = [TUNED], {row.prompt: f"answer {row.id[-2:]}" for row in TEST}
    task = declare(tmp_path / "data", "parcels", tiny_model)
    register("parcels")
    candidate(task, 1, managed_adapter(tmp_path / "adapter", url), {row.id: "other" for row in TEST})
    deployed = deploy(task)
    assert deployed.verdict is not None
    assert not deployed.verdict.passed
    assert endpoint.status("parcels")["champion"] is None


def test_an_answer_and_its_stream_are_forwarded_with_the_tasks_prompt_and_limits(
    endpoint: RunningEndpoint, tiny_model: Path, tmp_path: Path, provider: FakeProvider, url: str
) -> None:
    served(endpoint, tiny_model, tmp_path, provider, url)
    provider.answers = {"where?": "on its way"}
    answer = endpoint.complete("parcels", "where?", max_tokens=500)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "on its way"
    assert answer.json()["usage"] == {"prompt_tokens": 6, "completion_tokens": 2, "total_tokens": 8}
    assert answer.headers["x-finetune-version"] == "1"
    sent = provider.chats[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Answer parcels with one word."}
    assert (sent["model"], sent["max_tokens"], sent["temperature"]) == (TUNED, 16, 0.0)
    stream = endpoint.complete("parcels", "where?", stream=True, stream_options={"include_usage": True})
    events = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"]]
    assert "".join(deltas) == "on its way"
    assert len([delta for delta in deltas if delta]) > 2
    assert events[-1]["usage"]["prompt_tokens"] == 6
    assert endpoint.complete("parcels@base", "where?").json()["choices"][0]["message"]["content"] == "red"
    assert endpoint.endpoint.traffic.flush()
    lines = [row for path in sorted(traffic_folder("parcels").glob("*.jsonl")) for row in read_jsonl(path)]
    assert [(line["status"], line["prompt_tokens"], line["version"]) for line in lines[:2]] == [("ok", 6, 1)] * 2
    assert PROVIDER_KEY not in json.dumps(lines)


def test_an_invalid_answer_is_handled_as_declared(
    endpoint: RunningEndpoint, tiny_model: Path, tmp_path: Path, provider: FakeProvider, url: str
) -> None:
    labels = {"answer": {"format": "label", "labels": ["red", "green"]}, "serve": {"on_invalid": "base"}}
    served(endpoint, tiny_model, tmp_path, provider, url, **labels)
    provider.answers = {"color?": "mauve", "door?": "green\nas the door is green"}
    answer = endpoint.complete("parcels", "color?")
    assert answer.json()["choices"][0]["message"]["content"] == "red", "the model before the tuning answers"
    assert answer.headers["x-finetune-status"] == "fallback"
    assert endpoint.complete("parcels", "door?").json()["choices"][0]["message"]["content"] == "green"


def test_a_failure_of_the_provider_is_an_error_without_its_key_and_frees_the_slot(
    endpoint: RunningEndpoint, tiny_model: Path, tmp_path: Path, provider: FakeProvider, url: str
) -> None:
    served(endpoint, tiny_model, tmp_path, provider, url)
    provider.faults = {("POST", "/chat"): [400]}
    answer = endpoint.complete("parcels")
    assert answer.status_code == 500
    assert "could not answer: fault 400" in answer.json()["error"]["message"]
    assert PROVIDER_KEY not in answer.text
    assert endpoint.complete("parcels").status_code == 200
    assert endpoint.endpoint.supervisor.busy() == (0, 0)


def test_without_the_providers_key_the_version_is_not_served_and_says_why(
    endpoint: RunningEndpoint, tiny_model: Path, tmp_path: Path, url: str
) -> None:
    task = declare(tmp_path / "data", "parcels", tiny_model)
    task.promote(1, managed_adapter(tmp_path / "adapter", url, key_variable="ANOTHER_KEY"))
    endpoint.wait_until(lambda: bool(endpoint.status("parcels")["errors"]), "the error")
    assert "environment variable ANOTHER_KEY" in endpoint.status("parcels")["errors"]["champion"]

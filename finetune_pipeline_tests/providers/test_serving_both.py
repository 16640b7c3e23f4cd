"""Versions of this machine and versions of a provider behind one endpoint: side by side, and rollback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from finetune_pipeline.serve import deployment_state
from finetune_pipeline.serve.rollback import rollback
from finetune_pipeline.serve.supervisor import Supervisor
from finetune_pipeline_tests.providers.fake_provider import MODEL, FakeProvider
from finetune_pipeline_tests.providers.test_serving import TUNED, managed_adapter
from finetune_pipeline_tests.providers.test_serving import endpoint as endpoint
from finetune_pipeline_tests.serve.conftest import make_adapter as make_adapter
from finetune_pipeline_tests.serve.deployment import Deployed, MakeAdapter, RunningEndpoint, declare


@pytest.fixture
def task(endpoint: RunningEndpoint, tiny_model: Path, tmp_path: Path, provider: FakeProvider) -> Iterator[Deployed]:
    provider.tuned = [TUNED]
    yield declare(tmp_path / "data", "parcels", tiny_model)


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def supervisor_of(endpoint: RunningEndpoint) -> Supervisor:
    return endpoint.endpoint.supervisor


def wait_for_engines(endpoint: RunningEndpoint, forwarding: int, adapters: set[str]) -> None:
    """Until so many engines forward, and these adapters are in this machine's memory."""
    supervisor = supervisor_of(endpoint)

    def reached() -> bool:
        loaded = {model.adapter for model in supervisor.engine.models.loaded} - {None}
        return (len(supervisor.engines) - 1, loaded) == (forwarding, adapters)

    endpoint.wait_until(reached, f"{forwarding} engines that forward, and {adapters}")


def test_a_version_of_each_kind_is_rolled_back_to_the_one_before(
    endpoint: RunningEndpoint, task: Deployed, make_adapter: MakeAdapter, tmp_path: Path, url: str
) -> None:
    local, again = make_adapter(1), make_adapter(2)
    task.promote(1, local)
    endpoint.wait_until_serves("parcels", 1)
    first = text_of(endpoint.complete("parcels"))
    wait_for_engines(endpoint, 0, {task.adapter(local).content_hash})
    task.promote(2, managed_adapter(tmp_path / "adapter", url))
    endpoint.wait_until_serves("parcels", 2)
    assert text_of(endpoint.complete("parcels")) == "red" != first
    wait_for_engines(endpoint, 1, set())
    assert not supervisor_of(endpoint).engine.models.loaded, "the base model's memory is free, too"
    task.promote(3, again)
    endpoint.wait_until_serves("parcels", 3)
    wait_for_engines(endpoint, 0, {task.adapter(again).content_hash})
    rollback("parcels", "worse")
    endpoint.wait_until_serves("parcels", 2)
    assert text_of(endpoint.complete("parcels@base")) == "red"
    rollback("parcels", "worse")
    endpoint.wait_until_serves("parcels", 1)
    assert text_of(endpoint.complete("parcels")) == first
    wait_for_engines(endpoint, 0, {task.adapter(local).content_hash})


def test_both_answer_side_by_side_and_share_no_base(
    endpoint: RunningEndpoint,
    task: Deployed,
    make_adapter: MakeAdapter,
    tiny_model: Path,
    tmp_path: Path,
    provider: FakeProvider,
    url: str,
) -> None:
    forwarded = [declare(tmp_path / "data", name, tiny_model) for name in ("bills", "calls")]
    for number, other in enumerate(forwarded):
        other.promote(1, managed_adapter(tmp_path / f"adapter{number}", url, suffix=f"s{number}"))
        endpoint.wait_until_serves(other.name, 1)
    assert text_of(endpoint.complete("base")) == "red", "both tasks have the same base at the provider"
    assert provider.chats[-1]["model"] == MODEL
    task.promote(1, make_adapter(1))
    endpoint.wait_until_serves("parcels", 1)
    answers = {name: text_of(endpoint.complete(name)) for name in ("bills", "calls", "parcels", "parcels@base")}
    assert answers["bills"] == answers["calls"] == "red"
    assert len({"red", answers["parcels"], answers["parcels@base"]}) == 3
    assert endpoint.complete("base").status_code == 404
    wait_for_engines(endpoint, 2, {task.adapter(make_adapter(1)).content_hash})
    assert supervisor_of(endpoint).busy() == (0, 0)
    deployment_state.update(forwarded[0].store, lambda state: replace(state, champion=None))
    wait_for_engines(endpoint, 1, {task.adapter(make_adapter(1)).content_hash})
    assert text_of(endpoint.complete("calls")) == "red"


def test_a_forwarded_request_ends_with_its_answer_though_the_version_is_rolled_back(
    endpoint: RunningEndpoint,
    task: Deployed,
    make_adapter: MakeAdapter,
    tmp_path: Path,
    provider: FakeProvider,
    url: str,
) -> None:
    task.promote(1, make_adapter(1))
    task.promote(2, managed_adapter(tmp_path / "adapter", url))
    endpoint.wait_until_serves("parcels", 2)
    provider.faults = {("POST", "/chat"): ["hold"]}
    responses: list[httpx.Response] = []
    client = threading.Thread(target=lambda: responses.append(endpoint.complete("parcels")))
    client.start()
    endpoint.wait_until(lambda: supervisor_of(endpoint).busy() == (1, 0), "the request at the provider")
    rollback("parcels", "worse")
    endpoint.wait_until_serves("parcels", 1)
    before = supervisor_of(endpoint).rounds
    endpoint.wait_until(lambda: supervisor_of(endpoint).rounds > before + 1, "two rounds")
    wait_for_engines(endpoint, 1, {task.adapter(make_adapter(1)).content_hash})
    provider.released.set()
    client.join(30)
    assert text_of(responses[0]) == "red"
    assert responses[0].headers["x-finetune-version"] == "2"
    wait_for_engines(endpoint, 0, {task.adapter(make_adapter(1)).content_hash})

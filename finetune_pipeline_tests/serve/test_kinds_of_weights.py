"""Versions of different kinds behind one endpoint: adapters, adapters on 4 bits, full weights; rollback."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest

from finetune_pipeline.models.trained_weights import Method
from finetune_pipeline.serve import deployment_state
from finetune_pipeline.serve.model_routes import find_artifacts
from finetune_pipeline.serve.rollback import rollback
from finetune_pipeline_tests.serve.conftest import MakeWeights
from finetune_pipeline_tests.serve.deployment import TEST, Deployed, Deployment, candidate, deploy, evaluated_answers

METHODS: tuple[Method, ...] = ("lora", "qlora", "full")


@pytest.fixture(autouse=True)
def _needs_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes")


def answers(deployment: Deployment, model: str) -> dict[str, str]:
    def text(response: httpx.Response) -> str:
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    return {row.id: text(deployment.server.complete(model, row.prompt)) for row in TEST[:4]}


def first(evaluated: dict[str, str]) -> dict[str, str]:
    return {row.id: evaluated[row.id] for row in TEST[:4]}


def bases(deployment: Deployment) -> set[tuple[str, bool]]:
    """What is in the engine's memory: weights, and whether in 4 bits."""
    return {(base.weights, base.quantized) for base in deployment.server.endpoint.supervisor.engine._pool.bases}


def test_each_kind_passes_parity_and_is_rolled_back_to_the_one_before(
    deployment: Deployment, make_weights: MakeWeights
) -> None:
    task = deployment.task("kinds")
    evaluated = {}
    for number, method in enumerate(METHODS, 1):
        folder = make_weights(method)
        evaluated[number] = evaluated_answers(task, folder)
        candidate(task, number, folder, evaluated[number])
        deployed = deploy(task)
        assert deployed.verdict is not None and deployed.verdict.passed, deployed.verdict
        assert deployed.verdict.figures["share"] == 1.0
        assert answers(deployment, "kinds") == first(evaluated[number])
        status = deployment.server.status("kinds")
        assert (status["champion"]["version"], status["errors"]) == (number, {})
        assert status["desired"]["champion"]["precision"] == "auto"
    assert len({tuple(each.values()) for each in evaluated.values()}) == 3
    weights = find_artifacts(task.store, state(task).champion).weights  # type: ignore[arg-type]
    full, lora, qlora = task.adapter(make_weights("full")).content_hash, (weights, False), (weights, True)
    wait_for(deployment, {(full, False), lora}, "full weights and their base model alone")

    rollback("kinds", "worse")  # from full weights to an adapter on 4 bits
    deployment.server.wait_until_serves("kinds", 2)
    assert answers(deployment, "kinds") == first(evaluated[2])
    wait_for(deployment, {qlora}, "the base in 4 bits alone")
    rollback("kinds", "worse")  # to an adapter
    deployment.server.wait_until_serves("kinds", 1)
    assert answers(deployment, "kinds") == first(evaluated[1])
    wait_for(deployment, {lora}, "the base model alone")
    stop(task)
    wait_for(deployment, set(), "no model")


def test_the_base_model_of_full_weights_is_the_declared_one(deployment: Deployment, make_weights: MakeWeights) -> None:
    task = deployment.task("whole")
    base = first(evaluated_answers(task, None))
    task.promote(1, make_weights("full"), on_invalid="flag")
    deployment.server.wait_until_serves("whole", 1)
    assert answers(deployment, "whole@base") == base != answers(deployment, "whole")
    response = deployment.server.complete("whole", TEST[0].prompt)
    assert response.headers["x-finetune-adapter"] == task.adapter(make_weights("full")).content_hash
    stop(task)
    wait_for(deployment, set(), "no model")


def test_versions_of_three_kinds_answer_side_by_side(deployment: Deployment, make_weights: MakeWeights) -> None:
    tasks = {method: deployment.task(f"beside_{method}") for method in METHODS}
    evaluated = {method: first(evaluated_answers(task, make_weights(method))) for method, task in tasks.items()}
    for method, task in tasks.items():
        task.promote(1, make_weights(method))
        deployment.server.wait_until_serves(task.name, 1)
    for method in (*METHODS, *reversed(METHODS)):
        assert answers(deployment, f"beside_{method}") == evaluated[method]
    assert len(bases(deployment)) == 3
    assert "base" in {model["id"] for model in deployment.server.get("/v1/models").json()["data"]}
    assert answers(deployment, "beside_qlora@base") != answers(deployment, "beside_lora@base")
    assert deployment.server.endpoint.supervisor.engine.is_alive, "one thread"
    for task in tasks.values():
        stop(task)
    wait_for(deployment, set(), "no model")


def test_an_answer_that_breaks_the_format_falls_back_to_the_base_of_full_weights(
    deployment: Deployment, make_weights: MakeWeights
) -> None:
    task = deployment.task("falling", answer={"format": "label", "labels": ["yes", "no"]})
    task.promote(1, make_weights("full"), on_invalid="base")
    deployment.server.wait_until_serves("falling", 1)
    base = answers(deployment, "falling@base")
    assert base != answers(deployment, "falling@1")
    for row in TEST[:4]:
        response = deployment.server.complete("falling", row.prompt).json()
        assert response["finetune"]["status"] == "fallback"
        assert response["choices"][0]["message"]["content"] == base[row.id]
    stop(task)
    wait_for(deployment, set(), "no model")


def test_another_precision_of_the_same_version_is_another_model(
    deployment: Deployment, make_weights: MakeWeights
) -> None:
    task = deployment.task("precise")
    pool = deployment.server.endpoint.supervisor.engine._pool

    def precisions() -> list[str]:
        return [base.precision for base in pool.bases]

    for precision in ("auto", "bf16", "fp32"):
        task.promote(1, make_weights("lora"), precision=precision)
        deployment.server.wait_until(
            partial(lambda wanted: precisions() == [wanted], precision), f"a model in {precision} alone"
        )
        assert set(answers(deployment, "precise")) == {row.id for row in TEST[:4]}
    stop(task)
    wait_for(deployment, set(), "no model")


@pytest.mark.parametrize("method", METHODS)
def test_damaged_weights_leave_the_version_before_in_place(
    deployment: Deployment, make_weights: MakeWeights, tmp_path: Path, method: Method
) -> None:
    task = deployment.task(f"damaged_{method}")
    task.promote(1, make_weights("lora"))
    deployment.server.wait_until_serves(task.name, 1)
    before = answers(deployment, task.name)
    folder = Path(shutil.copytree(make_weights(method), tmp_path / "damaged"))
    weights = folder / ("model.safetensors" if method == "full" else "adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    task.promote(2, folder)
    deployment.server.wait_until(lambda: bool(deployment.server.status(task.name)["errors"]), "the error")
    assert "version 2 cannot be served" in deployment.server.status(task.name)["errors"]["champion"]
    assert answers(deployment, task.name) == before
    wait_for(deployment, {base for base in bases(deployment) if not base[1]}, "nothing of the damaged version")
    assert len(bases(deployment)) == 1
    stop(task)
    wait_for(deployment, set(), "no model")


def state(task: Deployed) -> deployment_state.DeploymentState:
    return deployment_state.read(task.store)


def stop(task: Deployed) -> None:
    deployment_state.update(task.store, lambda s: replace(s, champion=None, challenger=None))


def wait_for(deployment: Deployment, expected: set[tuple[str, bool]], what: str) -> None:
    deployment.server.wait_until(lambda: bases(deployment) == expected, f"{what} in memory, not {bases(deployment)}")

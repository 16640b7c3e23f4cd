"""The section `train.provider`: what is refused, what makes artifacts stale, where address and key come from."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_pipeline.config import Provider, Task
from finetune_pipeline.errors import DeclarationError
from finetune_pipeline.graph import BY_NAME
from finetune_pipeline.materialize import declared_values
from finetune_pipeline.providers.connection import DEFAULT_URL, connection_of
from finetune_pipeline_tests.artifacts import task

MODEL = "gpt-4.1-mini-2025-04-14"


def declared(train: dict[str, Any] | None = None, **provider: Any) -> Task:
    return task(train={**(train or {}), "provider": {"model": MODEL, **provider}})


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"base_url": "https://anna:secret@api.example.com/v1"},
            "train.provider.base_url: the address holds credentials",
        ),
        ({"base_url": "https://api.example.com/v1?api_key=abc"}, "the address holds credentials"),
        ({"base_url": "http://api.example.com/v1"}, "unencrypted"),
        ({"base_url": "api.example.com"}, "begins with https://"),
        ({"key_variable": "sk-abcdefgh"}, "give the NAME of an environment variable"),
        ({"max_cost": 3.0}, "`max_cost` needs `price_per_million_training_tokens`"),
        ({"hyperparameters": {"beta": 0.1}}, "is for `method: dpo`"),
        ({"hyperparameters": {"n_epochs": 0}}, "give a number above 0, or `auto`"),
        ({"currency": "EUR"}, "declare all prices in one currency"),
        ({"api_key": "sk-abcdefgh"}, "train.provider.api_key: unknown key"),
    ],
)
def test_a_faulty_declaration_is_refused_with_a_hint(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        declared(**settings)
    assert problem in str(caught.value)


def test_settings_of_the_local_training_beside_a_provider_are_refused() -> None:
    with pytest.raises(DeclarationError, match=r"`lora`, `learning_rate`: not used when `train.provider` trains"):
        declared({"lora": {"r": 8}, "learning_rate": 1e-3})
    assert declared({"seed": 7}).train.seed == 7


def test_prices_and_deployment_make_no_training_stale_but_the_model_and_its_hyperparameters_do() -> None:
    def key_of(asset: str, **settings: Any) -> dict[str, Any]:
        return declared_values(BY_NAME[asset], declared(**settings))

    plain = key_of("adapter")
    operational = {"price_per_million_training_tokens": 5.0, "max_cost": 9.0, "deployment": "parcels"}
    assert key_of("adapter", **operational, poll_seconds=60, requests_at_once=2, structured_outputs=False) == plain
    assert key_of("adapter", hyperparameters={"n_epochs": 2}) != plain
    assert key_of("baseline_report", hyperparameters={"n_epochs": 2}) == key_of("baseline_report")
    assert key_of("baseline_report", model="gpt-4.1-nano") != key_of("baseline_report")
    assert key_of("baseline_report", structured_outputs=False) != key_of("baseline_report")


def test_address_and_key_come_from_the_declaration_else_from_the_environment() -> None:
    environment = {"OPENAI_API_KEY": "sk-1", "AZURE_KEY": "az-1", "OPENAI_BASE_URL": "https://gateway.example.com/v1"}
    plain = Provider(model=MODEL)
    assert connection_of(plain, environment=environment).url == "https://gateway.example.com/v1"
    assert connection_of(plain, environment={"OPENAI_API_KEY": "sk-1"}).url == DEFAULT_URL
    recorded = connection_of(plain, "https://api.example.com/v1", {"OPENAI_API_KEY": "sk-1"})
    assert recorded.url == "https://api.example.com/v1", "where it was trained, rather than the default address"
    azure = Provider(model=MODEL, base_url="https://a.openai.azure.com/openai/v1/", key_variable="AZURE_KEY")
    where = connection_of(azure, environment=environment)
    assert (where.url, where.key) == ("https://a.openai.azure.com/openai/v1/", "az-1")
    assert "az-1" not in repr(where)


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({}, "OPENAI_API_KEY, which holds the provider's API key, is not set"),
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://api.example.com/v1"}, "unencrypted"),
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "https://a:b@api.example.com/v1"}, "the address holds credentials"),
    ],
)
def test_an_unsafe_environment_is_refused(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(DeclarationError, match=problem) as caught:
        connection_of(Provider(model=MODEL), environment=environment)
    assert "a:b" not in str(caught.value)

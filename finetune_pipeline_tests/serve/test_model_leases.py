"""Reference counts of models: one is unloaded after its last lease, a base after the last model on it."""

from __future__ import annotations

import pytest

from finetune_pipeline.serve.generation_request import BaseId, ModelGone, ModelId
from finetune_pipeline.serve.model_leases import ModelLeases

BASE = BaseId("base")
A, B = ModelId(BASE, "a"), ModelId(BASE)


@pytest.fixture
def leases() -> ModelLeases:
    leases = ModelLeases()
    leases.add(A)
    return leases


def test_an_unused_model_is_unloaded_at_once(leases: ModelLeases) -> None:
    assert leases.retire(A) and not leases.needed(A)
    with pytest.raises(ModelGone):
        leases.acquire(A)


def test_a_retired_model_is_unloaded_with_its_last_lease(leases: ModelLeases) -> None:
    leases.acquire(A)
    leases.acquire(A)
    assert not leases.retire(A)
    with pytest.raises(ModelGone):
        leases.acquire(A)
    assert not leases.release(A) and leases.needed(A)
    assert leases.release(A) and not leases.needed(A)


def test_a_model_that_is_loaded_again_stays(leases: ModelLeases) -> None:
    leases.acquire(A)
    leases.retire(A)
    leases.add(A)
    assert not leases.release(A) and leases.needed(A)


def test_a_base_is_needed_while_a_model_on_it_is_loaded_or_leased(leases: ModelLeases) -> None:
    leases.add(B)
    leases.acquire(A)
    assert leases.retire(B) and leases.base_needed(BASE)
    assert not leases.retire(A) and leases.base_needed(BASE)
    assert not leases.base_needed(BaseId("base", quantized=True)), "another model in memory"
    assert leases.release(A) and not leases.base_needed(BASE)

"""Reference counts of adapters: an adapter is unloaded after its last lease."""

from __future__ import annotations

import pytest

from finetune_pipeline.serve.adapter_leases import AdapterLeases
from finetune_pipeline.serve.generation_request import AdapterGone


@pytest.fixture
def leases() -> AdapterLeases:
    leases = AdapterLeases()
    leases.add("a")
    return leases


def test_an_unused_adapter_is_unloaded_at_once(leases: AdapterLeases) -> None:
    assert leases.retire("a") and not leases.needed("a")
    with pytest.raises(AdapterGone):
        leases.acquire("a")


def test_a_retired_adapter_is_unloaded_with_its_last_lease(leases: AdapterLeases) -> None:
    leases.acquire("a")
    leases.acquire("a")
    assert not leases.retire("a")
    with pytest.raises(AdapterGone):
        leases.acquire("a")
    assert not leases.release("a") and leases.needed("a")
    assert leases.release("a") and not leases.needed("a")


def test_an_adapter_that_is_loaded_again_stays(leases: AdapterLeases) -> None:
    leases.acquire("a")
    leases.retire("a")
    leases.add("a")
    assert not leases.release("a") and leases.needed("a")

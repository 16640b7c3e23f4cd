"""Job descriptions: the same after a round trip, and errors that name the key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Lora, Train
from finetune_pipeline.errors import StorageError


@dataclass(frozen=True)
class Spec(JobData):
    folder: Path
    rules: Train
    adapter: Path | None = None


def test_a_description_is_the_same_after_json() -> None:
    spec = Spec(Path("/a/b"), Train(lora=Lora(r=4)))
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": None}, "Spec: folder: Input is not a valid path"),
        ({"foldre": "/a"}, "Spec: foldre: Unexpected keyword argument"),
        ({"rules": {"epochs": 2}}, r"Spec: rules\.epochs: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_key_is_an_error_that_names_it(change: dict[str, object], message: str) -> None:
    described = Spec(Path("/a/b"), Train()).to_json()
    with pytest.raises(StorageError, match=message):
        Spec.from_json(described | change)


def test_a_missing_key_is_an_error_that_names_it() -> None:
    with pytest.raises(StorageError, match="Spec: folder: Field required"):
        Spec.from_json({"rules": {}})

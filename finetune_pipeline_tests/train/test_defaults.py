"""Defaults that depend on the base model: each combination has one, with its source, and a declared value stays."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import pytest

from finetune_pipeline.config import Train
from finetune_pipeline.train.defaults import RATES, learning_rate, with_defaults
from finetune_pipeline.train.job import log_origins
from finetune_pipeline.train.optimizer import optimizer_for
from finetune_pipeline.train.schedule import learning_rate_at
from finetune_pipeline_tests.train.setup import LogRecorder
from finetune_pipeline_tests.train.test_training import spec_of

METHODS: tuple[Literal["lora", "qlora", "full"], ...] = ("lora", "qlora", "full")


@pytest.mark.parametrize(
    ("method", "objective", "parameters", "rate"),
    [
        ("lora", "sft", 134_515_008, 2e-3),  # measured here
        ("qlora", "sft", 7_000_000_000, 2e-4),  # QLoRA
        ("qlora", "sft", 13_000_000_000, 2e-4),
        ("qlora", "sft", 33_000_000_000, 1e-4),
        ("full", "sft", 7_000_000_000, 2e-5),
        ("lora", "dpo", 7_000_000_000, 5e-6),  # Zephyr
        ("full", "dpo", 7_000_000_000, 5e-7),
        ("full", "kto", 1_700_000_000, 1e-6),
        ("full", "orpo", 7_000_000_000, 8e-6),
    ],
)
def test_the_published_rates_are_the_defaults(method: str, objective: str, parameters: int, rate: float) -> None:
    assert learning_rate(method, objective, parameters).value == rate


def test_every_objective_has_a_rate_with_a_source_that_falls_with_the_size() -> None:
    assert RATES.keys() == set(get_args(Train.model_fields["objective"].annotation))
    for rows in RATES.values():
        assert all(row.source for row in rows)
        assert [row.rate for row in rows] == sorted((row.rate for row in rows), reverse=True)
        assert rows[-1].parameters == float("inf")


@pytest.mark.parametrize("method", METHODS)
def test_a_declared_rate_is_not_changed(method: Literal["lora", "qlora", "full"]) -> None:
    declared = Train(method=method, learning_rate=3e-4)
    assert with_defaults(declared, 10**9) == (declared, {})
    filled, origins = with_defaults(Train(method=method), 10**9)
    assert filled == Train(method=method, learning_rate=1e-4 if method == "full" else 1e-3)
    source = "a tenth of an adapter's (Schulman" if method == "full" else "Schulman"
    assert origins["learning_rate"].startswith(f"default for {method}, sft and 1,000 million parameters ({source}")


def test_a_rate_that_was_not_filled_in_is_an_error_and_not_a_guess() -> None:
    with pytest.raises(ValueError, match="fill in the defaults"):
        learning_rate_at(0, 10, Train())
    with pytest.raises(ValueError, match="fill in the defaults"):
        optimizer_for({}, Train())


def test_the_log_of_a_training_names_where_a_setting_is_from(tiny_model: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    spec = replace(
        spec_of("llama", tiny_model, tmp_path, count=4),
        params={"learning_rate": 0.002},
        origins={"learning_rate": "default for lora"},
    )
    report = LogRecorder()
    log_origins(spec, report)
    assert report.lines == ["learning_rate: 0.002, default for lora"]

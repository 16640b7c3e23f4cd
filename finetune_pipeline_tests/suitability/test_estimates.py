"""Estimates compared with measured sizes and times, and their direction of change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetune_pipeline.config import KeepGeneral, Lora, Suitability, Train
from finetune_pipeline.models.gpu_fit import gpu_rows
from finetune_pipeline.statistics.formatting import duration
from finetune_pipeline.suitability.estimates import (
    DAYS_PER_MONTH,
    Machine,
    estimate_training,
)
from finetune_pipeline.suitability.facts import Facts
from finetune_pipeline_tests.models.sizes import seven, seventy, smollm

SMOLLM = smollm()
FACTS = Facts(1000, 640, 0, "json", 500, 2, 1, system_tokens=50, prompt_tokens=40, completion_tokens=20)
MACHINE = Machine(gflops=847, free_mb=8000)


def test_time_is_close_to_a_measured_training() -> None:
    """A quarter of an epoch of the sample task (18 steps, 12 of 30 layers) took about 70 s of one thread at
    194 GFLOP/s in bf16, with its two validations."""
    sample = Facts(
        877, 754, 24, "json", 571, 4, 3, system_tokens=147, prompt_tokens=33, completion_tokens=30, train_share=0.77
    )
    train = Train(layers=12, num_epochs=0.25, batch_size=8)
    estimate = estimate_training(sample, SMOLLM, train, Suitability(), Machine(gflops=194, free_mb=8000))
    assert estimate.training_seconds == pytest.approx(70, rel=0.5)


@pytest.mark.parametrize(("method", "measured"), [("lora", 3616), ("qlora", 3532), ("full", 4999)])
def test_memory_is_close_to_that_of_measured_trainings(method: str, measured: float) -> None:
    """benchmarks/memory.py: the sample task in batches of 16, fp32."""
    sample = Facts(100, 64, 0, "json", 60, 4, 3, system_tokens=147, prompt_tokens=35, completion_tokens=30)
    machine = Machine(gflops=140, free_mb=20_000, precision="fp32")
    estimate = estimate_training(sample, SMOLLM, Train(), Suitability(), machine)
    assert estimate.fits[method].memory.total_mb == pytest.approx(measured, rel=0.2)


def test_time_is_close_to_a_second_measured_training() -> None:
    """The sample task with 1,947 rows (274 steps, 16 of 30 layers): 483 s on two cores at 427 GFLOP/s in bf16."""
    sample = Facts(
        1947, 1824, 24, "json", 1217, 4, 3, system_tokens=147, prompt_tokens=35, completion_tokens=30, train_share=0.8
    )
    estimate = estimate_training(
        sample, SMOLLM, Train(layers=16, num_epochs=1.5, batch_size=8), Suitability(), Machine(gflops=427, free_mb=8000)
    )
    assert estimate.training_seconds == pytest.approx(483, rel=0.3)


def test_more_rows_epochs_layers_or_rank_take_longer() -> None:
    def seconds(facts: Facts = FACTS, train: Train | None = None, machine: Machine = MACHINE) -> float:
        return estimate_training(facts, SMOLLM, train or Train(), Suitability(), machine).training_seconds

    assert seconds(replace(FACTS, usable=1280)) == pytest.approx(2 * seconds())
    assert seconds(replace(FACTS, train_share=0.5)) == pytest.approx(seconds() / 2)
    assert seconds(train=Train(num_epochs=4)) == pytest.approx(2 * seconds())
    assert seconds(train=Train(keep_general=KeepGeneral(weight=0))) < seconds()
    assert seconds(train=Train(layers=10)) < 0.6 * seconds(), "the layers below are computed once per row"
    assert seconds(machine=Machine(423.5, 8000)) == pytest.approx(2 * seconds())
    assert seconds(train=Train(lora=Lora(r=64))) > seconds()
    assert seconds(train=Train(batch_size=1)) > seconds(), "the system prompt is then computed with every row"


def test_every_method_has_a_verdict_here_and_on_gpus() -> None:
    card = Machine(gflops=100_000, free_mb=24_000, device="cuda")
    config = Suitability(gpu_per_hour={"h100": 2.5})
    estimate = estimate_training(FACTS, seven(), Train(), config, card)
    need = {method: fit.memory.total_mb for method, fit in estimate.fits.items()}
    assert need["qlora"] < need["lora"] < need["full"]
    assert [estimate.fits[method].verdict for method in ("qlora", "full")] == ["FITS", "TOO BIG"]
    found = {(each.gpu, each.method): each for each in estimate.gpus}
    assert found["l4", "qlora"].count == 1 and found["h100", "lora"].count == 1
    assert found["a100-80", "full"].count == 2 and found["l4", "full"].count == 8
    one = found["h100", "lora"]
    assert one.seconds is not None and one.cost == pytest.approx(one.seconds / 3600 * 2.5)
    assert found["l4", "lora"].cost is None, "no price is declared"
    rows = {row[0]: row[1:] for row in gpu_rows(estimate.gpus, "EUR")}
    assert rows["NVIDIA H100 SXM 80 GB"][0] == f"1 GPU: {duration(one.seconds)}, {one.cost:.2f} EUR"
    assert rows["NVIDIA L4 24 GB"][0].startswith("1 GPU*: "), "with gradient checkpointing"
    large = estimate_training(FACTS, seventy(), Train(), config, card).gpus
    assert next(each for each in large if (each.gpu, each.method) == ("l4", "full")).seconds is None
    assert "not in 8" in {cell for row in gpu_rows(large, "EUR") for cell in row}


def test_at_break_even_prompting_and_hosting_cost_the_same() -> None:
    config = Suitability(requests_per_day=100_000, prompted_price=1.0, hosting_per_month=30)
    estimate = estimate_training(FACTS, SMOLLM, Train(), config, MACHINE)
    assert estimate.prompted_per_month == pytest.approx(100_000 * DAYS_PER_MONTH * (50 + 40 + 4 * 60 + 20) / 1e6)
    months = estimate.break_even_months
    assert months is not None
    assert months * (estimate.prompted_per_month - 30) == pytest.approx(estimate.training_cost)
    even = estimate.break_even_requests
    assert even is not None
    at_even = config.model_copy(update={"requests_per_day": even})
    assert estimate_training(FACTS, SMOLLM, Train(), at_even, MACHINE).prompted_per_month == pytest.approx(30)


def test_break_even_is_none_where_hosting_never_pays() -> None:
    few = estimate_training(FACTS, SMOLLM, Train(), Suitability(requests_per_day=1), MACHINE)
    assert few.break_even_months is None
    assert few.break_even_requests is not None
    assert estimate_training(FACTS, SMOLLM, Train(), Suitability(prompted_price=0), MACHINE).break_even_requests is None


def test_without_rows_nothing_is_divided_by_zero() -> None:
    nothing = Facts(10, 0, 0, "text", 0, 0, 0, 0.0, 0.0, 0.0)
    estimate = estimate_training(nothing, SMOLLM, Train(), Suitability(), MACHINE)
    assert estimate.training_seconds == 0
    assert estimate.break_even_requests is None

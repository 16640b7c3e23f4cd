"""The gate and the report, with a real tokenizer."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Provider, Suitability, Train
from finetune_pipeline.materialize import materialize
from finetune_pipeline.models.device import kind, name_of, uses_bf16
from finetune_pipeline.models.model_files import dimensions, token_counter
from finetune_pipeline.providers import cost
from finetune_pipeline.providers.rows import lines_of, prepare
from finetune_pipeline.records import Drop, Silent, Verdict
from finetune_pipeline.suitability.assets import evaluate_suitability
from finetune_pipeline.suitability.estimates import Machine, estimate_training
from finetune_pipeline.suitability.facts import Facts
from finetune_pipeline.suitability.probe import ProbeSpec, measure, run
from finetune_pipeline.suitability.report import markdown
from finetune_pipeline.suitability.rules import recommend
from finetune_pipeline_tests.artifacts import example, finished, task, task_store
from finetune_pipeline_tests.models.sizes import tiny

LABELS = ["delivery", "refund"]


def verdict(usable: int, **settings: Any) -> Verdict:
    config, machine = Suitability(**settings), Machine(100, 8000)
    facts = Facts(1000, usable, 0, "label", 2, 0, 0, 50, 40, 2)
    estimate = estimate_training(facts, tiny(), Train(), config, machine)
    advice = recommend(facts, estimate, tiny().parameters, config, machine)
    return evaluate_suitability(facts, advice, estimate, machine, config, "hash", "lora")


@pytest.mark.parametrize(
    ("usable", "passed", "warned"), [(199, False, True), (200, True, True), (499, True, True), (500, True, False)]
)
def test_too_few_examples_fail_the_gate_and_few_are_a_warning(usable: int, passed: bool, warned: bool) -> None:
    result = verdict(usable)
    assert result.passed is passed
    assert ("examples for a reliable result" in result.figures["warnings"]) is warned  # type: ignore[operator]


def test_an_override_passes_the_gate_and_is_shown() -> None:
    result = verdict(50, override="a pilot, decided by the board")
    assert result.passed
    assert "a pilot, decided by the board" in result.summary
    assert "a pilot, decided by the board" in result.checks[0].observed
    assert "pilot" not in verdict(500, override="a pilot").summary, "with enough examples the override is not shown"


def test_a_recommendation_against_tuning_is_a_warning_and_does_not_block() -> None:
    result = verdict(300, requests_per_day=0, needs_sources=True)
    assert result.passed
    assert "pays for itself" in result.figures["warnings"]  # type: ignore[operator]


def test_the_report_is_written_and_shows_every_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    store = task_store(tmp_path, monkeypatch)
    declared = task(
        base={"path": str(tiny_model), "license": "apache-2.0"},
        answer={"format": "label", "labels": LABELS},
        suitability={"min_examples": 20, "recommended_examples": 25},
    )
    materialize("base_model", declared, store)
    rows = [example(f"r{i}", f"where is my parcel number {i}", LABELS[i % 2]) for i in range(30)]
    drops = [Drop("d", "test.csv:d", "clean", "contradiction")]
    finished(store, "raw_examples", {"examples.jsonl": [*rows, example("d", "where", "refund")], "drops.jsonl": []})
    clean = finished(store, "clean_examples", {"examples.jsonl": rows, "drops.jsonl": drops})
    made = materialize("suitability_report", declared, store)
    assert made.verdict is not None
    assert made.verdict.passed
    assert made.verdict.about == clean.content_hash
    page = made.path("report.md").read_text("utf-8")
    report = made.json("report.json")
    assert report["facts"]["contradictory"] == 1
    assert 6 <= report["facts"]["prompt_tokens"] <= len("where is my parcel number 10")
    assert all(result["rule"] in page for result in report["recommendation"]["rules"])
    assert report["recommendation"]["tool"] == made.summary["tool"]


@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_the_cost_at_a_provider_is_that_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, method: str
) -> None:
    store = task_store(tmp_path, monkeypatch)
    provider = Provider(model="gpt-x", method=method, price_per_million_training_tokens=5.0)
    declared = task(
        base={"path": str(tiny_model), "license": "apache-2.0"},
        prompt={"system": "Say what it is about."},
        train={"provider": provider.model_dump(mode="json")},
        suitability={"min_examples": 20, "recommended_examples": 25},
    )
    materialize("base_model", declared, store)
    rows = [example(f"r{i}", f"where is my parcel number {i}", LABELS[i % 2]) for i in range(200)]
    rows = [replace(row, rejected="who knows") if i % 2 else row for i, row in enumerate(rows)]
    finished(store, "raw_examples", {"examples.jsonl": rows, "drops.jsonl": []})
    finished(store, "clean_examples", {"examples.jsonl": rows, "drops.jsonl": []})
    page = materialize("suitability_report", declared, store).path("report.md").read_text("utf-8")
    trained = declared.split.test + declared.split.validation
    kept = rows[: round(len(rows) * (1 - trained))]
    prepared = prepare(
        tmp_path / "train.jsonl", lines_of(kept, declared.prompt.system, provider), provider, token_counter(tiny_model)
    )
    job = cost.estimate(prepared.tokens, len(prepared.ids), provider)
    found = re.search(r"Estimated: ([\d,]+) tokens, .* USD \((\d+) epochs", page)
    assert found is not None and job.tokens is not None
    assert int(found[1].replace(",", "")) == pytest.approx(job.tokens, rel=0.01), "rows of about the same length"
    assert int(found[2]) == job.epochs


def test_where_no_method_fits_the_report_says_so() -> None:
    facts, machine, config = Facts(1000, 800, 0, "label", 2, 0, 0, 50, 40, 2), Machine(100, 1.0), Suitability()
    estimate = estimate_training(facts, tiny(), Train(), config, machine)
    advice = recommend(facts, estimate, tiny().parameters, config, machine)
    page = markdown("parcels", facts, advice, estimate, machine, config, ())
    assert "- Method: **none fits**. Lora needs about" in page
    assert "use a smaller base model, or a GPU that has enough." in page


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_the_probe_measures_the_device_and_precision_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, precision: str
) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    if precision == "auto":  # as the report does, in a process of its own
        found = measure(Train(), tiny_model, tmp_path / "probe", Silent())
    else:
        found = run(ProbeSpec(precision, tiny_model), Silent())
    machine = found.machine
    assert found.architecture.parameters == dimensions(tiny_model)["parameters"]
    assert 0.1 < machine.gflops < 1e6
    assert machine.free_mb > 100
    assert machine.device == kind()
    assert machine.precision == name_of(uses_bf16(precision))

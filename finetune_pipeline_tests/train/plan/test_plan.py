"""The plan of a training: what it counts, what it measures, and what it says, with a tiny model in this process."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.backends import launch
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.cli import plan as terminal
from finetune_pipeline.cli.terminal import console
from finetune_pipeline.config import KeepGeneral, Task, Train
from finetune_pipeline.errors import DataError, TrainingFailed
from finetune_pipeline.graph import BY_NAME
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.training_memory import LIBRARIES_MB
from finetune_pipeline.records import Example, Message, Silent
from finetune_pipeline.store import StageContext, StageResult, TaskStore
from finetune_pipeline.train.checkpoint import TrainingState
from finetune_pipeline.train.objective import objective_of
from finetune_pipeline.train.outline import outline_of
from finetune_pipeline.train.packing import PackedForward
from finetune_pipeline.train.plan import job
from finetune_pipeline.train.plan.assets import training_plan
from finetune_pipeline.train.plan.loads import Counted, count
from finetune_pipeline.train.plan.prediction import recommend
from finetune_pipeline.train.plan.probe import Sample, measure, sample_of
from finetune_pipeline.train.plan.spec import TrainingPlan
from finetune_pipeline.train.replay import general_rows, replay_for
from finetune_pipeline_tests.artifacts import finished, stage_context, task, task_store
from finetune_pipeline_tests.baseline.color_task import LABELS, base_and_split, rows
from finetune_pipeline_tests.train.setup import RULES, SYSTEM, Setup
from finetune_pipeline_tests.train.setup import rows as color_rows

TRAIN: dict[str, Any] = {"lora": {"r": 4, "alpha": 8}, "num_epochs": 2, "batch_size": 8, "precision": "fp32"}


def declared(model: Path, **sections: Any) -> Task:
    return task(
        base={"path": str(model), "license": "apache-2.0"},
        answer={"format": "label", "labels": LABELS},
        prompt={"system": "Say the color."},
        **{"train": TRAIN, **sections},
    )


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    monkeypatch.setattr(launch, "run", in_this_process)
    return task_store(tmp_path, monkeypatch)


def in_this_process(module: str, spec: JobData, *others: Any) -> JobData:
    result: JobData = importlib.import_module(module).run(type(spec).from_json(spec.to_json()), Silent())
    return result


def planned(setting: Task, store: TaskStore, tmp_path: Path) -> tuple[StageContext, StageResult, TrainingPlan]:
    inputs = base_and_split(store, setting)
    split = {"train.jsonl": rows("t", 24), "validation.jsonl": rows("v", 9)}
    inputs |= {"data_split": finished(store, "data_split", split)}
    context = stage_context(setting, store, tmp_path, **inputs)
    outcome = training_plan(context)
    found = TrainingPlan.from_json(finished_json(context, "plan.json"))
    return context, outcome, found


def finished_json(context: StageContext, name: str) -> Any:
    import json

    return json.loads((context.out / name).read_text("utf-8"))


def test_a_plan_measures_a_few_steps_and_says_what_the_training_takes(
    tiny_model: Path, store: TaskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "MEASURED_FROM", 0.0)
    prices = {"gpu_per_hour": {"h100": 2.5}, "training_per_hour": 3600.0}
    context, outcome, plan = planned(declared(tiny_model, suitability=prices), store, tmp_path)
    assert plan.probe is not None and plan.probe.largest and plan.probe.steps == 3 and plan.probe.rows == 8
    assert plan.steps == 6 and plan.validations == 3 and plan.rows == 24 and plan.validation_rows == 9
    assert plan.probe.answers_seconds > 0 and plan.probe.start_seconds > 0
    assert plan.times.steps == pytest.approx(plan.probe.step_seconds * 6, rel=0.2)
    assert plan.times.validation > 3 * plan.probe.answers_seconds
    assert plan.cost == pytest.approx(plan.times.total)
    assert LIBRARIES_MB["cpu"] < plan.fit.memory.total_mb and plan.fit.verdict == "FITS"
    assert plan.most_tokens is not None and plan.most_tokens > 4096
    assert outcome.verdict is not None and outcome.verdict.passed and outcome.summary["verdict"] == "FITS"
    assert outcome.unfinished is not None and not BY_NAME["training_plan"].blocking
    page = (context.out / "report.html").read_text("utf-8")
    assert "measured on the" in page and "NVIDIA H100 SXM 80 GB" in page
    assert {"tokens.html", "tokens.json", "audit.json"} <= {path.name for path in context.out.iterdir()}
    assert not list(context.out.glob("*.safetensors")), "nothing of the steps is kept"


def test_a_short_training_is_not_measured(tiny_model: Path, store: TaskStore, tmp_path: Path) -> None:
    context, _, plan = planned(declared(tiny_model), store, tmp_path)
    assert plan.probe is None and plan.unmeasured == "it takes less than 60 seconds"
    assert "not measured, because it takes less than 60 seconds" in (context.out / "report.html").read_text("utf-8")


def test_what_does_not_fit_is_said_and_no_weights_are_loaded(
    tiny_model: Path, store: TaskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "reachable_mb", lambda processes=1: 500.0)
    monkeypatch.setattr(job, "measure", None)
    _, outcome, plan = planned(declared(tiny_model), store, tmp_path)
    assert plan.fit.verdict == "TOO BIG" and plan.most_tokens is None and plan.recommended is None
    assert plan.unmeasured == "it does not fit into the memory of this device"
    assert outcome.verdict is not None and not outcome.verdict.passed
    assert "a smaller base model, or another device" in outcome.verdict.summary
    assert all(each.verdict == "FITS" for each in plan.gpus)


MACHINES = {"kind": "torchrun", "nodes": 2, "processes_per_node": 2, "rendezvous": "10.0.0.4:29400"}


def test_several_machines_cost_more_and_processes_of_one_share_its_processor(
    tiny_model: Path, store: TaskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "MEASURED_FROM", 0.0)
    price = {"training_per_hour": 3600.0}
    train = {**TRAIN, "backend": MACHINES}
    _, _, plan = planned(declared(tiny_model, train=train, suitability=price), store, tmp_path)
    assert (plan.device.processes, plan.device.nodes, plan.device.together) == (4, 2, 2)
    assert replace(plan.device, kind="cuda").together == 4
    assert plan.cost == pytest.approx(2 * plan.times.total)
    assert plan.probe is not None
    assert plan.times.steps == pytest.approx(plan.probe.step_seconds * 6 / 2, rel=0.2)


def test_an_adapter_whose_base_is_spread_over_the_processes_takes_less_memory_of_each(
    tiny_model: Path, store: TaskStore, tmp_path: Path
) -> None:
    moments = {}
    for shard in ("auto", "always"):
        train = {**TRAIN, "backend": {**MACHINES, "shard": shard}}
        (tmp_path / shard).mkdir()
        _, _, plan = planned(declared(tiny_model, train=train), store, tmp_path / shard)
        moments[shard] = plan.fits["lora"].memory.optimizer_mb
    assert moments["always"] == moments["auto"] / 4, "with `auto`, full weights alone are spread"


def test_memory_that_ran_out_in_the_measured_steps_is_tight(
    tiny_model: Path, store: TaskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def smaller(*given: Any) -> Any:
        probe, forward = measure(*given)
        return replace(probe, ran_out=True, max_tokens=256), forward

    monkeypatch.setattr(job, "MEASURED_FROM", 0.0)
    monkeypatch.setattr(job, "measure", smaller)
    context, outcome, plan = planned(declared(tiny_model), store, tmp_path)
    assert (plan.fit.verdict, plan.fit.tokens, plan.most_tokens) == ("TIGHT", 256.0, 256)
    assert outcome.verdict is not None and outcome.verdict.passed
    assert "memory ran out" in (context.out / "report.html").read_text("utf-8")


def test_checkpoints_that_do_not_fit_on_the_disk_are_said(
    tiny_model: Path, store: TaskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    _, outcome, plan = planned(declared(tiny_model), store, tmp_path)
    assert plan.checkpoints_mb > plan.device.disk_mb == 0.001
    assert outcome.verdict is not None and not outcome.verdict.passed
    assert [check.name for check in outcome.verdict.checks if not check.passed] == ["the checkpoints fit on the disk"]


def test_a_failed_audit_ends_the_plan(tiny_model: Path, store: TaskStore, tmp_path: Path) -> None:
    setting = declared(tiny_model)
    long = Example("long", (Message("user", "red " * 5000), Message("assistant", "red")), "test", "test:1")
    inputs = base_and_split(store, setting)
    inputs |= {"data_split": finished(store, "data_split", {"train.jsonl": [long], "validation.jsonl": []})}
    with pytest.raises(TrainingFailed, match="the audit before training failed"):
        training_plan(stage_context(setting, store, tmp_path, **inputs))


def test_a_provider_is_planned_by_its_price(tiny_model: Path, store: TaskStore, tmp_path: Path) -> None:
    provider = {"name": "openai", "model": "gpt-x", "price_per_million_training_tokens": 5.0}
    setting = declared(tiny_model, train={"provider": provider})
    inputs = base_and_split(store, setting)
    context = stage_context(setting, store, tmp_path, **inputs)
    outcome = training_plan(context)
    assert outcome.verdict is not None and outcome.verdict.passed
    assert outcome.summary["cost"] == pytest.approx(int(str(outcome.summary["tokens"])) * 5 / 1e6)
    assert "gpt-x is trained by openai" in (context.out / "report.html").read_text("utf-8")
    dear = declared(tiny_model, train={"provider": {**provider, "max_cost": 1e-6}})
    with pytest.raises(DataError, match="the training is estimated at"):
        training_plan(stage_context(dear, store, tmp_path, **inputs))


def test_the_terminal_shows_the_plan(
    tiny_model: Path, store: TaskStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = declared(tiny_model)
    _, outcome, plan = planned(setting, store, tmp_path)
    finished(store, "training_plan", {"plan.json": plan.to_json()}, outcome.verdict)
    console().print(terminal.shown(setting, store))
    shown = capsys.readouterr().out
    assert "FITS: lora needs about" in shown and "predicted peak" in shown and "NVIDIA L4 24 GB" in shown


@pytest.mark.parametrize("changed", [{}, {"max_tokens_per_batch": 64}, {"objective": "dpo"}, {"batch_size": 5}])
def test_the_counted_tokens_are_those_that_the_loop_computes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    rules = RULES.model_copy(update={"keep_general": KeepGeneral(weight=0.1, texts=2), **changed})
    setup = Setup(tiny_model, rules)
    texts = general_rows(setup.base, rules)
    replay = replay_for(setup.forward, setup.base, rules, texts, Silent())
    assert replay is not None
    architecture = Architecture.of_folder(tiny_model)
    found = count(setup.forward, architecture, rules, False, setup.rows, [], replay, setup.objective)
    replay.measure(found.steps, 4096)
    loop = setup.loop(tmp_path)
    loop.replay = replay
    computed: list[int] = []
    original = setup.forward.computed_tokens

    def counting(batch: Any) -> int:
        computed.append(original(batch))
        return computed[-1]

    monkeypatch.setattr(setup.forward, "computed_tokens", counting)
    loop.run(setup.rows, [], TrainingState(), setup.optimizer)
    assert found.loads.steps.tokens == sum(computed)
    longest = sum(text.tokens for text in replay.longest)  # the longest texts may be with the largest batch
    assert max(computed) <= found.largest.tokens <= max(computed) + longest


def test_long_trainings_are_sampled_and_frozen_layers_are_counted_once(tiny_model: Path) -> None:
    rules = RULES.model_copy(update={"num_epochs": 50.0, "batch_size": 2})
    outline = outline_of(tiny_model, {"train": color_rows(), "validation": color_rows(6)}, SYSTEM, rules)
    assert outline.base.model.device.type == "meta" and outline.prefix == common_prefix(
        [r.prompt for r in outline.rows["train"]]
    )
    forward, train, validation = PackedForward(outline.base.model, outline.prefix), *outline.rows.values()

    def counted(rules: Train) -> Counted:
        return count(forward, outline.architecture, rules, False, train, validation, None, objective_of(rules))

    found, one = counted(rules), counted(rules.model_copy(update={"num_epochs": 1.0}))
    assert found.steps == 300 and found.validations == 51
    assert found.loads.steps.tokens == pytest.approx(50 * one.loads.steps.tokens, rel=0.05)
    assert found.loads.frozen.tokens == pytest.approx(one.loads.frozen.tokens, rel=0.05)
    assert one.loads.frozen == one.loads.steps


@pytest.mark.parametrize(
    ("step", "largest", "expected"),
    [
        (1.0, 2.0, Sample(8, 16, True, 20)),
        (4.0, 30.0, Sample(5, 16, False, 20)),
        (40.0, 60.0, Sample(2, 4, False, 20)),
        (4000.0, 4000.0, Sample(2, 1, False, 20)),
    ],
)
def test_the_measured_steps_take_about_as_long_as_they_may(step: float, largest: float, expected: Sample) -> None:
    assert sample_of(16, step, largest, validation_row=0.25, budget=20.0) == expected


def test_the_recommended_method_is_the_declared_one_where_it_fits(
    tiny_model: Path, store: TaskStore, tmp_path: Path
) -> None:
    _, _, plan = planned(declared(tiny_model), store, tmp_path)
    fits = plan.fits
    assert recommend("full", fits, 1e5)[0] == "full"
    too_big = {**fits, "full": replace(fits["full"], verdict="TOO BIG")}
    assert recommend("full", too_big, 1e5)[0] == "lora"
    tight = {
        **too_big,
        "lora": replace(fits["lora"], verdict="TIGHT"),
        "qlora": replace(fits["qlora"], verdict="TIGHT"),
    }
    assert recommend("lora", tight, 1e5)[0] == "lora" and recommend("full", tight, 1e5)[0] == "lora"
    assert recommend("lora", {**tight, "qlora": fits["qlora"]}, 1e5)[0] == "qlora"
    assert Train.model_validate({"method": recommend("lora", tight, 1e5)[0]})

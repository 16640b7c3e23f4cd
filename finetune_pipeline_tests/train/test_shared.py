"""Several trainings of one base model in one process: it is not changed, and what is shared changes no result."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import KeepGeneral, Lora, Train
from finetune_pipeline.records import Silent, write_jsonl
from finetune_pipeline.train import checkpoint, forward_check, packing
from finetune_pipeline.train.assembly import assemble
from finetune_pipeline.train.checkpoint import HistoryLine
from finetune_pipeline.train.distributed import Ranks
from finetune_pipeline.train.method import load_base
from finetune_pipeline.train.packing import FrozenStates, PackedForward
from finetune_pipeline.train.row_selection import selected
from finetune_pipeline.train.shared import Shared
from finetune_pipeline.train.spec import TrainingSpec
from finetune_pipeline_tests.train.setup import RULES, Setup, rows
from finetune_pipeline_tests.train.test_training import spec_of

TIMED = ("tokens_per_second", "peak_share")
WAYS: dict[str, dict[str, Any]] = {
    "lora": {},
    "upper layer": {"layers": 1},
    "pissa": {"lora": Lora(r=2, init_lora_weights="pissa")},
    "full": {"method": "full"},
    "full, upper layer": {"method": "full", "layers": 1},
    "qlora": {"method": "qlora"},
}


def training(tiny_model: Path, folder: Path, rules: Train, pairs: bool = False) -> TrainingSpec:
    spec = spec_of("llama", tiny_model, folder, count=8)
    write_jsonl(spec.train, rows(8, pairs))
    return replace(spec, rules=rules, out=folder / "out")


def train(spec: TrainingSpec, shared: Shared | None, folder: Path) -> list[HistoryLine]:
    spec.out.mkdir(exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    setup = assemble(spec, Silent(), shared=shared)
    setup.measure_base()
    state = checkpoint.TrainingState()
    setup.loop(folder, Silent(), lambda line, step: None).run(
        setup.rows["train"], setup.rows["validation"], state, setup.optimizer
    )
    setup.trainable.release()
    return state.history


@pytest.mark.parametrize("way", WAYS)
def test_a_training_leaves_the_base_model_as_it_was(tiny_model: Path, tmp_path: Path, way: str) -> None:
    import torch

    rules = RULES.model_copy(update=WAYS[way])
    spec = training(tiny_model, tmp_path, rules)
    shared = Shared(load_base(spec.base, rules), several=True)
    before = {name: value.clone() for name, value in shared.base.model.state_dict().items()}
    layers = [type(part) for part in shared.base.model.modules()]
    histories = [train(spec, shared, tmp_path / "steps") for _ in range(2)]
    after = shared.base.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert [type(part) for part in shared.base.model.modules()] == layers
    losses = [[line["validation_loss"] for line in history if "validation_loss" in line] for history in histories]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("objective", ["sft", "kto"])
def test_a_second_training_measures_nothing_again_and_has_the_same_losses(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    rules = RULES.model_copy(update={"objective": objective, "layers": 1, "keep_general": KeepGeneral(texts=2)})
    first = training(tiny_model, tmp_path, rules, pairs=True)
    second = replace(first, rules=rules.model_copy(update={"learning_rate": 0.002, "lora": Lora(r=2, alpha=4)}))
    alone = train(second, None, tmp_path / "steps")
    shared = Shared(load_base(first.base, rules), several=True)
    train(first, shared, tmp_path / "steps")

    computed: list[int] = []
    run = PackedForward._run

    def counting(self: PackedForward, packed: Any) -> Any:
        computed.append(1)
        return run(self, packed)

    monkeypatch.setattr(PackedForward, "_run", counting)
    monkeypatch.setattr(forward_check, "choose", None)  # a call would fail
    frozen = next(iter(shared._frozen.values()))
    known = len(frozen), len(shared.texts), len(shared.likelihoods)
    setup = assemble(second, Silent(), shared=shared)
    setup.measure_base()
    assert not computed, "the general texts, and the likelihoods before training, are known"
    setup.trainable.release()
    again = train(second, shared, tmp_path / "steps")
    assert (len(frozen), len(shared.texts), len(shared.likelihoods)) == known
    for line, expected in zip(again, alone, strict=True):
        assert line.keys() == expected.keys()
        values: list[tuple[Any, Any]] = [(line[key], expected[key]) for key in line if key not in TIMED]  # type: ignore[literal-required]
        assert [a for a, _ in values] == pytest.approx([b for _, b in values], rel=1e-3, abs=1e-6)


def test_the_likelihoods_of_other_rows_are_measured_once(tiny_model: Path, tmp_path: Path) -> None:
    rules = RULES.model_copy(update={"objective": "dpo"})
    spec = replace(training(tiny_model, tmp_path, rules, pairs=True), share=0.5)
    shared = Shared(load_base(spec.base, rules), several=True)
    train(spec, shared, tmp_path / "steps")
    assert len(shared.likelihoods) == 8  # half of the rows are trained on, all are validated
    train(replace(spec, share=1.0), shared, tmp_path / "steps")
    assert len(shared.likelihoods) == 8


def test_the_outputs_of_frozen_layers_are_kept_by_layers_and_prefix_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    shared = Shared(None)  # type: ignore[arg-type]
    one = shared.frozen(1, [1, 2])
    one.keep((True, 0, (1,)), torch.zeros(10, 8))
    assert shared.frozen(1, [1, 2]) is one
    assert shared.frozen(2, [1, 2]) is not one and shared.frozen(1, [1, 3]) is not one
    monkeypatch.setattr(packing, "CACHE_BYTES", 319)
    assert len(shared.frozen(1, [1, 2])) == 1, "the one that is used now is never dropped"
    shared.frozen(2, [1, 2])
    assert not shared.frozen(1, [1, 2]), "there was no room for two"
    full = FrozenStates()
    full.keep((True, 0, (1,)), torch.zeros(10, 8))
    assert not full


def test_a_larger_share_has_every_row_of_a_smaller_one() -> None:
    every = rows(50)
    shares = [selected(every, share, (), 13) for share in (0.1, 0.5, 1.0)]
    assert [len(share) for share in shares] == [5, 25, 50] and shares[2] == every
    for small, large in pairwise(shares):
        assert [row for row in large if row in small] == small
    assert selected(every, 0.5, (), 13) == shares[1] != selected(every, 0.5, (), 14)
    assert selected(every, 0.5, ("test",), 13) == []
    assert len(selected([*every, replace(every[0], id="w", source="web")], 1.0, ("web",), 13)) == 50


class Second(Ranks):
    """The second of two ranks, to which the first says that its forward pass is packed, or not."""

    rank, size = 1, 2

    def __init__(self, packed: bool) -> None:
        self.packed = packed

    def max(self, value: float) -> float:
        return max(value, float(self.packed))


@pytest.mark.parametrize(("packed", "name"), [(True, "packed"), (False, "padded")])
def test_where_the_weights_will_be_spread_the_first_rank_alone_compares(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, name: str
) -> None:
    monkeypatch.setattr(forward_check, "choose", None)
    setup = Setup(tiny_model)
    given = (setup.trainable, None, setup.prefix, setup.rows, Silent())
    assert Shared(setup.base).forward(*given, Second(packed)).name == name

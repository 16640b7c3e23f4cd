"""Losses and gradients of every objective equal those of TRL, on the same model and rows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Lora, Preference, Train
from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.records import Example, Message
from finetune_pipeline.train.objective import (
    Completions,
    Orpo,
    completions_of,
    objective_of,
    require_rows,
    totals_of,
    usable,
)
from finetune_pipeline.train.tokenize import Completion, TokenizedExample
from finetune_pipeline_tests.train.setup import RULES, Setup

COUNT = 6
SEED = 4  # with which the model moves towards other rows' completions


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRL_EXPERIMENTAL_SILENCE", "DO_NOT_TRACK"):
        monkeypatch.setitem(os.environ, name, "1")
    yield


def rules_of(objective: str, **preference: Any) -> Train:
    return RULES.model_copy(
        update={"objective": objective, "preference": Preference(**preference), "lora": Lora(r=4, alpha=8)}
    )


def ours(setup: Setup, rows: list[TokenizedExample]) -> tuple[float, dict[str, Any]]:
    """Loss and gradients by name, computed in two micro-batches."""
    totals = setup.loop(Path("unused"))._totals(rows)
    total = 0.0
    for part in (rows[:4], rows[4:]):
        reference = setup.reference.of(part) if setup.reference else None
        loss, _ = setup.objective.loss(completions_of(part, setup.forward.losses(part), reference), totals)
        loss.backward()
        total += float(loss.detach())
    return total, {name: weight.grad for name, weight in setup.weights.items()}


def same(setup: Setup, loss: float, gradients: dict[str, Any], expected: Any, peer: Setup) -> None:
    import torch

    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, weight in peer.weights.items():
        difference = torch.linalg.norm(gradients[name] - weight.grad) / torch.linalg.norm(weight.grad)
        assert float(difference) < 1e-3, name


def arguments(folder: Path, kind: Any, **settings: Any) -> Any:
    return kind(
        output_dir=str(folder),
        per_device_train_batch_size=2 * COUNT,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        **settings,
    )


def as_dicts(rows: list[TokenizedExample]) -> list[dict[str, Any]]:
    return [
        {"prompt_ids": r.prompt, "chosen_ids": r.completions[0].ids, "rejected_ids": r.completions[1].ids} for r in rows
    ]


def texts(kto: bool = False) -> Any:
    """A data set that the trainers of TRL accept at their construction; the batches are made here."""
    from datasets import Dataset

    row = {"prompt": "a", "completion": "b", "label": True} if kto else {"prompt": "a", "chosen": "b", "rejected": "c"}
    return Dataset.from_list([row] * 4)


@pytest.mark.parametrize("objective", ["dpo", "ipo"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_and_ipo_equal_trl(tiny_model: Path, tmp_path: Path, objective: str, smoothing: float) -> None:
    from trl import DPOConfig, DPOTrainer

    if smoothing and objective == "ipo":
        pytest.skip("dpo alone has label smoothing")
    rules = rules_of(objective, beta=0.3, label_smoothing=smoothing)
    setup, peer = (Setup(tiny_model, rules, COUNT, changed) for changed in (True, False))
    loss, gradients = ours(setup, setup.rows)
    # TRL's `robust` with smoothing is another loss; conservative DPO is the mean of both directions of `sigmoid`
    kind = {"dpo": "sigmoid", "ipo": "ipo"}[objective]
    trainer = DPOTrainer(
        peer.trainable.wrapped,
        args=arguments(tmp_path, DPOConfig, loss_type=[kind], beta=0.3),
        train_dataset=texts(),
        processing_class=peer.base.tokenizer,
    )
    peer.change()  # only now, because TRL copies the adapter as its reference
    batch = trainer.data_collator(as_dicts(peer.rows))
    expected = trainer.compute_loss(trainer.model, batch)
    if smoothing:
        swapped = [
            {"prompt_ids": row["prompt_ids"], "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]}
            for row in as_dicts(peer.rows)
        ]
        other = trainer.compute_loss(trainer.model, trainer.data_collator(swapped))
        expected = (1 - smoothing) * expected + smoothing * other
    same(setup, loss, gradients, expected, peer)


def test_kto_equals_trl(tiny_model: Path, tmp_path: Path) -> None:
    """With rows that have no rejected completion, and with weights."""
    from trl import KTOConfig, KTOTrainer

    rules = rules_of("kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    setup, peer = (Setup(tiny_model, rules, COUNT, changed=False) for _ in range(2))
    setup.change(SEED)
    loss, gradients = ours(setup, setup.rows)
    trainer = KTOTrainer(
        peer.trainable.wrapped,
        args=arguments(tmp_path, KTOConfig, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5),
        train_dataset=texts(kto=True),
        processing_class=peer.base.tokenizer,
    )
    peer.change(SEED)
    batch = [
        {
            "prompt_ids": row.prompt,
            "completion_ids": completion.ids,
            "KL_completion_ids": peer.rows[(at + 1) % COUNT].completions[index].ids,
            "label": index == 0,
        }
        for at, row in enumerate(peer.rows)
        for index, completion in enumerate(row.completions)
    ]
    assert setup.loop(tmp_path)._totals(setup.rows).divergence > 0
    same(setup, loss, gradients, trainer.compute_loss(trainer.model, trainer.data_collator(batch)), peer)


def test_the_odds_ratio_of_orpo_equals_trl(tiny_model: Path) -> None:
    """The likelihood is of the chosen completion alone; TRL's is of the prompt as well."""
    import torch
    from trl.experimental.orpo import ORPOTrainer

    setup, peer = (Setup(tiny_model, rules_of("orpo", beta=0.3), COUNT) for _ in range(2))
    loss, gradients = ours(setup, setup.rows)
    trainer = ORPOTrainer.__new__(ORPOTrainer)
    trainer.beta = 0.3
    trainer.accelerator = type("Accelerator", (), {"device": torch.device("cpu")})()
    means, likelihood, tokens = [], torch.zeros(()), 0
    for index in range(2):
        for row in peer.rows:
            completion = row.completions[index].ids
            logits = peer.model(input_ids=torch.tensor([row.prompt + completion])).logits[0, len(row.prompt) - 1 : -1]
            losses = torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="none")
            means.append(-losses.mean())
            if index == 0:
                likelihood, tokens = likelihood + losses.sum(), tokens + len(completion)
    ratios = trainer.odds_ratio_loss(torch.stack(means[:COUNT]), torch.stack(means[COUNT:]))[0]
    same(setup, loss, gradients, likelihood / tokens - ratios.mean(), peer)


def test_sft_equals_trl(tiny_model: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    setup, peer = (Setup(tiny_model, rules_of("sft"), COUNT) for _ in range(2))
    loss, gradients = ours(setup, setup.rows)
    rows = [
        {
            "input_ids": row.prompt + row.completions[0].ids,
            "labels": [-100] * len(row.prompt) + row.completions[0].ids,
        }
        for row in peer.rows
    ]
    trainer = SFTTrainer(
        peer.trainable.wrapped,
        args=arguments(tmp_path, SFTConfig, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=Dataset.from_list(rows),
        processing_class=peer.base.tokenizer,
    )
    batch = trainer.data_collator(rows)
    same(setup, loss, gradients, trainer.compute_loss(trainer.model, batch), peer)


def test_rewards_are_counted_over_pairs_alone() -> None:
    import torch

    rows = [
        TokenizedExample("a", [1], (Completion([5, 2]), Completion([6, 2]))),
        TokenizedExample("b", [1], (Completion([7, 2]),)),
        TokenizedExample("c", [1], (Completion([8, 2]), Completion([9, 2]))),
    ]
    losses = torch.tensor([1.0, 1.0, 3.0, 3.0, 1.0, 1.0, 3.0, 3.0, 2.0, 1.0])
    reference = [2.0, 2.0, 2.0, 2.0, 2.0]
    completions = completions_of(rows, losses, reference)
    assert completions.sums.tolist() == [2.0, 6.0, 2.0, 6.0, 3.0]
    _, figures = objective_of(rules_of("kto", beta=1.0)).loss(completions, totals_of(rows))
    assert figures == {"pairs": 2.0, "reward_accuracy": 1.0, "reward_margin": 4.0 - 3.0}


def test_rows_without_a_rejected_completion_are_left_out_of_pairs() -> None:
    single = TokenizedExample("a", [1], (Completion([5, 2]),))
    pair = TokenizedExample("b", [1], (Completion([5, 2]), Completion([6, 2])))
    assert [row.id for row in usable([single, pair], objective_of(rules_of("dpo")))] == ["b"]
    assert [row.id for row in usable([single, pair], objective_of(rules_of("kto")))] == ["a", "b"]


@pytest.mark.parametrize(("split", "cure"), [("training", "rows: preference"), ("validation", "split.validation")])
def test_a_split_without_any_pair_is_named(split: str, cure: str) -> None:
    single = Example("a", (Message("user", "hi"), Message("assistant", "yes")), "test", "a")
    rows = {"training": [replace(single, rejected="no")], "validation": [], split: [single]}
    with pytest.raises(TrainingFailed, match=f"none of the 1 {split} rows has a rejected completion") as failed:
        require_rows(rows["training"], rows["validation"], objective_of(rules_of("ipo")))
    assert cure in failed.value.hint
    require_rows(rows["training"], rows["validation"], objective_of(rules_of("kto")))


@pytest.mark.parametrize("mean", [-1e-9, -1e-4, -0.6931, -5.0, -80.0])
def test_the_odds_ratio_is_finite_for_likely_and_unlikely_completions(mean: float) -> None:
    import torch

    sums = torch.tensor([-mean, 0.5], requires_grad=True)
    completions = Completions(sums, torch.tensor([1, 1]), torch.tensor([True, False]))
    loss, _ = Orpo(Preference(beta=1.0)).loss(completions, totals_of([TokenizedExample("a", [1], (Completion([2]),))]))
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert sums.grad is not None and bool(torch.isfinite(sums.grad).all())

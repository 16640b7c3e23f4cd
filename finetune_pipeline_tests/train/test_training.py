"""Training with the tiny model: the packed loss, resuming, and errors for faulty data, models and checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from finetune_pipeline.config import Lora, Train
from finetune_pipeline.errors import JobCanceled, ModelError, StorageError, TrainingFailed
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.records import Example, Message, Silent, write_jsonl
from finetune_pipeline.train import checkpoint, job, packing
from finetune_pipeline.train.adapter import with_adapter
from finetune_pipeline.train.audit import audit
from finetune_pipeline.train.loop import BETAS, Loop
from finetune_pipeline.train.packed_attention import CausalMasks
from finetune_pipeline.train.packing import PackedModel
from finetune_pipeline.train.schedule import batch_at, learning_rate_at, micro_batches, total_steps
from finetune_pipeline.train.spec import TrainingSpec
from finetune_pipeline.train.tokenize import TokenizedExample, tokenize
from finetune_pipeline_tests.train.architectures import tiny

RULES = Train(
    lora=Lora(r=4, alpha=8), num_epochs=2, batch_size=4, learning_rate=0.01, precision="fp32", checkpoint_seconds=0
)
SYSTEM = "Answer with the color that the sentence names, in one word."


def rows(count: int = 12) -> list[Example]:
    colors = ("red", "green", "blue")
    words = ["a", "red", "wall", "stands", "beside", "the", "old", "green", "gate", "and", "a", "blue", "door"]
    return [
        Example(
            f"row{n}",
            (Message("user", " ".join(words[: 2 + n % 9])), Message("assistant", colors[n % 3])),
            "test",
            f"test:{n}",
        )
        for n in range(count)
    ]


class Setup:
    """A tiny model with a new adapter, and its tokenized rows; the same weights every time."""

    def __init__(self, folder: Path, rules: Train = RULES) -> None:
        import torch

        torch.manual_seed(rules.seed)
        self.rules = rules
        self.model, tokenizer, self.ends = job.load(folder, rules)
        self.rows = tokenize(rows(), tokenizer, SYSTEM, self.ends)
        self.prefix = common_prefix([row.prompt for row in self.rows])
        self.wrapped = with_adapter(self.model, rules)
        self.weights = {n: w for n, w in self.wrapped.named_parameters() if w.requires_grad}
        with torch.no_grad():  # LoRA's B starts at zero, where half of the gradients would be zero as well
            for weight in self.weights.values():
                weight.add_(torch.randn_like(weight) * 0.05)
        self.packed = PackedModel(self.model, self.prefix)
        self.optimizer = torch.optim.AdamW(list(self.weights.values()), lr=0.01, betas=BETAS)

    def loop(self, folder: Path, report: Any = None) -> Loop:
        return Loop(
            self.packed, self.weights, self.rules, False, folder, report or Silent(), lambda metrics, step: None
        )


def row_by_row_loss(setup: Setup) -> Any:
    """Every row in its own forward pass, without the shared prefix; labels on the completion."""
    import torch

    setup.model.config._attn_implementation = "eager"
    total = torch.zeros(())
    for row in setup.rows:
        logits = setup.model(input_ids=torch.tensor([row.ids])).logits[0]
        start = len(row.prompt) - 1
        total = total + torch.nn.functional.cross_entropy(
            logits[start : start + len(row.completion)], torch.tensor(row.completion), reduction="sum"
        )
    return total


@pytest.mark.parametrize("layers", [None, 1])
def test_packed_loss_and_gradient_equal_those_of_every_row_alone(tiny_model: Path, layers: int | None) -> None:
    import torch

    packed = Setup(tiny_model, RULES.model_copy(update={"layers": layers}))
    assert len(packed.prefix) > 10, "the system prompt is shared"
    for _ in range(2):  # the second time, the frozen layers' output comes from the cache
        for weight in packed.weights.values():
            weight.grad = None
        loss, count = packed.packed.loss(packed.rows)
        loss.backward()
    plain = Setup(tiny_model, RULES.model_copy(update={"layers": layers}))
    reference = row_by_row_loss(plain)
    reference.backward()
    assert count == sum(len(row.completion) for row in packed.rows)
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=1e-5)
    for name, weight in packed.weights.items():
        expected = plain.weights[name].grad
        difference = torch.linalg.norm(weight.grad - expected) / torch.linalg.norm(expected)
        assert float(difference) < 1e-4, name


def test_micro_batches_have_the_same_total_loss(tiny_model: Path) -> None:
    setup = Setup(tiny_model)
    whole, _ = setup.packed.loss(setup.rows)
    parts = [
        setup.packed.loss(part)[0] for part in micro_batches(setup.rows, len(setup.prefix), len(setup.prefix) + 20)
    ]
    assert len(parts) > 2
    assert sum(float(part.detach()) for part in parts) == pytest.approx(float(whole.detach()), rel=1e-5)


def test_the_output_of_frozen_layers_is_cached_up_to_a_limit(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(tiny_model, RULES.model_copy(update={"layers": 1}))
    whole = float(setup.packed.loss(setup.rows)[0].detach())
    cached_bytes = sum(part.untyped_storage().nbytes() for part in setup.packed._cache.values())
    monkeypatch.setattr(packing, "CACHE_BYTES", cached_bytes // 2)
    bounded = PackedModel(setup.model, setup.prefix)
    for _ in range(2):  # the second time, one half comes from the cache
        assert float(bounded.loss(setup.rows)[0].detach()) == pytest.approx(whole, rel=1e-5)
        assert 0 < sum(part.untyped_storage().nbytes() for part in bounded._cache.values()) <= cached_bytes // 2


def test_masks_of_many_lengths_take_the_memory_of_the_longest_one() -> None:
    """And each mask is the causal mask of its length."""
    import torch

    masks, like = CausalMasks(7), torch.zeros(1)
    sizes = set()
    for own in [*range(1, 130), *range(130, 0, -1)]:
        mask = masks(own, like)
        assert mask.shape == (own, 7 + own)
        sizes.add(mask.untyped_storage().nbytes())
        assert torch.equal(mask, torch.full((own, own + 7), float("-inf")).triu(8))
    assert max(sizes) <= 4 * 192 * (192 + 7)
    assert len(sizes) == 3, "a new mask every 64 tokens, only while rows get longer"


class StopAfter(Silent):
    """Cancels the run in the call of `alive` after `steps` calls."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def alive(self) -> None:
        if self.left == 0:
            raise JobCanceled("stopped", "go on")
        self.left -= 1


def test_a_resumed_training_has_the_same_weights_as_an_uninterrupted_one(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    straight = Setup(tiny_model)
    straight.loop(tmp_path / "a").run(straight.rows, straight.rows[:3], checkpoint.TrainingState(), straight.optimizer)
    stopped = Setup(tiny_model)
    with pytest.raises(JobCanceled):
        stopped.loop(tmp_path / "b", StopAfter(3)).run(
            stopped.rows, stopped.rows[:3], checkpoint.TrainingState(), stopped.optimizer
        )
    resumed = Setup(tiny_model)
    state = checkpoint.load(tmp_path / "b", resumed.weights, resumed.optimizer, Silent())
    assert state.step == 3
    resumed.loop(tmp_path / "b").run(resumed.rows, resumed.rows[:3], state, resumed.optimizer)
    assert len(state.history) == total_steps(12, RULES) + 1
    for name, weight in straight.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_the_validation_loss_falls(tiny_model: Path, tmp_path: Path) -> None:
    setup = Setup(tiny_model, RULES.model_copy(update={"num_epochs": 10.0}))
    state = checkpoint.TrainingState()
    setup.loop(tmp_path).run(setup.rows, setup.rows[:3], state, setup.optimizer)
    losses = [line["validation_loss"] for line in state.history if "validation_loss" in line]
    assert losses[-1] < losses[0] / 2


def test_a_damaged_checkpoint_is_logged_and_the_previous_one_is_used(tiny_model: Path, tmp_path: Path) -> None:
    setup = Setup(tiny_model)
    for step in (1, 2):
        setup.loop(tmp_path)._step(setup.rows, step, 9, setup.optimizer)
        checkpoint.save(tmp_path, checkpoint.TrainingState(step=step), setup.weights, setup.optimizer)
    newest = tmp_path / "step-00000002" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    logged: list[str] = []
    report = Silent()
    report.log = logged.append  # type: ignore[method-assign, assignment]
    assert checkpoint.load(tmp_path, setup.weights, setup.optimizer, report).step == 1
    assert "step-00000002 is damaged" in logged[0]


def test_a_checkpoint_folder_that_cannot_be_written_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    setup = Setup(tiny_model)
    (tmp_path / "file").write_text("not a folder", "utf-8")
    with pytest.raises(StorageError, match="cannot write"):
        checkpoint.save(tmp_path / "file", checkpoint.TrainingState(step=1), setup.weights, setup.optimizer)


def spec_of(family: str, tiny_model: Path, folder: Path, count: int, **sizes: Any) -> TrainingSpec:
    """A training of `count` rows with a model of the family and the tokenizer of the tiny model."""
    base = folder / family
    shutil.copytree(tiny_model, base)
    tiny(family, vocab_size=384, **sizes).save_pretrained(base)
    write_jsonl(folder / "rows.jsonl", rows(count))
    return TrainingSpec(
        task="colors",
        base=base,
        base_id=family,
        train=folder / "rows.jsonl",
        validation=folder / "rows.jsonl",
        system=SYSTEM,
        rules=RULES,
        checkpoints=folder,
        out=folder,
        params={},
        dataset_name="colors",
        dataset_digest="d1",
    )


@pytest.mark.parametrize("family", ["granite", "gemma2"])
def test_the_job_refuses_a_family_with_another_loss(tiny_model: Path, tmp_path: Path, family: str) -> None:
    with pytest.raises(ModelError, match=f"(?i){family}ForCausalLM"):
        job.assemble(spec_of(family, tiny_model, tmp_path, count=2))


def test_the_audit_names_the_rows_that_are_longer_than_the_attention_window(tiny_model: Path, tmp_path: Path) -> None:
    spec = spec_of("mistral_window", tiny_model, tmp_path, count=4, sliding_window=64)
    with pytest.raises(TrainingFailed, match="no row is longer than the model's 64 tokens: 2 rows: row2, row3"):
        job.assemble(spec)


def test_a_full_disk_is_an_error_and_leaves_no_partial_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)  # the message of safetensors, verbatim
    setup = Setup(tiny_model)
    with pytest.raises(StorageError, match=r"no room left to write .*step-00000001"):
        checkpoint.save(tmp_path, checkpoint.TrainingState(step=1), setup.weights, setup.optimizer)
    assert not list(tmp_path.iterdir())


def test_a_diverging_loss_stops_the_training(tiny_model: Path, tmp_path: Path) -> None:
    loop = Setup(tiny_model).loop(tmp_path)
    losses = [2.0] * 15 + [9.0] * 15
    with pytest.raises(TrainingFailed, match="the loss diverges"):
        loop._check_divergence(checkpoint.TrainingState(step=len(losses), history=[{"loss": loss} for loss in losses]))
    loop._check_divergence(checkpoint.TrainingState(step=30, history=[{"loss": 2.0 + n % 2} for n in range(30)]))


def test_the_audit_names_faulty_rows() -> None:
    good = TokenizedExample("good", [1, 2, 3], [7, 8, 2], prompt_matches=True)
    bad = [
        TokenizedExample("unsupervised", [1, 2, 3], [2], prompt_matches=True),
        TokenizedExample("without_end", [1, 2, 3], [7, 8], prompt_matches=True),
        TokenizedExample("long", [1] * 50, [7, 2], prompt_matches=True),
        TokenizedExample("other", [1, 2, 3], [7, 2], prompt_matches=False),
    ]
    assert audit([good], frozenset({2}), 40, 2).passed
    result = audit([good, *bad], frozenset({2}), 40, 2)
    assert [check.observed for check in result.checks] == [f"1 rows: {row.id}" for row in bad]


def test_the_end_of_turn_token_is_supervised_and_the_prompt_is_that_of_serving(tiny_model: Path) -> None:
    _, tokenizer, ends = job.load(tiny_model, RULES)
    (row,) = tokenize(rows(1), tokenizer, SYSTEM, ends)
    assert row.prompt_matches
    assert row.completion[-1] in ends
    assert tokenizer.decode(row.completion[:-1]) == "red"
    assert tokenizer.decode(row.prompt).endswith("<|im_start|>assistant\n")


def test_every_row_is_in_one_batch_per_epoch() -> None:
    steps = total_steps(10, RULES)
    seen = [row for step in range(steps) for row in batch_at(step, 10, RULES)]
    assert sorted(seen) == sorted([*range(10), *range(10)])
    assert seen[:10] != seen[10:], "every epoch has another order"


def test_the_learning_rate_rises_and_falls() -> None:
    rules = RULES.model_copy(update={"warmup_ratio": 0.1})
    rates = [learning_rate_at(step, 100, rules) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.001 * rates[10]

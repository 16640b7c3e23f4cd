"""Training with the tiny model: the fast way gives what the plain way gives, a resumed training what one in one go
does, and what cannot end well is stopped before or while it is paid for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from finetune_pipeline.config import Lora, Train
from finetune_pipeline.errors import JobCancelled, ModelError, StorageError, TrainingFailed
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.records import Example, Message, Silent, write_jsonl
from finetune_pipeline.train import checkpoint, job, packing
from finetune_pipeline.train.adapter import with_adapter
from finetune_pipeline.train.audit import audit
from finetune_pipeline.train.loop import BETAS, Loop
from finetune_pipeline.train.packing import PackedModel, _Masks
from finetune_pipeline.train.schedule import batch_at, pieces, rate_at, total_steps
from finetune_pipeline.train.tokenize import Encoded, encode
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
    """A freshly adapted tiny model with its encoded rows; the same weights every time."""

    def __init__(self, folder: Path, rules: Train = RULES) -> None:
        import torch

        torch.manual_seed(rules.seed)
        self.rules = rules
        self.model, tokenizer, self.ends = job.load(folder, rules)
        self.rows = encode(rows(), tokenizer, SYSTEM, self.ends)
        self.prefix = common_prefix([row.prompt for row in self.rows])
        self.wrapped = with_adapter(self.model, rules)
        self.weights = {n: w for n, w in self.wrapped.named_parameters() if w.requires_grad}
        with torch.no_grad():  # LoRA's B starts at zero, where half of the gradients would be zero as well
            for weight in self.weights.values():
                weight.add_(torch.randn_like(weight) * 0.05)
        self.packed = PackedModel(self.model, self.prefix)
        self.optimizer = torch.optim.AdamW(list(self.weights.values()), lr=0.01, betas=BETAS)

    def loop(self, folder: Path, report: Any = None) -> Loop:
        told = report or Silent()
        return Loop(
            self.packed, self.weights, self.rules, len(self.prefix), False, folder, told, lambda metrics, step: None
        )


def plain_loss(setup: Setup) -> Any:
    """What a user would write: every row whole and alone, labels only on the answer."""
    import torch

    setup.model.config._attn_implementation = "eager"
    total = torch.zeros(())
    for row in setup.rows:
        logits = setup.model(input_ids=torch.tensor([row.ids])).logits[0]
        start = len(row.prompt) - 1
        total = total + torch.nn.functional.cross_entropy(
            logits[start : start + len(row.answer)], torch.tensor(row.answer), reduction="sum"
        )
    return total


@pytest.mark.parametrize("layers", [None, 1])
def test_packed_loss_and_gradient_are_those_of_the_plain_way(tiny_model: Path, layers: int | None) -> None:
    import torch

    fast = Setup(tiny_model, RULES.model_copy(update={"layers": layers}))
    assert len(fast.prefix) > 10, "the instruction is shared"
    for _ in range(2):  # the second time the frozen layers' output comes from memory
        for weight in fast.weights.values():
            weight.grad = None
        loss, count = fast.packed.loss(fast.rows)
        loss.backward()
    plain = Setup(tiny_model, RULES.model_copy(update={"layers": layers}))
    reference = plain_loss(plain)
    reference.backward()
    assert count == sum(len(row.answer) for row in fast.rows)
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=1e-5)
    for name, weight in fast.weights.items():
        expected = plain.weights[name].grad
        difference = torch.linalg.norm(weight.grad - expected) / torch.linalg.norm(expected)
        assert float(difference) < 1e-4, name


def test_pieces_change_nothing(tiny_model: Path) -> None:
    setup = Setup(tiny_model)
    whole, _ = setup.packed.loss(setup.rows)
    parts = [setup.packed.loss(piece)[0] for piece in pieces(setup.rows, len(setup.prefix), len(setup.prefix) + 20)]
    assert len(parts) > 2
    assert sum(float(part.detach()) for part in parts) == pytest.approx(float(whole.detach()), rel=1e-5)


def test_the_output_of_frozen_layers_is_kept_up_to_a_bound(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(tiny_model, RULES.model_copy(update={"layers": 1}))
    whole = float(setup.packed.loss(setup.rows)[0].detach())
    all_of_it = sum(part.untyped_storage().nbytes() for part in setup.packed._kept.values())
    monkeypatch.setattr(packing, "CACHE_BYTES", all_of_it // 2)
    bounded = PackedModel(setup.model, setup.prefix)
    for _ in range(2):  # the second time one half comes from memory
        assert float(bounded.loss(setup.rows)[0].detach()) == pytest.approx(whole, rel=1e-5)
        assert 0 < sum(part.untyped_storage().nbytes() for part in bounded._kept.values()) <= all_of_it // 2


def test_masks_of_many_lengths_take_the_memory_of_the_longest() -> None:
    """And each is what it would be by itself."""
    import torch

    masks, like = _Masks(7), torch.zeros(1)
    held = set()
    for own in [*range(1, 130), *range(130, 0, -1)]:
        mask = masks(own, like)
        assert mask.shape == (own, 7 + own)
        held.add(mask.untyped_storage().nbytes())
        assert torch.equal(mask, torch.full((own, own + 7), float("-inf")).triu(8))
    assert max(held) <= 4 * 192 * (192 + 7)
    assert len(held) == 3, "made anew every 64 tokens, and only while rows get longer"


class StopAfter(Silent):
    """Cancels a run at the n-th question whether it is still wanted."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def alive(self) -> None:
        if self.left == 0:
            raise JobCancelled("stopped", "go on")
        self.left -= 1


def test_a_training_stopped_and_resumed_gives_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    straight = Setup(tiny_model)
    straight.loop(tmp_path / "a").run(straight.rows, straight.rows[:3], checkpoint.State(), straight.optimizer)
    stopped = Setup(tiny_model)
    with pytest.raises(JobCancelled):
        stopped.loop(tmp_path / "b", StopAfter(3)).run(
            stopped.rows, stopped.rows[:3], checkpoint.State(), stopped.optimizer
        )
    resumed = Setup(tiny_model)
    state = checkpoint.load(tmp_path / "b", resumed.weights, resumed.optimizer, Silent())
    assert state.step == 3
    resumed.loop(tmp_path / "b").run(resumed.rows, resumed.rows[:3], state, resumed.optimizer)
    assert len(state.history) == total_steps(12, RULES) + 1
    for name, weight in straight.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_it_learns(tiny_model: Path, tmp_path: Path) -> None:
    setup = Setup(tiny_model, RULES.model_copy(update={"num_epochs": 10.0}))
    state = checkpoint.State()
    setup.loop(tmp_path).run(setup.rows, setup.rows[:3], state, setup.optimizer)
    measured = [line["validation_loss"] for line in state.history if "validation_loss" in line]
    assert measured[-1] < measured[0] / 2


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_taken(tiny_model: Path, tmp_path: Path) -> None:
    setup = Setup(tiny_model)
    for step in (1, 2):
        setup.loop(tmp_path)._step(setup.rows, step, 9, setup.optimizer)
        checkpoint.save(tmp_path, checkpoint.State(step=step), setup.weights, setup.optimizer)
    newest = tmp_path / "step-00000002" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    heard: list[str] = []
    report = Silent()
    report.log = heard.append  # type: ignore[method-assign, assignment]
    assert checkpoint.load(tmp_path, setup.weights, setup.optimizer, report).step == 1
    assert "step-00000002 is damaged" in heard[0]


def test_a_folder_that_cannot_be_written_is_said(tiny_model: Path, tmp_path: Path) -> None:
    setup = Setup(tiny_model)
    (tmp_path / "file").write_text("not a folder", "utf-8")
    with pytest.raises(StorageError, match="cannot write"):
        checkpoint.save(tmp_path / "file", checkpoint.State(step=1), setup.weights, setup.optimizer)


@pytest.mark.parametrize("kind", ["granite", "gemma2"])
def test_the_job_refuses_a_model_that_would_train_on_another_loss(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    base = tmp_path / kind
    shutil.copytree(tiny_model, base)
    tiny(kind, vocab_size=384).save_pretrained(base)
    for side in ("train", "validation"):
        write_jsonl(tmp_path / f"{side}.jsonl", rows(4))
    spec = {"base": str(base), "system": SYSTEM, "out": str(tmp_path)}
    spec |= {side: str(tmp_path / f"{side}.jsonl") for side in ("train", "validation")}
    with pytest.raises(ModelError, match=f"(?i){kind}ForCausalLM"):
        job.assemble(spec, RULES)


def test_a_full_disk_is_said_and_leaves_no_half_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)  # what it raises, word for word
    setup = Setup(tiny_model)
    with pytest.raises(StorageError, match=r"no room left to write .*step-00000001"):
        checkpoint.save(tmp_path, checkpoint.State(step=1), setup.weights, setup.optimizer)
    assert not list(tmp_path.iterdir())


def test_divergence_stops_the_training(tiny_model: Path, tmp_path: Path) -> None:
    loop = Setup(tiny_model).loop(tmp_path)
    losses = [2.0] * 15 + [9.0] * 15
    with pytest.raises(TrainingFailed, match="the loss diverges"):
        loop._watch(checkpoint.State(step=len(losses), history=[{"loss": loss} for loss in losses]))
    loop._watch(checkpoint.State(step=30, history=[{"loss": 2.0 + n % 2} for n in range(30)]))


def test_the_audit_names_rows_that_would_teach_nothing() -> None:
    good = Encoded("good", [1, 2, 3], [7, 8, 2], joined=True)
    bad = [
        Encoded("silent", [1, 2, 3], [2], joined=True),
        Encoded("endless", [1, 2, 3], [7, 8], joined=True),
        Encoded("long", [1] * 50, [7, 2], joined=True),
        Encoded("other", [1, 2, 3], [7, 2], joined=False),
    ]
    assert audit([good], frozenset({2}), 40, 2).passed
    found = audit([good, *bad], frozenset({2}), 40, 2)
    assert [check.observed for check in found.checks] == [f"1 rows: {row.id}" for row in bad]


def test_the_end_of_turn_is_supervised_and_the_prompt_is_the_servers(tiny_model: Path) -> None:
    _, tokenizer, ends = job.load(tiny_model, RULES)
    (row,) = encode(rows(1), tokenizer, SYSTEM, ends)
    assert row.joined
    assert row.answer[-1] in ends
    assert tokenizer.decode(row.answer[:-1]) == "red"
    assert tokenizer.decode(row.prompt).endswith("<|im_start|>assistant\n")


def test_every_row_is_seen_once_an_epoch() -> None:
    steps = total_steps(10, RULES)
    seen = [row for step in range(steps) for row in batch_at(step, 10, RULES)]
    assert sorted(seen) == sorted([*range(10), *range(10)])
    assert seen[:10] != seen[10:], "every epoch has its own order"


def test_the_rate_rises_and_falls() -> None:
    rules = RULES.model_copy(update={"warmup_ratio": 0.1})
    rates = [rate_at(step, 100, rules) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.001 * rates[10]

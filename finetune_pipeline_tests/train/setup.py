"""What the tests of training share: a task of colors, a tiny model with trainable weights, reporters that cancel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_pipeline.config import Lora, Train
from finetune_pipeline.errors import JobCanceled
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.models.device import autocast
from finetune_pipeline.records import Example, Message, Silent
from finetune_pipeline.train import checkpoint
from finetune_pipeline.train.assembly import tokenized
from finetune_pipeline.train.forward import Forward
from finetune_pipeline.train.loop import Loop
from finetune_pipeline.train.method import load_base, make_trainable
from finetune_pipeline.train.objective import objective_of
from finetune_pipeline.train.optimizer import optimizer_for
from finetune_pipeline.train.packing import PackedForward
from finetune_pipeline.train.reference import Reference
from finetune_pipeline.train.schedule import total_steps
from finetune_pipeline.train.tokenize import TokenizedExample

RULES = Train(
    lora=Lora(r=4, alpha=8), num_epochs=2, batch_size=4, learning_rate=0.01, precision="fp32", checkpoint_seconds=0
)
SYSTEM = "Answer with the color that the sentence names, in one word."
COLORS = ("red", "green", "blue")
WORDS = ["a", "red", "wall", "stands", "beside", "the", "old", "green", "gate", "and", "a", "blue", "door"]


def rows(count: int = 12, pairs: bool = False) -> list[Example]:
    return [
        Example(
            f"row{n}",
            (Message("user", " ".join(WORDS[: 2 + n % 9])), Message("assistant", COLORS[n % 3])),
            "test",
            f"test:{n}",
            rejected=f"no {COLORS[(n + 1) % 3]}" if pairs else None,
        )
        for n in range(count)
    ]


class Setup:
    """A tiny model with trainable weights, and its tokenized rows; the same weights every time."""

    def __init__(self, folder: Path, rules: Train = RULES, count: int = 12, changed: bool = True) -> None:
        import torch

        torch.manual_seed(rules.seed)
        self.folder, self.rules, self.base = folder, rules, load_base(folder, rules)
        self.model = self.base.model
        self.objective = objective_of(rules)
        self.rows = tokenized(rows(count, self.objective.preference), self.base, SYSTEM, rules, self.objective)
        self.prefix = common_prefix([row.prompt for row in self.rows])
        self.trainable = make_trainable(self.base, rules)
        self.weights = self.trainable.weights
        self.forward = PackedForward(self.model, self.prefix)
        self.reference = Reference.measure(self.forward, self.rows, self.objective, 4096, False, Silent())
        self.optimizer = optimizer_for(self.weights, rules)
        if changed:
            self.change()

    def change(self, seed: int = 0) -> None:
        """Noise on the adapter: LoRA's B starts at zero, where half of the gradients would be zero as well."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.weights.items():
                if "lora_" in name:
                    weight.add_(torch.randn(weight.shape, generator=generator) * 0.05)

    def loop(self, folder: Path, report: Any = None) -> Loop:
        return Loop(
            self.forward,
            self.weights,
            self.rules,
            self.objective,
            False,
            folder,
            report or Silent(),
            lambda metrics, step: None,
            reference=self.reference,
        )

    def train(self, folder: Path, report: Any = None) -> checkpoint.TrainingState:
        """The state after a training in this folder, resumed from its checkpoint if there is one."""
        state = checkpoint.load(folder, self.weights, self.optimizer, report or Silent())
        self.loop(folder, report).run(self.rows, self.rows[:3], state, self.optimizer)
        return state

    def step(self, folder: Path, step: int = 0) -> checkpoint.HistoryLine:
        """One optimizer step."""
        state = checkpoint.TrainingState(step=step, max_tokens=self.rules.max_tokens_per_batch)
        return self.loop(folder)._step(self.rows, state, total_steps(len(self.rows), self.rules), self.optimizer)


class StopAfter(Silent):
    """Cancels the run in the call of `alive` after `steps` calls."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def alive(self) -> None:
        if self.left == 0:
            raise JobCanceled("stopped", "go on")
        self.left -= 1


class StopsIn(Silent):
    """Cancels the run during step `n`, as SIGTERM does: the next call of `alive` raises."""

    def __init__(self, n: int) -> None:
        self.left, self.stopped = n, False

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        self.stopped = done >= self.left

    def alive(self) -> None:
        if self.stopped:
            raise JobCanceled("stopped", "go on")


class LogRecorder(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


def kept_bytes(forward: Forward, rows: Sequence[TokenizedExample], bf16: bool = False) -> int:
    """Bytes of the tensors that a forward pass keeps for its backward pass, without weights."""
    import torch

    weights = {weight.data_ptr() for weight in forward.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(bf16):
        states = forward.states(rows)
    assert states.requires_grad
    return sum(kept.values())

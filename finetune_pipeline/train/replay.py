"""Keep general ability while tuning: in every step a few general texts are held to the base model's own distribution.

    {"id": "replay-002", "kind": "fact", "question": "Which planet in our solar system is the largest?", "answer": ...}

A model that is tuned on one kind of answer forgets the others. So each step adds `weight` times the mean divergence
KL(base || tuned) over the tokens of `texts` general texts (replay.jsonl, our own), without the task's instruction:
knowledge distillation (Hinton, Vinyals and Dean, 2015) from the model's own base, instead of learning the texts
themselves. What evaluation measures are other texts (evaluate/general.jsonl).

The texts lie in the packed sequence of the step (packing.py), so that they cost what their tokens cost. The base
model's
hidden states are computed for `BLOCK` steps at a time, with the adapter switched off. Logits, [tokens, vocabulary], are
computed for so many tokens at a time that they stay small; where that takes several pieces, they are computed again for
the gradient (Chen et al., Training deep nets with sublinear memory cost, 2016). Which texts a step gets depends on seed
and step alone: a resumed training is the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.resources import files
from typing import Any

from finetune_pipeline.config import KeepGeneral
from finetune_pipeline.models.device import autocast
from finetune_pipeline.records import Example, Message
from finetune_pipeline.train.packing import PackedModel
from finetune_pipeline.train.tokenize import Encoded

BLOCK = 4  # steps; more saves time, and takes the memory of their hidden states
LOGITS_BYTES = 128 * 1024**2  # of a piece; with the base model's, distributions and gradients up to seven times that


def general_texts() -> list[Example]:
    """The rows of replay.jsonl, as examples without a system prompt."""
    lines = (files("finetune_pipeline.train") / "replay.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Example(row["id"], (Message("user", row["question"]), Message("assistant", row["answer"])), "replay", row["id"])
        for row in rows
    ]


class Replay:
    """`texts`: the general texts as token ids; `base_only`: switches the adapter off within a block; `bf16`: the
    precision of the training."""

    def __init__(
        self,
        model: PackedModel,
        texts: Sequence[Encoded],
        rules: KeepGeneral,
        seed: int,
        base_only: Callable[[], AbstractContextManager[Any]],
        bf16: bool,
    ) -> None:
        self._model, self._texts, self._rules, self._seed = model, list(texts), rules, seed
        self._base_only, self._bf16 = base_only, bf16
        self._block = -1
        self._teacher: list[Any] = []

    @property
    def weight(self) -> float:
        return self._rules.weight

    def at(self, step: int) -> list[Encoded]:
        """The texts of optimizer step `step`; every pass over the texts has an order of its own."""
        count, made = self._rules.texts, []
        for place in range(step * count, (step + 1) * count):
            epoch, within = divmod(place, len(self._texts))
            order = list(range(len(self._texts)))
            random.Random(f"{self._seed}/replay/{epoch}").shuffle(order)
            made.append(self._texts[order[within]])
        return made

    def divergence(self, step: int, hidden: Any) -> Any:
        """Mean KL(base || tuned) of a token of the step's texts (nats), with gradient; `hidden`: the tuned model's
        states [tokens, hidden], as `PackedModel.forward` gives them."""
        from torch.utils.checkpoint import checkpoint

        base = self._base(step)
        size = self.piece_tokens
        if len(base) <= size:
            return self._divergence(hidden, base) / len(base)
        pieces = zip(hidden.split(size), base.split(size), strict=True)
        return sum(checkpoint(self._divergence, *pair, use_reentrant=False) for pair in pieces) / len(base)

    @property
    def piece_tokens(self) -> int:
        """Tokens whose logits are computed together."""
        return max(1, LOGITS_BYTES // (4 * self._model.vocabulary))

    def _divergence(self, hidden: Any, base: Any) -> Any:
        """Sum of KL(base || tuned) over these tokens. Both have the same head: no adapter is put on it."""
        import torch

        with autocast(self._bf16):
            with torch.no_grad():
                target = torch.log_softmax(self._model.logits(base), dim=-1)
            tuned = torch.log_softmax(self._model.logits(hidden), dim=-1)
        return torch.nn.functional.kl_div(tuned, target, reduction="sum", log_target=True)

    def _base(self, step: int) -> Any:
        """Hidden states [tokens, hidden] of the base model for the texts of `step`."""
        import torch

        block = step // BLOCK
        if block != self._block:  # always whole blocks: a resumed training computes what an unbroken one does
            steps = [self.at(each) for each in range(block * BLOCK, (block + 1) * BLOCK)]
            with torch.no_grad(), self._base_only(), autocast(self._bf16):
                _, hidden = self._model.forward([], [text for texts in steps for text in texts])
            sizes = [sum(len(text.ids) - 1 for text in texts) for texts in steps]
            self._block, self._teacher = block, list(hidden.split(sizes))
        return self._teacher[step % BLOCK]

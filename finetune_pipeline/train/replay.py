"""Replay of general texts: each step adds the divergence of the tuned model from its base model on a few texts.

    {"id": "replay-002", "kind": "fact", "prompt": "Which planet in our solar system is the largest?", "completion": …}

A model that is tuned on one kind of completion loses general ability. So the objective of each step is the task's loss
plus `weight` times the mean KL(base || tuned) over the tokens of `texts` general texts (replay.jsonl, written for this
project), without the task's system prompt. This is knowledge distillation (Hinton, Vinyals and Dean, 2015) from the
base model, not supervised learning of the texts. Evaluation measures other texts (evaluate/general.jsonl).

The texts are standalone rows of the packed sequence of a step (packing.py), so their cost is their tokens. Hidden
states of the base model are computed for `BLOCK` steps at a time with the adapter disabled. Logits
[tokens, vocabulary] are computed in chunks that fit into LOGITS_BYTES; several chunks are recomputed for the gradient
(Chen et al., Training deep nets with sublinear memory cost, 2016). The texts of a step depend on seed and step alone,
so that a resumed training is the same.
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
from finetune_pipeline.train.tokenize import TokenizedExample

BLOCK = 4  # steps; more saves time and takes more memory for hidden states
LOGITS_BYTES = (
    128 * 1024**2
)  # of a chunk; with the base model's logits, distributions and gradients up to seven times as much


def general_texts() -> list[Example]:
    """The rows of replay.jsonl, as examples without a system prompt."""
    lines = (files("finetune_pipeline.train") / "replay.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Example(
            row["id"], (Message("user", row["prompt"]), Message("assistant", row["completion"])), "replay", row["id"]
        )
        for row in rows
    ]


class Replay:
    """`texts`: the tokenized general texts; `base_only`: a context manager that disables the adapter; `bf16`: whether
    the training computes in bf16."""

    def __init__(
        self,
        model: PackedModel,
        texts: Sequence[TokenizedExample],
        rules: KeepGeneral,
        seed: int,
        base_only: Callable[[], AbstractContextManager[Any]],
        bf16: bool,
    ) -> None:
        self._model, self._texts, self._rules, self._seed = model, list(texts), rules, seed
        self._base_only, self._bf16 = base_only, bf16
        self._block = -1
        self._base_states: list[Any] = []

    @property
    def weight(self) -> float:
        return self._rules.weight

    def texts_at(self, step: int) -> list[TokenizedExample]:
        """The texts of an optimizer step; every pass over the texts has another order."""
        count, selected = self._rules.texts, []
        for index in range(step * count, (step + 1) * count):
            epoch, within = divmod(index, len(self._texts))
            order = list(range(len(self._texts)))
            random.Random(f"{self._seed}/replay/{epoch}").shuffle(order)
            selected.append(self._texts[order[within]])
        return selected

    def divergence(self, step: int, hidden: Any) -> Any:
        """Mean KL(base || tuned) per token of the step's texts (nats), with gradient. `hidden`: hidden states
        [tokens, hidden] of the tuned model, from `PackedModel.forward`."""
        from torch.utils.checkpoint import checkpoint

        base = self._base_hidden(step)
        size = self.chunk_tokens
        if len(base) <= size:
            return self._divergence_sum(hidden, base) / len(base)
        chunks = zip(hidden.split(size), base.split(size), strict=True)
        return sum(checkpoint(self._divergence_sum, *pair, use_reentrant=False) for pair in chunks) / len(base)

    @property
    def chunk_tokens(self) -> int:
        """Tokens whose logits are computed at once."""
        return max(1, LOGITS_BYTES // (4 * self._model.vocabulary))

    def _divergence_sum(self, hidden: Any, base: Any) -> Any:
        """Sum of KL(base || tuned) over the tokens. Both models have the same output head, which has no adapter."""
        import torch

        with autocast(self._bf16):
            with torch.no_grad():
                target = torch.log_softmax(self._model.logits(base), dim=-1)
            tuned = torch.log_softmax(self._model.logits(hidden), dim=-1)
        return torch.nn.functional.kl_div(tuned, target, reduction="sum", log_target=True)

    def _base_hidden(self, step: int) -> Any:
        """Hidden states [tokens, hidden] of the base model for the texts of a step."""
        import torch

        block = step // BLOCK
        if block != self._block:  # blocks start at multiples of BLOCK, also in a resumed training
            steps = [self.texts_at(at) for at in range(block * BLOCK, (block + 1) * BLOCK)]
            with torch.no_grad(), self._base_only(), autocast(self._bf16):
                _, hidden = self._model.forward([], [text for texts in steps for text in texts])
            sizes = [sum(len(text.ids) - 1 for text in texts) for texts in steps]
            self._block, self._base_states = block, list(hidden.split(sizes))
        return self._base_states[step % BLOCK]

"""Replay of general texts: each step adds the divergence of the tuned model from its base model on a few texts.

    {"id": "replay-002", "kind": "fact", "prompt": "Which planet in our solar system is the largest?", "completion": …}

A model that is tuned on one kind of completion loses general ability. So the objective of each step is the task's loss
plus `weight` times the mean KL(base || tuned) over the tokens of `texts` general texts (replay.jsonl, written for this
project), without the task's system prompt. This is knowledge distillation (Hinton, Vinyals and Dean, 2015) from the
base model, not supervised learning of the texts. Evaluation measures other texts (evaluate/general.jsonl).

The texts are rows of the packed tree of a step (packing.py), so their cost is their tokens. The hidden states of the
base model are computed once, before the first step, when every model still equals its base. The texts of a step depend
on seed and step alone, so that a resumed training is the same.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from finetune_pipeline.config import KeepGeneral, Train
from finetune_pipeline.inference.model_family import within_limit
from finetune_pipeline.models.device import autocast, uses_bf16
from finetune_pipeline.records import SILENT, Example, Message, Reporter
from finetune_pipeline.train.distributed import ALONE, Ranks
from finetune_pipeline.train.forward import Forward, without_dropout
from finetune_pipeline.train.method import Base
from finetune_pipeline.train.sharding import whole_copy
from finetune_pipeline.train.tokenize import Completion, TokenizedExample, tokenize


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


def whole_texts(rows: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """The rows with all tokens learned but the first, prompt and chat template included."""
    sequences = [(row, row.prompt + row.completions[0].ids) for row in rows]
    return [TokenizedExample(row.id, ids[:1], (Completion(ids[1:]),)) for row, ids in sequences]


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/replay/{epoch}").shuffle(order)
    return order


class Replay:
    """`texts`: the tokenized general texts (`whole_texts`); `bf16`: whether the training computes in bf16. `measure`
    has to be called before the first step; `known`: what it measured for another training of the same base model."""

    def __init__(
        self,
        forward: Forward,
        texts: Sequence[TokenizedExample],
        rules: KeepGeneral,
        seed: int,
        bf16: bool,
        known: dict[str, Any] | None = None,
    ) -> None:
        self._forward, self._texts, self._rules, self._seed, self._bf16 = forward, list(texts), rules, seed, bf16
        self._base_states = {} if known is None else known
        self._base_head: Any = None

    @property
    def weight(self) -> float:
        return self._rules.weight

    def texts_at(self, step: int, ranks: Ranks = ALONE) -> list[TokenizedExample]:
        """This rank's texts of an optimizer step; every pass over the texts has another order."""
        count, selected = self._rules.texts, []
        for index in range(step * count, (step + 1) * count):
            epoch, within = divmod(index, len(self._texts))
            if index % ranks.size == ranks.rank:
                selected.append(self._texts[_order(len(self._texts), self._seed, epoch)[within]])
        return selected

    @property
    def longest(self) -> list[TokenizedExample]:
        """As many texts as a step has, the longest ones."""
        return sorted(self._texts, key=lambda text: text.tokens)[-self._rules.texts :]

    def measure(self, steps: int, max_tokens: int, report: Reporter = SILENT, ranks: Ranks = ALONE) -> None:
        """Compute the base model's hidden states of all texts of a training of `steps` steps, with the model as it is
        now. Kept in memory: tokens x hidden values."""
        import torch

        needed = {text.id: text for step in range(steps) for text in self.texts_at(step, ranks)}
        missing = [text for text in needed.values() if text.id not in self._base_states]
        forward = self._forward
        with torch.no_grad(), autocast(self._bf16), without_dropout(forward.model):
            for part, _ in ranks.even(forward.micro_batches(missing, max_tokens), self._texts[:1]):
                report.alive()
                states = forward.states(part).split([text.learned for text in part])
                for text, each in zip(part, states, strict=True):
                    self._base_states[text.id] = each.clone()
                report.progress("general texts", len(needed.keys() & self._base_states.keys()), len(needed))
        head = forward.model.get_output_embeddings()
        if any(weight.requires_grad for weight in head.parameters()):
            self._base_head = whole_copy(head)

    def divergence(self, step: int, states: Any, own: Sequence[TokenizedExample] | None = None) -> Any:
        """Mean KL(base || tuned) per token of the step's texts (nats), with gradient; with `own`, the share of these
        texts in it. `states` [tokens, hidden] of the tuned model, from `Forward.states` of the texts."""
        import torch

        texts = self.texts_at(step)
        base = torch.cat([self._base_states[text.id] for text in own or texts]).to(states.device)
        tokens = sum(text.learned for text in texts)
        return self._forward.in_chunks(self._divergences, states, base).sum() / tokens

    def _divergences(self, states: Any, base: Any) -> Any:
        """KL(base || tuned) of every token [tokens]."""
        import torch

        with autocast(self._bf16):
            with torch.no_grad():
                target = torch.log_softmax(self._forward.logits(base, self._base_head), dim=-1)
            tuned = torch.log_softmax(self._forward.logits(states), dim=-1)
        return torch.nn.functional.kl_div(tuned, target, reduction="none", log_target=True).sum(-1)


def replay_for(
    forward: Forward,
    base: Base,
    rules: Train,
    texts: list[TokenizedExample],
    report: Reporter,
    known: dict[str, Any] | None = None,
) -> Replay | None:
    """The replay of general texts (`general_rows`), without those that are longer than the model's limit; None when
    none is left. `known`: states of texts that were measured before."""
    texts = within_limit(texts, lambda text: text.tokens, base.model.config, "general texts", report)
    if not texts:
        return None
    return Replay(forward, texts, rules.keep_general, rules.seed, uses_bf16(rules.precision), known)


def general_rows(base: Base, rules: Train) -> list[TokenizedExample]:
    """The general texts as token ids; none where `train.keep_general.weight` is 0."""
    if not rules.keep_general.weight:
        return []
    return whole_texts(tokenize(general_texts(), base.tokenizer, "", base.end_ids))

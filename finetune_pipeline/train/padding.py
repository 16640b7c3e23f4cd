"""The plain forward pass: every completion behind its whole prompt, padded on the right to the longest of the batch.

    forward = PaddedForward(model)
    losses = forward.losses(rows)                  # nats [learned tokens]

It computes more tokens than packing.py and needs nothing but a causal LM that takes `attention_mask`. It is the
fallback for models that cannot be packed, and what forward_check.py compares a packed computation with.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from finetune_pipeline.inference.model_family import decoder_parts
from finetune_pipeline.models.training_load import Load
from finetune_pipeline.train.checkpointing import checkpointed
from finetune_pipeline.train.forward import Forward, attention, frozen_layers, learned
from finetune_pipeline.train.tokenize import TokenizedExample

PADDING = 0  # any id: masked


class PaddedForward(Forward):
    """See the module's docstring."""

    name = "padded"

    def _new(self) -> PaddedForward:
        return PaddedForward(self.model)

    def states(self, rows: Sequence[TokenizedExample]) -> Any:
        import torch

        device = self.model.get_output_embeddings().weight.device
        sequences = [(row, completion) for row in rows for completion in row.completions]
        longest = max(len(row.prompt) + len(completion.ids) for row, completion in sequences) - 1
        ids = torch.full((len(sequences), longest), PADDING, dtype=torch.long)
        mask = torch.zeros_like(ids)
        wanted: list[tuple[int, int]] = []
        for at, (row, completion) in enumerate(sequences):
            tokens = (row.prompt + completion.ids)[:-1]
            ids[at, : len(tokens)] = torch.tensor(tokens)
            mask[at, : len(tokens)] = 1
            wanted += [(at, len(row.prompt) + index - 1) for index in completion.learned]
        with self._attention(), self._checkpointed():
            out = self.run_backbone(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        at, index = torch.tensor(wanted, device=device).T
        return out.last_hidden_state[at, index]

    def load(self, rows: Sequence[TokenizedExample], general: int = 0, padding: bool = True) -> Load:
        lengths = [len(row.prompt) + len(completion.ids) - 1 for row in rows for completion in row.completions]
        if padding:
            lengths = [max(lengths, default=0)] * len(lengths)
        return Load.of(lengths, [0] * len(lengths), learned(rows), learned(rows[len(rows) - general :]))

    def _attention(self) -> AbstractContextManager[None]:
        """The attention that transformers chooses by default."""
        return attention(self.model, "sdpa" if self.model._supports_sdpa else "eager")

    def _checkpointed(self) -> AbstractContextManager[None]:
        if not self.checkpointing:
            return nullcontext()
        tuned = decoder_parts(self.model).layers[frozen_layers(self.model) :]
        return checkpointed(tuned, self._attention)

    def forget_frozen(self) -> None:
        """It computes every layer anyway."""

    def micro_batches(self, rows: Sequence[TokenizedExample], max_tokens: int) -> list[list[TokenizedExample]]:
        parts: list[list[TokenizedExample]] = []
        for row in sorted(rows, key=lambda row: row.tokens):
            if not parts or self.computed_tokens([*parts[-1], row]) > max_tokens:
                parts.append([])
            parts[-1].append(row)
        return parts

    def computed_tokens(self, rows: Sequence[TokenizedExample]) -> int:
        longest = max((row.tokens for row in rows), default=1) - 1
        return sum(len(row.completions) for row in rows) * longest

"""What a forward pass of training computes: the losses of the learned tokens, by the model's own forward function.

    forward = PackedForward(model, prefix)         # packing.py; PaddedForward (padding.py) where that is not possible
    losses = forward.losses(rows)                  # nats [learned tokens], with gradient
    states = forward.states(rows)                  # hidden states [learned tokens, hidden], for replay.py

The backbone computes the hidden states, and the model's own `forward` makes logits of those that predict a learned
token, so that scaled or capped logits stay the model's own. Logits [tokens, vocabulary] are computed in chunks of
LOGITS_BYTES; several chunks are recomputed for the gradient (Chen et al., Training deep nets with sublinear memory
cost, 2016).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from finetune_pipeline.inference.model_family import decoder_parts
from finetune_pipeline.models.training_load import Load
from finetune_pipeline.models.training_memory import LOGITS_BYTES
from finetune_pipeline.train.checkpointing import can_checkpoint
from finetune_pipeline.train.tokenize import TokenizedExample


class Forward(ABC):
    """`model`: a transformers causal LM, with peft's layers in it or all of its weights trainable. `checkpointing`:
    whether the trained layers are computed again in the backward pass (checkpointing.py)."""

    name: str
    checkpointing = False

    def __init__(self, model: Any) -> None:
        self.model = model
        self._backbone = model.base_model_prefix
        self.run_backbone: Callable[..., Any] = lambda **inputs: getattr(model, model.base_model_prefix)(**inputs)

    @abstractmethod
    def states(self, rows: Sequence[TokenizedExample]) -> Any:
        """Hidden states [learned tokens, hidden] that the learned tokens are predicted from, with gradient; in the
        order of rows, completions and tokens."""

    @abstractmethod
    def micro_batches(self, rows: Sequence[TokenizedExample], max_tokens: int) -> list[list[TokenizedExample]]:
        """The rows, sorted by length, in parts of at most `max_tokens` computed tokens. A row that is longer is a part
        by itself."""

    @abstractmethod
    def computed_tokens(self, rows: Sequence[TokenizedExample]) -> int:
        """Tokens that pass the layers for these rows as one micro-batch."""

    @abstractmethod
    def forget_frozen(self) -> None:
        """From now on compute every layer for every row: with sharded weights, all ranks compute the same layers."""

    @abstractmethod
    def load(self, rows: Sequence[TokenizedExample], general: int = 0, padding: bool = True) -> Load:
        """What these rows have to compute as one micro-batch, the last `general` of them general texts (replay.py).
        Without `padding`, only the tokens of the rows count: useful work."""

    @abstractmethod
    def _new(self) -> Forward:
        """The same forward pass of the same model, with nothing computed yet."""

    def renewed(self) -> Forward:
        """The same forward pass of the same model, checkpointed or not, with nothing computed yet."""
        new = self._new()
        new.checkpointing = self.checkpointing
        return new

    def can_checkpoint(self) -> bool:
        """Whether the trained layers can be computed again in the backward pass."""
        return can_checkpoint(decoder_parts(self.model).layers)

    def losses(self, rows: Sequence[TokenizedExample]) -> Any:
        """Negative log likelihoods (nats) [learned tokens] in fp32, with gradient."""
        return self.token_losses(self.states(rows), targets(rows))

    def token_losses(self, states: Any, ids: Sequence[int]) -> Any:
        """Negative log likelihoods (nats) [tokens] of the token `ids` that `states` [tokens, hidden] predict."""
        import torch

        return self.in_chunks(self._cross_entropy, states, torch.tensor(list(ids), device=states.device))

    def in_chunks(self, function: Any, states: Any, *others: Any) -> Any:
        """`function(states, *others)` [tokens], computed for as many tokens at once as LOGITS_BYTES allow. All
        arguments are split along their first dimension."""
        import torch
        from torch.utils.checkpoint import checkpoint

        size = self.chunk_tokens
        if len(states) <= size:
            return function(states, *others)
        chunks = zip(states.split(size), *(other.split(size) for other in others), strict=True)
        return torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks])

    @property
    def chunk_tokens(self) -> int:
        """Tokens whose logits are computed at once."""
        return max(1, LOGITS_BYTES // (4 * self.vocabulary))

    @property
    def vocabulary(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[0])

    def logits(self, states: Any, head: Any = None) -> Any:
        """Logits [tokens, vocabulary] in fp32 of hidden states [tokens, hidden], as the model's own forward makes
        them; with another output layer `head`, if there is one."""
        return self._own_logits(states, head).float()

    def _own_logits(self, states: Any, head: Any = None) -> Any:
        model, own = self.model, self.model.get_output_embeddings()
        backbone = getattr(model, self._backbone)
        setattr(model, self._backbone, _returning(states[None]))
        if head is not None:
            model.set_output_embeddings(head)
        try:
            return model(inputs_embeds=states[None], use_cache=False).logits[0]
        finally:
            setattr(model, self._backbone, backbone)
            model.set_output_embeddings(own)

    def _cross_entropy(self, states: Any, ids: Any) -> Any:
        return _cross_entropy().apply(self._own_logits(states), ids)


@functools.cache
def _cross_entropy() -> Any:
    """torch's cross entropy of logits in fp32, without reduction, in place of a copy of the logits: on a CPU, forward
    and backward of 136 tokens of 49,152 took 150 and now 50 ms."""
    import torch

    class CrossEntropy(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, logits: Any, ids: Any) -> Any:
            shares = logits.to(torch.float32, copy=True)
            largest = shares.amax(-1, keepdim=True)
            chosen = shares.gather(-1, ids[:, None]) - largest
            sums = shares.sub_(largest).exp_().sum(-1, keepdim=True)
            ctx.save_for_backward(shares.div_(sums), ids)
            ctx.dtype = logits.dtype
            return (sums.log() - chosen)[:, 0]

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            shares, ids = ctx.saved_tensors
            grad = grad[:, None]
            return (shares * grad).scatter_add_(-1, ids[:, None], -grad).to(ctx.dtype), None

    return CrossEntropy


def learned(rows: Sequence[TokenizedExample]) -> int:
    return sum(row.learned for row in rows)


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Within the block, the model computes with the attention function of this name."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def frozen_layers(model: Any) -> int:
    """The number of decoder layers below the first trainable weight: their output for a row is the same in every
    step. 0 when the embedding is trainable, or nothing is."""
    if any(weight.requires_grad for weight in model.get_input_embeddings().parameters()):
        return 0
    layers = decoder_parts(model).layers
    tuned = [any(weight.requires_grad for weight in layer.parameters()) for layer in layers]
    return tuned.index(True) if True in tuned else 0


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Within the block, no dropout layer is active; afterwards each as before."""
    import torch

    layers = [part for part in model.modules() if isinstance(part, torch.nn.Dropout) and part.training]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True


def targets(rows: Sequence[TokenizedExample]) -> list[int]:
    """The learned token ids, in the order of rows, completions and tokens."""
    return [token for row in rows for completion in row.completions for token in completion.targets]


def _returning(states: Any) -> Any:
    """A module in place of the backbone, whose output is `states` [1, tokens, hidden]."""
    import torch
    from transformers.modeling_outputs import MoeModelOutputWithPast

    class Returning(torch.nn.Module):  # type: ignore[misc]
        def forward(self, *_: Any, **__: Any) -> Any:
            return MoeModelOutputWithPast(last_hidden_state=states)

    return Returning()

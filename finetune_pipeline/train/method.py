"""How the weights are held: `lora` and `qlora` train an adapter on a frozen base model, `full` trains its weights.

    base = load_base(folder, Train(method="qlora"))      # Base(model, tokenizer, end_ids)
    trainable = make_trainable(base, rules)              # Trainable(…): its model, and the tensors to train
    trainable.save(out, "SmolLM2-135M-Instruct", base.tokenizer)

| method | base model | trained weights | saved |
|---|---|---|---|
| lora | 16 or 32 bits | adapter, fp32 | adapter_model.safetensors |
| qlora | 4 bits: NF4 with double quantization (Dettmers et al., arXiv:2305.14314) | adapter, fp32 | the same |
| full | fp32; products in bf16 where that is fast | the model's | model.safetensors in the base's own type |

`weights.json` beside them names the method, so that evaluation and serving load the very base that was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune_pipeline.config import Train
from finetune_pipeline.inference.base_weights import read_model
from finetune_pipeline.inference.chat_template import end_ids
from finetune_pipeline.inference.model_family import decoder_parts
from finetune_pipeline.models.device import kind, uses_bf16
from finetune_pipeline.models.model_files import writing
from finetune_pipeline.models.trained_weights import Method, write_method
from finetune_pipeline.train.adapter import save_adapter, with_adapter
from finetune_pipeline.train.distributed import Ranks
from finetune_pipeline.train.fused_norm import use_fused_norms
from finetune_pipeline.train.sharding import gather


@dataclass(frozen=True)
class Base:
    """The loaded base model; `end_ids`: its end-of-turn tokens; `dtype`: the type of the weights in its files."""

    model: Any
    tokenizer: Any
    end_ids: frozenset[int]
    dtype: Any


def load_base(folder: Path, rules: Train, device: str | None = None) -> Base:
    """Load the base model for training, on `device` (default: the device of models/device.py); "cpu": the weights never
    are on a GPU, for a model that no single one holds. ModelError when it cannot be used (base_weights.py)."""
    import torch
    from transformers import AutoConfig

    bf16 = uses_bf16(rules.precision)
    dtype = torch.bfloat16 if bf16 and rules.method != "full" else torch.float32
    model, tokenizer = read_model(folder, dtype, quantized=rules.method == "qlora", on=device)
    own = AutoConfig.from_pretrained(folder, local_files_only=True).dtype or torch.float32
    return Base(
        model if rules.method == "qlora" else model.to(device or kind()), tokenizer, end_ids(model, tokenizer), own
    )


@dataclass(frozen=True)
class Trainable:
    """`model`: the causal LM as the forward pass computes it, with peft's layers in it; `weights`: the trainable
    tensors by name; `wrapped`: peft's wrapper, None for full weights; `initial`: the weights before training, where
    peft needs them to save (adapter.py); `dtype`: the type that full weights are saved in; `original`: weights of the
    base model that the training changes, in host memory, where they are kept for `release`."""

    method: Method
    model: Any
    weights: dict[str, Any]
    wrapped: Any
    initial: dict[str, Any]
    dtype: Any
    original: dict[str, Any] = field(default_factory=dict)

    def release(self) -> None:
        """Give the base model back as it was: without peft's layers, and with its `original` weights."""
        import torch

        if self.wrapped is not None:
            self.wrapped.base_model.unload()
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                weight.grad = None
                if name in self.original:
                    weight.copy_(self.original[name])

    def whole(self, ranks: Ranks) -> dict[str, Any]:
        """On the first rank the weights to save, if they are sharded; else nothing. All ranks have to call this."""
        if not ranks.sharded:
            return {}
        if self.wrapped is not None:
            return gather(self.weights, ranks)
        own = {name for name, _ in (*self.model.named_parameters(), *self.model.named_buffers())}  # a tied weight once
        return gather({name: value for name, value in self.model.state_dict().items() if name in own}, ranks)

    def save(self, out: Path, base_id: str, tokenizer: Any, whole: Mapping[str, Any] | None = None) -> None:
        """Write weights (safetensors), configuration and weights.json to the folder `out`; `base_id`: the name of the
        base model, because a local path is meaningless on another machine; `whole`: of a sharded model."""
        if self.wrapped is not None:
            save_adapter(self.wrapped, out, base_id, self.initial, whole)
        else:
            with writing(out):
                self._save_model(out, whole or self.model.state_dict())
                tokenizer.save_pretrained(out)
        write_method(out, self.method)

    def round(self) -> bool:
        """Round full weights to the type they are saved in; whether that changes them: then they have to be validated
        again."""
        import torch

        if self.wrapped is not None or self.dtype == torch.float32:
            return False
        with torch.no_grad():
            for weight in self.weights.values():
                weight.copy_(weight.to(self.dtype))
        return True

    def _save_model(self, out: Path, weights: Mapping[str, Any]) -> None:
        before = self.model.config.dtype
        self.model.config.dtype = self.dtype
        try:
            state = {name: value.to(self.dtype) for name, value in weights.items()}
            self.model.save_pretrained(out, state_dict=state)
        finally:
            self.model.config.dtype = before

    def collected(self) -> Trainable:
        """The same with the weights as they are in the model now: sharding replaces them."""
        found = (self.wrapped or self.model).named_parameters()
        return replace(self, weights={name: weight for name, weight in found if weight.requires_grad})


def make_trainable(base: Base, rules: Train, keep_base: bool = False) -> Trainable:
    """Put an adapter on the model, or make its own weights trainable: in the `rules.layers` upper decoder layers (None:
    everything). ModelError when nothing can be trained, or a frozen layer would be. `keep_base`: the base model is
    needed again, after `Trainable.release`; a copy of the weights that the training changes is kept."""
    model, wrapped = base.model, None
    changes = rules.method == "full" or rules.lora.changes_base
    named = model.named_parameters() if keep_base and changes else ()
    original = {n: weight.detach().to("cpu", copy=True) for n, weight in named if weight.is_floating_point()}
    if rules.method == "full":
        _unfreeze(model, rules.layers)
        model.eval()
    else:
        wrapped = with_adapter(model, rules)
    use_fused_norms(model)
    weights = {n: weight for n, weight in (wrapped or model).named_parameters() if weight.requires_grad}
    mutated = wrapped is not None and rules.lora.changes_base
    initial = {name: weight.detach().clone() for name, weight in weights.items()} if mutated else {}
    return Trainable(rules.method, model, weights, wrapped, initial, base.dtype, original)


def _unfreeze(model: Any, layers: int | None) -> None:
    """Make the weights trainable; with `layers`, those of the upper layers and the final norm alone. The embedding and
    the output layer, which many models share, are then frozen."""
    model.requires_grad_(layers is None)
    if layers is None:
        return
    parts = decoder_parts(model)
    for part in [*parts.layers[-min(layers, len(parts.layers)) :], parts.norm]:
        part.requires_grad_(True)

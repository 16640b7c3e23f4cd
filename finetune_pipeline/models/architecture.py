"""The sizes of a model's parts, from its own code: transformers builds it on torch's meta device, without weights.

    architecture = Architecture.of_folder(folder)        # reads config.json alone; imports torch
    architecture.parameters                              # 134515008, tied embeddings once
    architecture.layers[0].matrices[0]                   # Matrix("self_attn.q_proj", inputs=576, outputs=576)
    architecture.adapter_parameters(Train())             # 4884480: LoRA's, on the layers that train/adapter.py adapts

Counted are the modules that the model really has, so fused projections (Phi), blocks of experts and further norms are
right without knowing the family.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Train
from finetune_pipeline.inference.model_family import decoder_parts
from finetune_pipeline.models.text_part import text_config

EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k")


@dataclass(frozen=True)
class Matrix(JobData):
    """A weight [outputs, inputs] of a decoder layer, by its name in the layer. A block of `count` experts, of which
    `active` compute a token, is one matrix."""

    name: str
    inputs: int
    outputs: int
    count: int = 1
    active: int = 1

    @property
    def parameters(self) -> int:
        return self.count * self.inputs * self.outputs


@dataclass(frozen=True)
class Layer(JobData):
    """A decoder layer. `norms`: values per token that its norms read, together (those of queries and keys for every
    head), `plain_norms`: those of them that a training computes itself (train/fused_norm.py); `others`: parameters that
    are in no matrix (norms, biases, routers); `window`: tokens that its attention reaches back, None: all."""

    matrices: tuple[Matrix, ...]
    norms: int
    others: int
    window: int | None = None
    plain_norms: int = 0

    @property
    def parameters(self) -> int:
        return sum(matrix.parameters for matrix in self.matrices) + self.others

    @property
    def active(self) -> int:
        """Parameters in the products of one token."""
        return sum(matrix.active * matrix.inputs * matrix.outputs for matrix in self.matrices)


@dataclass(frozen=True)
class Architecture(JobData):
    """A causal language model. `queries` and `keys`: values per token of queries (and of the attention's output), and
    of keys (and of values); `embedding`: parameters; `head`: those of the output layer, 0 where it is the embedding;
    `others`: the remaining parameters outside of the layers. `scores`: whether its attention caps scores or has sinks,
    so that no fused kernel of a processor computes it."""

    hidden: int
    vocabulary: int
    heads: int
    queries: int
    keys: int
    embedding: int
    head: int
    others: int
    layers: tuple[Layer, ...]
    scores: bool = False

    @property
    def parameters(self) -> int:
        return self.embedding + self.head + self.others + sum(layer.parameters for layer in self.layers)

    @staticmethod
    def of_folder(folder: Path) -> Architecture:
        """Of a base model's folder. OSError, ValueError: as transformers raises them."""
        from transformers import AutoConfig

        return Architecture.of_config(
            text_config(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
        )

    @staticmethod
    def of_config(config: Any) -> Architecture:
        """Of a transformers configuration. ModelError for a layout of modules that is not known."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            return Architecture.of_model(AutoModelForCausalLM.from_config(config, trust_remote_code=False))

    @staticmethod
    def of_model(model: Any) -> Architecture:
        """Of a causal LM as transformers loads it, without adapter and quantization."""
        config = model.config.get_text_config()
        heads = int(config.num_attention_heads)
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        keys = int(getattr(config, "num_key_value_heads", None) or heads) * head_dim
        parts = decoder_parts(model)
        attended = heads * head_dim + keys
        layers = tuple(_layer(layer, config, n, attended, head_dim) for n, layer in enumerate(parts.layers))
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        every = sum(weight.numel() for weight in model.parameters())  # a tied weight once
        own_head = 0 if head is embedding else head.numel()
        others = every - embedding.numel() - own_head - sum(layer.parameters for layer in layers)
        return Architecture(
            hidden=int(config.hidden_size),
            vocabulary=int(head.shape[0]),
            heads=heads,
            queries=heads * head_dim,
            keys=keys,
            embedding=embedding.numel(),
            head=own_head,
            others=others,
            layers=layers,
            scores=bool(getattr(config, "attn_logit_softcapping", None))
            or any(name.endswith("sinks") for name, _ in parts.layers[0].named_parameters()),
        )

    def tuned(self, rules: Train) -> tuple[Layer, ...]:
        """The layers that are trained: the `train.layers` upper ones, or all."""
        return self.layers[-min(rules.layers or len(self.layers), len(self.layers)) :]

    def adapted(self, rules: Train) -> Iterator[Matrix]:
        """The matrices that get an adapter, as train/adapter.py selects them."""
        names = rules.lora.target_modules
        for layer in self.tuned(rules):
            for matrix in layer.matrices:
                if names == "all-linear" or (matrix.count == 1 and matrix.name.rpartition(".")[2] in names):
                    yield matrix

    def adapter_parameters(self, rules: Train) -> int:
        """Trained parameters of the adapter: r (in + out) for each matrix (Hu et al., arXiv:2106.09685, section 4.2),
        for each expert of a block; DoRA has a magnitude for each output as well."""
        dora = rules.lora.use_dora
        return sum(
            matrix.count * (rules.lora.r * (matrix.inputs + matrix.outputs) + (matrix.outputs if dora else 0))
            for matrix in self.adapted(rules)
        )

    def trained_parameters(self, rules: Train) -> int:
        """Of the adapter; with full weights, of the trained layers (without `train.layers`, of everything)."""
        if rules.method != "full":
            return self.adapter_parameters(rules)
        if rules.layers is None:
            return self.parameters
        return sum(layer.parameters for layer in self.tuned(rules)) + self.hidden  # and the last norm


def _layer(layer: Any, config: Any, index: int, attended: int, head_dim: int) -> Layer:
    import torch

    active = next((int(getattr(config, name)) for name in EXPERTS_PER_TOKEN if getattr(config, name, None)), 1)
    matrices: list[Matrix] = []
    norms = plain = 0
    for name, part in layer.named_modules():
        if isinstance(part, torch.nn.Linear):
            matrices.append(Matrix(name, part.in_features, part.out_features))
        weight = getattr(part, "weight", None)
        if "Norm" in type(part).__name__ and weight is not None:  # of queries or keys: [head size], or [all heads]
            values = attended // 2 if weight.numel() == head_dim != config.hidden_size else weight.numel()
            norms += values
            plain += values if hasattr(part, "variance_epsilon") else 0
    for name, weight in layer.named_parameters():
        if weight.ndim == 3 and min(weight.shape) > 1:  # experts, [experts, out, in] or [experts, in, out]
            count, rows, columns = weight.shape
            matrices.append(Matrix(name, columns, rows, count, min(active, count)))
    others = sum(weight.numel() for weight in layer.parameters()) - sum(matrix.parameters for matrix in matrices)
    return Layer(tuple(matrices), norms, others, _window(config, index), plain)


def _window(config: Any, index: int) -> int | None:
    """Tokens that the attention of a layer reaches back; None: all."""
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    return int(window) if window and (not kinds or kinds[index] == "sliding_attention") else None

"""`train`: method, LoRA and optimizer settings, or a managed provider that trains instead."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from finetune_pipeline.config.backend import Backend
from finetune_pipeline.config.provider import Provider
from finetune_pipeline.config.section import Section, Share


class KeepGeneral(Section):
    """A penalty on general texts in every training step: the KL divergence of the tuned model from its base model."""

    weight: float = Field(0.2, ge=0, description="Weight of the penalty, added to the loss of the task; 0: off.")
    texts: int = Field(
        1, ge=1, le=64, description="General texts per step; more preserve more general ability, and take more time."
    )


class Preference(Section):
    """Settings of the objectives that learn from a chosen and a rejected completion; defaults as in TRL."""

    beta: float = Field(
        0.1, gt=0, description="Strength of the bond to the model before training (orpo: weight of the odds ratio)."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="dpo: assumed share of pairs whose preference is the wrong way round."
    )
    desirable_weight: float = Field(1.0, gt=0, description="kto: weight of the chosen completions.")
    undesirable_weight: float = Field(1.0, gt=0, description="kto: weight of the rejected completions.")


class Validation(Section):
    """What is measured on the validation rows during training."""

    per_epoch: int = Field(1, ge=1, le=1000, description="Validations per epoch; one more is before the first step.")
    generate_rows: int = Field(
        32,
        ge=0,
        description="Validation rows that are answered as well, for the share of right answers. 0: none.",
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after this many validations in a row without a lower loss; default: never."
    )
    keep: Literal["best", "last"] = Field(
        "best", description="best: the weights with the lowest validation loss are the result; last: the final ones."
    )


class Lora(Section):
    """The adapter; the keys are those of `peft.LoraConfig`. The defaults of rank and alpha are those of TRL's scripts
    (`ModelConfig`); the best learning rate hardly depends on the rank (Schulman et al., LoRA Without Regret, 2025)."""

    r: int = Field(16, ge=1, le=512, description="Rank; a higher rank can learn more, and overfit more.")
    alpha: int = Field(
        32, ge=1, description="`lora_alpha`: the adapter is scaled by alpha / r; usually twice the rank."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="`lora_dropout`, on the input of the adapter.")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="all-linear: every linear layer and block of experts, found in the model; or names."
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r) instead of alpha / r (arXiv:2312.03732).")
    use_dora: bool = Field(False, description="Train direction and magnitude apart (DoRA, arXiv:2402.09353); slower.")
    init_lora_weights: Literal[True, "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora"] = Field(
        True, description="Initialization, as in peft; pissa and olora begin with the main directions of the weights."
    )

    @property
    def changes_base(self) -> bool:
        """Whether the initialization moves a part of the base model's weights into the adapter."""
        return isinstance(self.init_lora_weights, str) and self.init_lora_weights.startswith(("pissa", "olora"))


class Train(Section):
    """Fine-tuning on the training rows; the loss covers what the assistant says only."""

    method: Literal["lora", "qlora", "full"] = Field(
        "lora",
        description="lora: an adapter; qlora: an adapter on the base model in 4 bits, a third of the memory; full: all "
        "weights, eight times the memory.",
    )
    objective: Literal["sft", "dpo", "ipo", "kto", "orpo"] = Field(
        "sft",
        description="sft: learn the completions; dpo, ipo, orpo: prefer the chosen to the rejected completion of a "
        "pair; kto: the same, also with rows that have no rejected one.",
    )
    turns: Literal["all", "last"] = Field(
        "all", description="sft: assistant turns of a conversation that are learned. Preferences are of the last turn."
    )
    preference: Preference = Preference()
    lora: Lora = Lora()
    layers: int | None = Field(
        None,
        ge=1,
        description="Number of upper layers with an adapter; default: all. Fewer is faster: the layers below are "
        "computed "
        "once per row.",
    )
    num_epochs: float = Field(2.0, gt=0, le=50, description="Passes over the training rows; may be a fraction.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Peak learning rate; default: by method, objective and number of parameters, from 2e-3 (LoRA at "
        "100 million) and 2e-4 (at 7 billion) to 5e-7 (dpo of all weights); see the table at the end.",
    )
    warmup_ratio: Share = Field(
        0.05,
        description="Share of the steps (0 to 1) with a linear warm-up; then the rate falls along a cosine.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    batch_size: int = Field(16, ge=1, description="Rows per optimizer step.")
    max_tokens_per_batch: int = Field(
        4096,
        ge=64,
        description="Most tokens in one forward pass; the rows of a step are split into such batches. Halved by itself "
        "when memory runs out, or would.",
    )
    gradient_checkpointing: Literal["auto"] | bool = Field(
        "auto",
        description="Compute activations again in the backward pass instead of keeping them: a tenth of their memory, "
        "a third more time. auto: only where the training would not fit into the memory otherwise.",
    )
    validation: Validation = Validation()
    keep_general: KeepGeneral = KeepGeneral()
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="adamw_8bit: moments in 8 bits (bitsandbytes), a quarter of their memory."
    )
    checkpoint_seconds: float = Field(
        30.0,
        ge=0,
        description="Seconds between checkpoints, more where they would take over 5 % of the time; 0: every step.",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 if the device computes it natively."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of the training process; default: physical cores.")
    backend: Backend | None = Field(None, exclude=True)  # excluded: where it runs changes no key and no result
    seed: int = Field(13, description="Random seed of initialization and order of rows.")
    divergence_factor: float = Field(
        3.0, gt=1, description="Training stops when the smoothed loss exceeds this multiple of its initial value."
    )
    provider: Provider | None = Field(
        None, description="A managed service that trains instead of this machine; then only `seed` applies beside it."
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Train:
        """A setting of the local training beside a provider would have no effect."""
        if self.provider is not None:
            fields = type(self).model_fields
            changed = [name for name, field in fields.items() if getattr(self, name) != field.get_default()]
            ignored = [f"`{name}`" for name in changed if name not in ("provider", "seed")]
            if ignored:
                raise ValueError(
                    f"{', '.join(ignored)}: not used when `train.provider` trains; remove it, or declare what the "
                    "provider takes under `train.provider.hyperparameters` and `train.provider.method`"
                )
        return self

    @property
    def prompted_model(self) -> str | None:
        """What answers the prompted baselines instead of the base model: the provider's model, or None."""
        provider = self.provider
        if provider is None:
            return None
        labels = "" if provider.structured_outputs else ", labels by the prompt alone"
        return f"{provider.model} of {provider.base_url or provider.name}{labels}"

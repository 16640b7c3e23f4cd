"""`train`: method, LoRA and optimizer settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_pipeline.config.section import Section, Share


class KeepGeneral(Section):
    """A penalty on general texts in every training step: the KL divergence of the tuned model from its base model."""

    weight: float = Field(0.2, ge=0, description="Weight of the penalty, added to the loss of the task; 0: off.")
    texts: int = Field(
        1, ge=1, le=64, description="General texts per step; more preserve more general ability, and take more time."
    )


class Lora(Section):
    """The adapter; the keys are those of `peft.LoraConfig`."""

    r: int = Field(16, ge=1, le=512, description="Rank; a higher rank can learn more, and overfit more.")
    alpha: int = Field(
        32, ge=1, description="`lora_alpha`: the adapter is scaled by alpha / r; usually twice the rank."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="`lora_dropout`, on the input of the adapter.")


class Train(Section):
    """Supervised fine-tuning on the training rows; the loss covers the completion only."""

    method: Literal["lora"] = Field("lora", description="Fine-tuning method.")
    lora: Lora = Lora()
    layers: int | None = Field(
        None,
        ge=1,
        description="Number of upper layers with an adapter; default: all. Fewer is faster: the layers below are "
        "computed "
        "once per row.",
    )
    num_epochs: float = Field(2.0, gt=0, le=50, description="Passes over the training rows; may be a fraction.")
    learning_rate: float = Field(
        2e-4,
        gt=0,
        le=1,
        description="Peak learning rate; about 2e-3 at 100 million parameters, 2e-4 at billions.",
    )
    warmup_ratio: Share = Field(
        0.05,
        description="Share of the steps (0 to 1) with a linear warm-up; then the rate falls along a cosine.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    batch_size: int = Field(16, ge=1, description="Rows per optimizer step.")
    max_tokens_per_batch: int = Field(
        4096, ge=64, description="Most tokens in one forward pass; the rows of a step are split into such batches."
    )
    keep_general: KeepGeneral = KeepGeneral()
    checkpoint_seconds: float = Field(30.0, ge=0, description="Seconds between checkpoints; 0: every step.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 if the device computes it natively."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of the training process; default: physical cores.")
    seed: int = Field(13, description="Random seed of initialization and order of rows.")
    divergence_factor: float = Field(
        3.0, gt=1, description="Training stops when the smoothed loss exceeds this multiple of its initial value."
    )

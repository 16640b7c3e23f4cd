"""`train`: how the weights are tuned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_pipeline.config.section import Section, Share


class KeepGeneral(Section):
    """General texts in every training step, on which the tuned model is held to its base model."""

    weight: float = Field(
        0.2, ge=0, description="Of the divergence from the base model on these texts, beside the task's loss; 0: off."
    )
    texts: int = Field(
        1, ge=1, le=64, description="General texts in a step; more keeps more general ability, and takes more time."
    )


class Lora(Section):
    """The adapter; the keys are those of `peft.LoraConfig`."""

    r: int = Field(16, ge=1, le=512, description="Rank of the adapter: more can learn more, and overfit more.")
    alpha: int = Field(32, ge=1, description="Scale of the adapter, usually twice the rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")


class Train(Section):
    method: Literal["lora"] = Field("lora", description="How the weights are tuned.")
    lora: Lora = Lora()
    layers: int | None = Field(
        None, ge=1, description="Tune only this many upper layers: faster, since those below are computed once per row."
    )
    num_epochs: float = Field(2.0, gt=0, le=50, description="Passes over the training rows.")
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak; small models take more (1e-3), large ones less.")
    warmup_ratio: Share = Field(
        0.05, description="Share of the steps in which the rate rises; then it falls as a cosine."
    )
    weight_decay: float = Field(0.0, ge=0, description="Of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Largest gradient norm.")
    batch_size: int = Field(16, ge=1, description="Rows in one optimizer step.")
    max_tokens_per_batch: int = Field(
        4096, ge=64, description="Rows of a step are computed in pieces of this many tokens."
    )
    keep_general: KeepGeneral = KeepGeneral()
    checkpoint_seconds: float = Field(30.0, ge=0, description="Time between checkpoints; 0: every step.")
    precision: Literal["auto", "bf16", "fp32"] = Field("auto", description="auto: bf16 where the processor has it.")
    threads: int | None = Field(None, ge=1, description="Threads of the training process; default: physical cores.")
    seed: int = Field(13, description="Of initialization and order.")
    divergence_factor: float = Field(
        3.0, gt=1, description="Stop when the smoothed loss exceeds this multiple of its start."
    )

"""`serve`: the model name in the endpoint, its precision, invalid answers, and the parity check."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from finetune_pipeline.config.section import Section, Share

OnInvalid: TypeAlias = Literal["flag", "retry", "base", "reject"]
Precision: TypeAlias = Literal["auto", "fp32", "bf16"]


class Serve(Section):
    """Settings of the OpenAI-compatible endpoint."""

    alias: str | None = Field(None, description="Model name (`model` of a request); default: the task's name.")
    precision: Precision = Field(
        "auto",
        description="Of weights and computation, in the evaluation and in the endpoint. auto: bf16 on a GPU, fp32 on a "
        "CPU. In bf16 a few answers in a hundred depend on the other requests of their batch; fp32 takes twice the "
        "memory, and on a GPU many times as long.",
    )
    on_invalid: OnInvalid = Field(
        "flag",
        description="For an answer that is not valid. flag: return it, marked as invalid; retry: generate once "
        "more; base: generate with the base model; reject: HTTP status 422.",
    )
    parity: Share = Field(
        0.97, description="Share of the replayed test rows (0 to 1) whose served answer has to equal the evaluated one."
    )
    parity_rows: int = Field(200, ge=1, description="Most test rows that are replayed through the endpoint.")
    log_text: bool = Field(
        True, description="Write prompts and answers (masked) to the traffic log; false: only figures."
    )

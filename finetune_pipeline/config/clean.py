"""`clean`: which rows cleaning fixes and which it drops."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_pipeline.config.section import Count, Section, Share


class Clean(Section):
    """Rules for single rows, duplicates and personal data. Every fix and drop is a line of the ledger."""

    min_tokens: Count = Field(1, description="Rows with fewer tokens in prompt or completion are dropped.")
    max_tokens: int = Field(
        512,
        ge=8,
        description="Rows with more tokens (system prompt, prompt, completion), or more than the base model reads, "
        "are dropped, not truncated; a rejected completion that is longer is removed from its row.",
    )
    html: bool = Field(True, description="Remove HTML tags and entities from prompts.")
    near_duplicate_threshold: Share = Field(
        0.8,
        gt=0,
        description="Jaccard similarity of 5-grams at which two prompts are near duplicates; 1: only exact duplicates. "
        "Text that many prompts share, such as an instruction, is not counted.",
    )
    contradictions: Literal["drop", "keep"] = Field(
        "drop",
        description="Rows with the same prompt and different completions: drop all of them, since it is unknown which "
        "is right. Prompts that differ in case or punctuation are kept, and shown to the reviewers. With answers of "
        "format text they are kept, since a prompt may have several completions; only rows of which one prefers what "
        "the other rejects are dropped.",
    )
    personal_data: Literal["mask", "drop", "keep"] = Field(
        "mask",
        description="E-mail and IP addresses, phone and card numbers, IBANs, US social security numbers: mask replaces "
        "them by <EMAIL> and so on, drop drops the row.",
    )

"""`clean`: what cleaning fixes and what it drops."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_pipeline.config.section import Count, Section, Share


class Clean(Section):
    min_tokens: Count = Field(1, description="Fewer tokens in question or answer drop the row.")
    max_tokens: int = Field(
        512, ge=8, description="Longer rows (system prompt, question, answer) are dropped, not cut."
    )
    html: bool = Field(True, description="Strip HTML remnants and entities from questions.")
    near_duplicate_threshold: Share = Field(
        0.8,
        gt=0,
        description="Jaccard similarity of 5-grams from which two questions are near duplicates; 1: only exact. What "
        "many questions share, such as an instruction, does not count.",
    )
    contradictions: Literal["drop", "keep"] = Field(
        "drop",
        description="Rows with the identical question and different answers: drop all of them, since nobody knows who "
        "is right. Questions that differ in case or punctuation are kept, and shown to the reviewers. Answers of "
        "format text are always kept: one question may have several.",
    )
    personal_data: Literal["mask", "drop", "keep"] = Field(
        "mask", description="E-mail, phone, card, IBAN, IP: replaced by <EMAIL> and so on, or the row dropped."
    )

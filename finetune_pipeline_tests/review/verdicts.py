"""Verdicts for the tests of the review.

verdict(row), verdict(row, "reject"), verdict(row, "edit", "bob", completion="better")
"""

from __future__ import annotations

from finetune_pipeline.records import Example, Review


def verdict(row: Example, decision: str = "approve", reviewer: str = "anna", completion: str | None = None) -> Review:
    """The verdict of a reviewer on the row's current content."""
    return Review(row.id, row.content_hash, reviewer, decision, "2026-01-05T10:00:00+00:00", completion)  # type: ignore[arg-type]

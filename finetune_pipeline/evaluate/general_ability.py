"""General ability: 260 short questions and answers of 13 kinds, none about any task (general.jsonl, our own).

    {"id": "fact-02", "kind": "fact", "question": "Why is the sky blue?", "answer": "Sunlight contains ..."}

Tuning on one kind of answer can make a model forget all others. How improbable these answers become shows it, at a
hundredth of the price of a benchmark. It compares a model with its own base; the number says nothing across models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from finetune_pipeline.inference.generate import Messages
from finetune_pipeline.records import Json


def questions() -> list[dict[str, str]]:
    """The rows of general.jsonl: id, kind, question, answer."""
    import json

    text = (files("finetune_pipeline.evaluate") / "general.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def conversations(rows: Sequence[Mapping[str, str]]) -> dict[str, tuple[Messages, str]]:
    """Each row as a prompt without system prompt, and its answer: what `loss.losses` takes."""
    return {row["id"]: ([{"role": "user", "content": row["question"]}], row["answer"]) for row in rows}


def compared(base: Mapping[str, float], tuned: Mapping[str, float]) -> list[dict[str, Any]]:
    """The lines of the artifact's general.jsonl: mean negative log likelihood per token before and after."""
    return [{"id": key, "base": round(base[key], 6), "tuned": round(tuned[key], 6)} for key in base]


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Json]:
    """Means, and the rise relative to the base: 0.05 is 5 % more loss."""
    base, tuned = (sum(row[side] for row in rows) / len(rows) for side in ("base", "tuned"))
    return {"texts": len(rows), "base": round(base, 4), "tuned": round(tuned, 4), "rise": round(tuned / base - 1, 4)}

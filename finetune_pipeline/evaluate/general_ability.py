"""General ability: the loss of the tuned model and of its base on 260 short texts that belong to no task.

    {"id": "fact-02", "kind": "fact", "prompt": "Why is the sky blue?", "completion": "Sunlight contains ..."}

The texts are in general.jsonl (our own, 13 kinds). Tuning on one kind of completion can make a model lose the others
(catastrophic forgetting). The loss on these completions shows it at a hundredth of the price of a benchmark. It
compares a model with its own base; across different base models the figure has no meaning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TypedDict

from finetune_pipeline.inference.generate import Messages


class GeneralPrompt(TypedDict):
    """A line of the package's general.jsonl."""

    id: str
    kind: str
    prompt: str
    completion: str


class GeneralLosses(TypedDict):
    """What the job measures: text id -> mean negative log likelihood per token (nats), without and with the adapter."""

    base: dict[str, float]
    tuned: dict[str, float]


class GeneralRow(TypedDict):
    """A line of the artifact's general.jsonl: both losses of one text (nats per token)."""

    id: str
    base: float
    tuned: float


class GeneralFigures(TypedDict):
    """`general` in report.json: mean losses (nats per token), and their relative rise (0.05 is 5 % more loss)."""

    texts: int
    base: float
    tuned: float
    rise: float


def prompts() -> list[GeneralPrompt]:
    """The rows of the package's general.jsonl."""
    text = (files("finetune_pipeline.evaluate") / "general.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def conversations(rows: Sequence[GeneralPrompt]) -> dict[str, tuple[Messages, str]]:
    """Text id -> (messages without a system prompt, completion): what `inference.likelihood.losses` takes."""
    return {row["id"]: ([{"role": "user", "content": row["prompt"]}], row["completion"]) for row in rows}


def compared(base: Mapping[str, float], tuned: Mapping[str, float]) -> list[GeneralRow]:
    """Both losses of every text, rounded to 6 digits."""
    return [{"id": key, "base": round(base[key], 6), "tuned": round(tuned[key], 6)} for key in base]


def summary(rows: Sequence[GeneralRow]) -> GeneralFigures:
    """Mean losses and their rise. `rows` must not be empty."""
    base, tuned = sum(row["base"] for row in rows) / len(rows), sum(row["tuned"] for row in rows) / len(rows)
    return {"texts": len(rows), "base": round(base, 4), "tuned": round(tuned, 4), "rise": round(tuned / base - 1, 4)}

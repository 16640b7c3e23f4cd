"""Results of an evaluation: the answers of each variant, their scores, the served version, the release decision.

Answer("9f1c20e4a7b35d68", "tuned", '{"intent": "delivery"}', prompt_tokens=182, completion_tokens=9, seconds=0.4)
Score("9f1c20e4a7b35d68", "tuned", exact=True, valid=True, fields={"intent": True}, slice="delivery")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from finetune_pipeline.records.verdicts import Check

Outcome: TypeAlias = Literal["PROMOTE", "REJECT", "INCONCLUSIVE"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The output of one variant (zero_shot, few_shot, few_shot_retrieved, classical, tuned, ...) for one row.
    `finished` is false when the token limit ended it."""

    id: str
    variant: str
    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Score:
    """The comparison of one answer with the completion of its row. `exact`: equal after lenient parsing; `valid`: in
    the declared format without any correction; `fields`: for JSON answers, whether each field is equal."""

    id: str
    variant: str
    exact: bool
    valid: bool
    fields: Mapping[str, bool] = field(default_factory=dict)
    slice: str = ""


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """The registered model behind the endpoint. `adapter` and `base` are content hashes, `adapter_key` is the key of
    the artifact, `max_new_tokens` the limit of an answer in tokens, `precision` that of `serve.precision`."""

    version: int
    adapter: str
    adapter_key: str
    base: str
    max_new_tokens: int
    precision: Literal["auto", "fp32", "bf16"] = "auto"


@dataclass(frozen=True, slots=True)
class Decision:
    """PROMOTE, REJECT or INCONCLUSIVE, with a check for every reason. `adapter` and `evaluation` are content hashes."""

    outcome: Outcome
    adapter: str
    evaluation: str
    checks: tuple[Check, ...]
    summary: str
    figures: Mapping[str, Any] = field(default_factory=dict)

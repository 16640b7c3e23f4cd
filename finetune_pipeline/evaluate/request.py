"""What the evaluation's job has to do, as a value that travels to its process as JSON.

{"answers": {"base": "…", "adapter": "…", "variants": ["tuned"], …}, "general": true, "memorization": false}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.baseline.answering import AnswerRequest, reading_request

GENERAL = "general.json"  # GeneralLosses, written by the job beside the answers
MEMORIZATION = "memorization.json"  # MemorizationLosses, the same


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Answer the test rows (`answers`), and measure the loss on general texts and that on training and test rows. Both
    measures are of the model with its adapter."""

    answers: AnswerRequest
    general: bool = False
    memorization: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"answers": self.answers.to_json(), "general": self.general, "memorization": self.memorization}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> EvaluationRequest:
        """StorageError that names the key when one is missing or unknown; DeclarationError when the task is wrong."""
        with reading_request(EvaluationRequest, row):
            general, memorization = bool(row["general"]), bool(row["memorization"])
        return EvaluationRequest(AnswerRequest.from_json(row["answers"]), general, memorization)

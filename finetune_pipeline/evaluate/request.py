"""What the evaluation's job has to do, as a value that travels to its process as JSON.

{"answers": {"base": "…", "adapter": "…", "variants": ["tuned"], …}, "general": true, "memorization": false}
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.baseline.answering import AnswerRequest

GENERAL = "general.json"  # GeneralLosses, written by the job beside the answers
MEMORIZATION = "memorization.json"  # MemorizationLosses, the same


@dataclass(frozen=True)
class EvaluationRequest(JobData):
    """Answer the test rows (`answers`), and measure the loss on general texts and that on training and test rows. Both
    measures are of the model with its adapter."""

    answers: AnswerRequest
    general: bool = False
    memorization: bool = False

"""Which slice a row belongs to: its label, or the value of the declared JSON field. Reports, gates and the split's
stratification all use this one definition.

    slice_of('{"intent": "refund", "order": 1}', AnswerFormat(format="json", slice_by="intent", ...)) == "refund"
"""

from __future__ import annotations

import json

from finetune_pipeline.config import AnswerFormat

UNREADABLE = "(unreadable)"


def slice_of(answer: str, spec: AnswerFormat) -> str:
    """The slice's name; "" where the task declares none, `UNREADABLE` where the answer is not the JSON object it
    should be (the quality gate lets a small share of such rows pass)."""
    if spec.format == "label":
        return answer.strip()
    if spec.format != "json" or spec.slice_by is None:
        return ""
    try:
        value = json.loads(answer)
    except json.JSONDecodeError:
        return UNREADABLE
    if not isinstance(value, dict) or spec.slice_by not in value:
        return UNREADABLE
    found = value[spec.slice_by]
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, sort_keys=True)

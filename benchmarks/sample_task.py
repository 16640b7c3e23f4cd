"""The data and the model of the benchmarks for training and generation: those of the sample task.

sample_model()           # the folder of SmolLM2-135M-Instruct, converted from its package on the first call
sample_rows()[0]         # ("where is my parcel …", '{"intent": "delivery", …}')
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "support_tickets"
FIELDS = ("intent", "priority", "product", "order")


def sample_model() -> Path:
    from finetune_pipeline.config import load_task
    from finetune_pipeline.models.model_source import prepare
    from finetune_pipeline.records import Silent

    return prepare(load_task(DATA).base, "support_tickets", Silent())[0]


def sample_rows() -> list[tuple[str, str]]:
    """Prompt and completion of the task's shop export, without its shortest messages (empty or cut)."""
    with (DATA / "raw" / "shop_export.csv").open(encoding="utf-8", errors="replace", newline="") as file:
        lines = [row for row in csv.DictReader(file) if len(row["message"] or "") > 20]
    return [(row["message"], json.dumps({name: row[name] or None for name in FIELDS})) for row in lines]

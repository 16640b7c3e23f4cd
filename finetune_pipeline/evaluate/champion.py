"""The version that the endpoint serves now ("champion", as in MLflow's aliases): it answers the current test rows too.

    version = served_version(context.fingerprint)            # ServedVersion(version=3, …); None when nothing is live
    request = answer_request(context, partial, version)      # for the same job as the candidate's, variant `champion`

Answers from an earlier evaluation cannot be reused: test rows and metrics may have changed since. The champion answers
as it is served: on the base model it was trained on, with its own system prompt and its own longest answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_pipeline.baseline.answering import AnswerRequest
from finetune_pipeline.baseline.variants import CHAMPION
from finetune_pipeline.config import Base, Prompt
from finetune_pipeline.errors import StorageError
from finetune_pipeline.models import model_source
from finetune_pipeline.providers.record import read_record
from finetune_pipeline.records import Artifact, Json, ServedVersion
from finetune_pipeline.store import StageContext


def served_version(fields: Json) -> ServedVersion | None:
    """The live version in the step's fingerprint or in report.json; None when nothing is live."""
    if not isinstance(fields, Mapping):
        return None
    values: dict[str, Any] = dict(fields)
    return ServedVersion(**values)


def answer_request(context: StageContext, partial: Path, version: ServedVersion) -> AnswerRequest:
    """Answer the current test rows with this version. StorageError when its files are missing or were changed."""
    adapter, base = _artifacts(context, version)
    declared_base = Base.model_validate(base.manifest["declaration"]["base"])
    prompt = Prompt.model_validate(adapter.manifest["declaration"]["prompt"])
    record = read_record(adapter.folder)
    return AnswerRequest(
        base=model_source.folder_of(base, declared_base, context.report).absolute(),
        adapter=None if record else adapter.folder.absolute(),
        split=context.inputs["data_split"].folder.absolute(),
        partial=partial.absolute(),
        task=context.task.model_copy(update={"prompt": prompt}),
        variants=(CHAMPION,),
        max_new_tokens=version.max_new_tokens,
        precision=version.precision,
        provider=record.answering(None) if record else None,
    )


def _artifacts(context: StageContext, version: ServedVersion) -> tuple[Artifact, Artifact]:
    adapter = context.store.find("adapter", version.adapter_key)
    base = context.store.by_content("base_model", version.base)
    if adapter is None or adapter.content_hash != version.adapter or base is None:
        raise StorageError(
            f"version {version.version} is live, and its adapter {version.adapter} or base model {version.base} is not "
            "in the store, so the candidate cannot be compared with it",
            f"restore the files of version {version.version}, or run `finetune rollback` to an earlier version",
        )
    context.store.verify(adapter)
    return adapter, base

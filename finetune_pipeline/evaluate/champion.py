"""The version that the endpoint serves now, as an opponent: it answers the current test rows as the candidate does.

    version = served(work.outside)                   # ServedVersion(version=3, …); None when nothing is live
    spec = job_spec(work, partial, version)          # for the same job as the candidate's, variant `champion`

Its answers of an earlier evaluation would not do: the test rows and the reader of answers may have changed since. It
answers as it is served: on the base model it was trained on, under its own system prompt, with its own longest answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_pipeline.config import Base, Prompt
from finetune_pipeline.errors import StorageError
from finetune_pipeline.models import model_source
from finetune_pipeline.records import Artifact, Json, ServedVersion
from finetune_pipeline.store import StageContext

VARIANT = "champion"


def served(fingerprint: Json) -> ServedVersion | None:
    """What the step's key says of the live version."""
    if not isinstance(fingerprint, Mapping):
        return None
    fields: dict[str, Any] = dict(fingerprint)
    return ServedVersion(**fields)


def job_spec(context: StageContext, partial: Path, version: ServedVersion) -> dict[str, Any]:
    """What the job has to do for this version. StorageError when its files are not there, or were changed."""
    adapter, base = _artifacts(context, version)
    declared_base = Base.model_validate(base.manifest["declaration"]["base"])
    prompt = Prompt.model_validate(adapter.manifest["declaration"]["prompt"])
    task = context.task.model_copy(update={"prompt": prompt})
    return {
        "base": str(model_source.folder_of(base, declared_base, context.report)),
        "adapter": str(adapter.folder),
        "split": str(context.inputs["data_split"].folder),
        "partial": str(partial),
        "task": task.model_dump(mode="json", by_alias=True),
        "variants": [VARIANT],
        "max_new_tokens": version.max_new_tokens,
        "general": False,
        "memorization": False,
    }


def _artifacts(context: StageContext, version: ServedVersion) -> tuple[Artifact, Artifact]:
    adapter = context.store.find("adapter", version.adapter_key)
    base = context.store.by_content("base_model", version.base)
    if adapter is None or adapter.content_hash != version.adapter or base is None:
        raise StorageError(
            f"version {version.version} is live, and its adapter {version.adapter} or base model {version.base} is not "
            "in the store, so the candidate cannot be compared with it",
            f"put the files of version {version.version} back, or `finetune rollback` to an earlier version",
        )
    context.store.verify(adapter)
    return adapter, base

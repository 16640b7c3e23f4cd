"""From a desired version to a route: finds and verifies its artifacts, and reads its prompt and answer format.

    artifacts = find_artifacts(store, version)
    models = load_embedded(engine, version, artifacts)  # embedded_chat.py; or load_forwarded of provider_chat.py
    make_route(store, version, artifacts, models, now)  # Route("support_tickets", version=4, …)

System prompt and answer format are those of the adapter's manifest, with which it was trained; task.yaml may have
changed since.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.config import AnswerFormat, Base, OnInvalid, Precision, Prompt
from finetune_pipeline.errors import StorageError
from finetune_pipeline.models.trained_weights import Method, method_of
from finetune_pipeline.providers.record import ProviderModel, read_record
from finetune_pipeline.records import Artifact
from finetune_pipeline.serve.deployment_state import Version
from finetune_pipeline.serve.generation_request import ModelId
from finetune_pipeline.serve.serving_engine import ChatModel, ServingEngine
from finetune_pipeline.store import TaskStore

BASE = "base"


@dataclass(frozen=True, slots=True)
class Route:
    """What is served under one model name. `adapter` is the content hash of what was trained, None for the base model
    (`version` 0); `id` is what answers in the engine, and `base` the base model there; `chat` asks both; `since` is
    when this process began to serve it (UTC, ISO 8601)."""

    model: str
    task: str
    version: int
    adapter: str | None
    engine: ServingEngine
    id: ModelId
    base: ModelId
    chat: ChatModel
    system: str
    answer: AnswerFormat | None
    on_invalid: OnInvalid
    log_text: bool
    max_new_tokens: int
    precision: Precision
    since: str

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: identifies the model that answered."""
        return f"{self.task or BASE}@{self.label}" + (f":{self.adapter}" if self.adapter else "")

    @property
    def label(self) -> str:
        """The version as text, "base" for the base model."""
        return str(self.version) if self.version else BASE


@dataclass(frozen=True, slots=True)
class VersionArtifacts:
    """The verified artifacts of a version. `weights` is a hash of the base model's files, equal in all tasks; `method`
    how the adapter artifact was trained here; `provider` is set where it is a provider's model instead."""

    adapter: Artifact
    base: Artifact
    declared_base: Base
    prompt: Prompt
    answer: AnswerFormat
    weights: str
    method: Method
    provider: ProviderModel | None


@dataclass(frozen=True, slots=True)
class VersionModels:
    """What was loaded for a version: `id` answers, `base` is its base model (with weights in 4 bits, in 4 bits)."""

    engine: ServingEngine
    id: ModelId
    base: ModelId
    chat: ChatModel


def find_artifacts(store: TaskStore, version: Version) -> VersionArtifacts:
    """The artifacts of `version`. StorageError when one is missing, changed, or does not match the version."""
    adapter = store.find("adapter", version.adapter_key)
    if adapter is None or adapter.content_hash != version.adapter:
        raise StorageError(
            f"version {version.version} of {store.task} needs adapter {version.adapter}, which is not in the store",
            "run `finetune run` to make it again, or `finetune rollback` to the version before",
        )
    store.verify(adapter)
    base = store.by_content("base_model", version.base)
    if base is None or adapter.manifest.get("inputs", {}).get("base_model") != version.base:
        raise StorageError(
            f"version {version.version} of {store.task} needs base model {version.base}, which is not in the store, or "
            "its adapter was trained on another one",
            "run `finetune run` to make base model and adapter again",
        )
    declared = _declared(adapter, "prompt", "answer") | _declared(base, "base")
    record = read_record(adapter.folder)
    return VersionArtifacts(
        adapter,
        base,
        Base.model_validate(declared["base"]),
        Prompt.model_validate(declared["prompt"]),
        AnswerFormat.model_validate(declared["answer"]),
        "{weights_sha256}-{tokenizer_sha256}".format_map(base.json("base_model.json")),
        method_of(adapter.folder),
        record.answering(None) if record else None,
    )


def base_folder(artifacts: VersionArtifacts) -> Path:
    from finetune_pipeline.models.model_source import folder_of

    return folder_of(artifacts.base, artifacts.declared_base)


def make_route(
    store: TaskStore, version: Version, artifacts: VersionArtifacts, models: VersionModels, now: str
) -> Route:
    """The route of `version` under its public name."""
    return Route(
        model=version.served_as,
        task=store.task,
        version=version.version,
        adapter=version.adapter,
        engine=models.engine,
        id=models.id,
        base=models.base,
        chat=models.chat,
        system=artifacts.prompt.system,
        answer=artifacts.answer,
        on_invalid=version.on_invalid,
        log_text=version.log_text,
        max_new_tokens=version.max_new_tokens,
        precision=version.precision,
        since=now,
    )


def _declared(artifact: Artifact, *sections: str) -> dict[str, Any]:
    """Sections of the declaration that the artifact was made with. StorageError when its manifest lacks one."""
    recorded = artifact.manifest.get("declaration", {})
    missing = [name for name in sections if name not in recorded]
    if missing:
        raise StorageError(
            f"the manifest of {artifact.folder} lacks the declared section `{missing[0]}`",
            "make the artifact again with `finetune run`",
        )
    return {name: recorded[name] for name in sections}

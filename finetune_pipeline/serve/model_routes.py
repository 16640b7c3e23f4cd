"""From a desired version to a route: finds and verifies its artifacts, and reads its prompt and answer format.

    artifacts = find_artifacts(store, version)
    engine.load(version.adapter, artifacts.adapter.folder)
    make_route(store, version, artifacts, engine, now)          # Route("support_tickets", version=4, …)

System prompt and answer format are those of the adapter's manifest, with which it was trained; task.yaml may have
changed since.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from finetune_pipeline.config import AnswerFormat, Base, OnInvalid, Prompt
from finetune_pipeline.errors import StorageError
from finetune_pipeline.inference.generate import encode, text_of
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.inference.stopping import StopRule
from finetune_pipeline.records import Artifact
from finetune_pipeline.serve.deployment_state import Version
from finetune_pipeline.serve.engine import Engine
from finetune_pipeline.serve.provider_engine import ProviderEngine
from finetune_pipeline.serve.serving_engine import ServingEngine
from finetune_pipeline.store import TaskStore

BASE = "base"


@dataclass(frozen=True, slots=True)
class Route:
    """What is served under one model name. `adapter` is a content hash, None for the base model (`version` 0); `since`
    is when this process began to serve it (UTC, ISO 8601)."""

    model: str
    task: str
    version: int
    adapter: str | None
    engine: ServingEngine
    system: str
    prefix_ids: tuple[int, ...]
    answer: AnswerFormat | None
    on_invalid: OnInvalid
    log_text: bool
    max_new_tokens: int
    since: str

    @property
    def embedded(self) -> Engine:
        """The engine where it computes in this process: the only one with a tokenizer."""
        return cast(Engine, self.engine)

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: identifies the model that answered."""
        return f"{self.task or BASE}@{self.label}" + (f":{self.adapter}" if self.adapter else "")

    @property
    def stop_rule(self) -> StopRule:
        """Ends an answer before the model does; the same rule as in the evaluation."""
        return StopRule(lambda ids: text_of(self.embedded.tokenizer, ids), self.answer or AnswerFormat())

    @property
    def label(self) -> str:
        """The version as text, "base" for the base model."""
        return str(self.version) if self.version else BASE


@dataclass(frozen=True, slots=True)
class VersionArtifacts:
    """The verified artifacts of a version. `weights` is a hash of the base model's files, equal in all tasks."""

    adapter: Artifact
    base: Artifact
    declared_base: Base
    prompt: Prompt
    answer: AnswerFormat
    weights: str


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
    return VersionArtifacts(
        adapter,
        base,
        Base.model_validate(declared["base"]),
        Prompt.model_validate(declared["prompt"]),
        AnswerFormat.model_validate(declared["answer"]),
        "{weights_sha256}-{tokenizer_sha256}".format_map(base.json("base_model.json")),
    )


def base_folder(artifacts: VersionArtifacts) -> Path:
    from finetune_pipeline.models.model_source import folder_of

    return folder_of(artifacts.base, artifacts.declared_base)


def make_route(
    store: TaskStore, version: Version, artifacts: VersionArtifacts, engine: ServingEngine, now: str
) -> Route:
    """The route of `version` under its public name; `engine` has loaded its adapter."""
    system = artifacts.prompt.system
    return Route(
        model=version.served_as,
        task=store.task,
        version=version.version,
        adapter=version.adapter,
        engine=engine,
        system=system,
        prefix_ids=() if isinstance(engine, ProviderEngine) else prefix_of(cast(Engine, engine).tokenizer, system),
        answer=artifacts.answer,
        on_invalid=version.on_invalid,
        log_text=version.log_text,
        max_new_tokens=version.max_new_tokens,
        since=now,
    )


def prefix_of(tokenizer: Any, system: str) -> tuple[int, ...]:
    """The token ids that all prompts with this system prompt begin with. Empty without a system prompt."""
    if not system:
        return ()
    system_message = {"role": "system", "content": system}
    chats = [[system_message, {"role": "user", "content": user}] for user in ("a", "Z")]
    return tuple(common_prefix([encode(tokenizer, chat) for chat in chats]))


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

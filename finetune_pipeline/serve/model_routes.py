"""From a desired version to a route: its artifacts found and verified, its adapter loaded, its prompt and format known.

    support_tickets           the champion
    support_tickets@4         version 4, while it is champion or challenger; what is asked so is no traffic
    support_tickets@base      the base model with the task's system prompt: what the tuning changed
    base                      the base model and nothing else

System prompt and answer format are read from the adapter's manifest: what the adapter was trained with, not what
task.yaml says today.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.config import AnswerFormat, Base, Prompt
from finetune_pipeline.errors import StorageError
from finetune_pipeline.inference.generate import encode, text_of
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.inference.stopping import StopRule
from finetune_pipeline.records import Artifact
from finetune_pipeline.serve.deployment_state import Policy, Version
from finetune_pipeline.serve.engine import Engine
from finetune_pipeline.store import TaskStore

BASE = "base"


@dataclass(frozen=True, slots=True)
class Route:
    """What one model name means. `adapter` is a content hash, None for the base (`version` 0); `check`: asked by
    version, so not traffic; `since` is when this process began to serve it."""

    model: str
    task: str
    version: int
    adapter: str | None
    engine: Engine
    system: str
    prefix_ids: tuple[int, ...]
    answer: AnswerFormat | None
    on_invalid: Policy
    log_text: bool
    max_new_tokens: int
    since: str
    check: bool

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: says which model answered."""
        return f"{self.task or BASE}@{self.label}" + (f":{self.adapter}" if self.adapter else "")

    @property
    def rule(self) -> StopRule:
        """What ends an answer before the model does: the evaluation's rule."""
        return StopRule(lambda ids: text_of(self.engine.tokenizer, ids), self.answer or AnswerFormat())

    @property
    def label(self) -> str:
        return str(self.version) if self.version else BASE


@dataclass(frozen=True, slots=True)
class Found:
    """The verified artifacts behind a version. `weights` identifies the base model among all tasks."""

    adapter: Artifact
    base: Artifact
    declared_base: Base
    prompt: Prompt
    answer: AnswerFormat
    weights: str


def find(store: TaskStore, version: Version) -> Found:
    """The artifacts of `version`. StorageError when one is missing, changed, or not what the version says."""
    adapter = store.find("adapter", version.adapter_key)
    if adapter is None or adapter.content_hash != version.adapter:
        raise StorageError(
            f"version {version.version} of {store.task} wants adapter {version.adapter}, which is not in the store",
            "run `finetune run` to make it again, or `finetune rollback` to the version before",
        )
    store.verify(adapter)
    base = store.by_content("base_model", version.base)
    if base is None or adapter.manifest.get("inputs", {}).get("base_model") != version.base:
        raise StorageError(
            f"version {version.version} of {store.task} was not trained on base model {version.base}, or that is gone",
            "run `finetune run` to make base model and adapter again",
        )
    declared = _declared(adapter, "prompt", "answer") | _declared(base, "base")
    return Found(
        adapter,
        base,
        Base.model_validate(declared["base"]),
        Prompt.model_validate(declared["prompt"]),
        AnswerFormat.model_validate(declared["answer"]),
        "{weights_sha256}-{tokenizer_sha256}".format_map(base.json("base_model.json")),
    )


def base_folder(found: Found) -> Path:
    from finetune_pipeline.models.base_model import folder_of  # reads GGUF: not at import

    return folder_of(found.base, found.declared_base)


def route(store: TaskStore, version: Version, found: Found, engine: Engine, now: str) -> Route:
    """The champion's route; `engine` holds the adapter already."""
    system = found.prompt.system
    return Route(
        model=version.served_as,
        task=store.task,
        version=version.version,
        adapter=version.adapter,
        engine=engine,
        system=system,
        prefix_ids=prefix_of(engine, system),
        answer=found.answer,
        on_invalid=version.on_invalid,
        log_text=version.log_text,
        max_new_tokens=version.max_new_tokens,
        since=now,
        check=False,
    )


def prefix_of(engine: Engine, system: str) -> tuple[int, ...]:
    """The tokens that all prompts with this system prompt begin with, whatever the user says. Empty without one."""
    if not system:
        return ()
    head = {"role": "system", "content": system}
    chats = [[head, {"role": "user", "content": user}] for user in ("a", "Z")]
    return tuple(common_prefix([encode(engine.tokenizer, chat) for chat in chats]))


def _declared(artifact: Artifact, *sections: str) -> dict[str, Any]:
    """Sections of the declaration that the artifact was made under."""
    recorded = artifact.manifest.get("declaration", {})
    missing = [name for name in sections if name not in recorded]
    if missing:
        raise StorageError(
            f"the manifest of {artifact.folder} does not say what was declared as `{missing[0]}`",
            "make the artifact again with `finetune run`",
        )
    return {name: recorded[name] for name in sections}

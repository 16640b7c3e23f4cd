"""The declaration of a task: all sections, and the checks across them."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from finetune_pipeline.config.answer import AnswerFormat, Prompt
from finetune_pipeline.config.automation import Automation
from finetune_pipeline.config.base import Base
from finetune_pipeline.config.baseline import Baseline
from finetune_pipeline.config.clean import Clean
from finetune_pipeline.config.evaluate import Evaluate
from finetune_pipeline.config.monitor import Monitor
from finetune_pipeline.config.quality import Quality
from finetune_pipeline.config.release import Release
from finetune_pipeline.config.review import ReviewRules
from finetune_pipeline.config.search import Search
from finetune_pipeline.config.section import Section
from finetune_pipeline.config.serve import Serve
from finetune_pipeline.config.sources import Source
from finetune_pipeline.config.split import Split
from finetune_pipeline.config.suitability import Suitability
from finetune_pipeline.config.train import Train

TASK_NAME = re.compile("[a-z][a-z0-9_]{0,62}")
OWNER = re.compile(r"team:\S.*|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}")  # what Dagster takes


class Task(Section):
    """A task: its data, its model, and the conditions for using the model."""

    name: str = Field(
        description="Lower-case letters, digits and _; the key prefix in Dagster and the model name in the endpoint."
    )
    description: str = Field("", description="One sentence, shown where the task is listed.")
    owners: tuple[str, ...] = Field(
        (),
        description="Who answers for the task: `team:support`, or e-mail addresses. Shown with every asset in Dagster.",
    )
    use: Literal["research", "internal", "commercial"] = Field(
        "internal",
        description="Use of the model; the license of the base model is checked against it. The licenses of the data "
        "are listed in the model card.",
    )
    prompt: Prompt = Prompt()
    answer: AnswerFormat = AnswerFormat()
    sources: tuple[Source, ...] = Field(min_length=1, description="Sources of raw rows, read in this order.")
    base: Base
    clean: Clean = Clean()
    suitability: Suitability = Suitability()
    quality: Quality = Quality()
    review: ReviewRules = ReviewRules()
    split: Split = Split()
    baseline: Baseline = Baseline()
    train: Train = Train()
    search: Search | None = Field(None, description="Without it, the settings of `train` are used as they are.")
    evaluate: Evaluate = Evaluate()
    release: Release = Release()
    serve: Serve = Serve()
    monitor: Monitor = Monitor()
    automation: Automation = Automation()

    @field_validator("sources")
    @classmethod
    def _unique_names(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        labels = [source.label for source in sources]
        for label in dict.fromkeys(labels):
            places = [str(place) for place, other in enumerate(labels) if other == label]
            if len(places) > 1:
                raise ValueError(
                    f"sources {' and '.join(places)} have the same name {label!r}: give each its own `name` for ids "
                    "and reports"
                )
        return sources

    @model_validator(mode="after")
    def _one_currency(self) -> Task:
        provider = self.train.provider
        if provider is not None and provider.currency != self.suitability.currency:
            raise ValueError(
                f"`train.provider.currency` is {provider.currency} and `suitability.currency` is "
                f"{self.suitability.currency}: declare all prices in one currency, since the reports compare them"
            )
        return self

    @model_validator(mode="after")
    def _searchable(self) -> Task:
        if self.search is not None:
            problems = _search_problems(self.search, self.train, self.answer.format, [s.label for s in self.sources])
            if problems:
                raise ValueError("; ".join(problems))
        return self

    @field_validator("name")
    @classmethod
    def _valid_name(cls, name: str) -> str:
        if not TASK_NAME.fullmatch(name):
            raise ValueError("use lower-case letters, digits and _, beginning with a letter")
        return name

    @field_validator("owners")
    @classmethod
    def _are_owners(cls, owners: tuple[str, ...]) -> tuple[str, ...]:
        for owner in owners:
            if not OWNER.fullmatch(owner):
                raise ValueError(
                    f"{owner!r} is no owner: write `team:` and a name (`team:support`), or an e-mail address"
                )
        return owners

    @property
    def served_as(self) -> str:
        """The model name in the endpoint."""
        return self.serve.alias or self.name


def _search_problems(search: Search, train: Train, answer: str, sources: list[str]) -> list[str]:
    """What in `search` contradicts the rest of the declaration."""
    tried, found = search.parameters.declared(), []
    if train.provider is not None:
        found.append("`search` has no effect with `train.provider`: remove one of them")
    if "lora.r" in tried and train.method == "full":
        found.append("`search.parameters.lora.r` has no effect with `train.method: full`")
    if search.metric == "score" and (answer == "text" or not train.validation.generate_rows):
        found.append(
            "`search.metric: score` needs answers that are right or wrong (`answer.format` label or json), and "
            "`train.validation.generate_rows` above 0"
        )
    if search.metric == "reward_accuracy" and train.objective == "sft":
        found.append("`search.metric: reward_accuracy` needs a `train.objective` with preferences")
    for names in tried.get("without_sources", ()):
        unknown = sorted(set(names) - set(sources))
        if unknown:
            found.append(
                f"`search.parameters.without_sources` names {unknown[0]!r}; the sources are {', '.join(sources)}"
            )
        elif set(names) == set(sources):
            found.append("`search.parameters.without_sources` leaves out every source")
    return found

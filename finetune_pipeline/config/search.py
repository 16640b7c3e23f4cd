"""`search`: settings that are tried before the training; those that are best on the validation rows are then used.

    search:
      trials: 20
      parameters:
        learning_rate: {low: 5.0e-4, high: 5.0e-3}
        lora.r: [8, 16, 32]
        without_sources: [[], [web]]

A parameter is a range, or a list of values. Each value has to be one that the setting itself accepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator

from finetune_pipeline.config.section import Section
from finetune_pipeline.config.train import Train


class Range(Section):
    """Every value from `low` to `high`, both included."""

    low: float = Field(description="Smallest value.")
    high: float = Field(description="Largest value.")
    log: bool | None = Field(
        None, description="Equal ratios are equally likely, and not equal differences; default: for learning_rate."
    )


Numbers: TypeAlias = Range | Annotated[tuple[float, ...], Field(min_length=1)] | None
Layers: TypeAlias = Range | Annotated[tuple[int | None, ...], Field(min_length=1)] | None
Sources: TypeAlias = Annotated[tuple[tuple[str, ...], ...], Field(min_length=1)] | None
NUMBERS = ("learning_rate", "lora_r", "num_epochs", "batch_size", "layers", "keep_general_weight", "row_share")
INTEGERS = frozenset({"lora.r", "batch_size", "layers"})
DATA = frozenset({"row_share", "without_sources"})  # about the training rows; the others are settings of `train`
ROW_SHARE: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(gt=0, le=1)])


class Parameters(Section):
    """What is tried: for each parameter a range `{low: …, high: …}`, or a list of values. In a range with `log: true`
    (the default for learning_rate), equal ratios are equally likely. Other settings stay as declared under `train`."""

    learning_rate: Numbers = Field(None, description="`train.learning_rate`.")
    lora_r: Numbers = Field(
        None, alias="lora.r", description="`train.lora.r`; `lora.alpha` follows, in the declared ratio."
    )
    num_epochs: Numbers = Field(None, description="`train.num_epochs`.")
    batch_size: Numbers = Field(None, description="`train.batch_size`.")
    layers: Layers = Field(None, description="`train.layers`; null in a list: all layers.")
    keep_general_weight: Numbers = Field(
        None, alias="keep_general.weight", description="`train.keep_general.weight`; no part of the validation loss."
    )
    row_share: Numbers = Field(
        None, description="Share of the training rows (above 0, to 1); shows whether more rows would help."
    )
    without_sources: Sources = Field(
        None, description="Lists of sources whose rows are left out of the training; `[]`: none."
    )

    @field_validator(*NUMBERS)
    @classmethod
    def _accepted(cls, tried: Range | tuple[float | None, ...] | None, info: ValidationInfo) -> Any:
        name = cls.model_fields[info.field_name or ""].alias or str(info.field_name)
        values = (tried.low, tried.high) if isinstance(tried, Range) else tried or ()
        for value in values:
            _require_accepted(name, value)
        if isinstance(tried, Range):
            _require_in_order(tried)
        elif len(set(values)) < len(values):
            raise ValueError("a value occurs twice in the list")
        return tried

    @field_validator("without_sources")
    @classmethod
    def _different(cls, tried: tuple[tuple[str, ...], ...] | None) -> Any:
        if tried is not None and len({frozenset(names) for names in tried}) < len(tried):
            raise ValueError("a list of sources occurs twice")
        return tried

    @model_validator(mode="after")
    def _any(self) -> Parameters:
        if not self.declared():
            raise ValueError("nothing to search: declare at least one parameter, for example learning_rate")
        return self

    def declared(self) -> Mapping[str, Range | tuple[Any, ...]]:
        """The parameters that are tried, by the names in task.yaml."""
        fields = type(self).model_fields
        found = {field.alias or name: getattr(self, name) for name, field in fields.items()}
        return {name: tried for name, tried in found.items() if tried is not None}


def _require_in_order(tried: Range) -> None:
    if tried.low >= tried.high:
        raise ValueError(f"`low` is {tried.low:g} and has to be less than `high`, which is {tried.high:g}")
    if tried.log and tried.low <= 0:
        raise ValueError("`low` has to be above 0 with `log: true`")


def _require_accepted(name: str, value: float | None) -> None:
    """ValueError unless the setting of this name accepts the value."""
    nested: Any = value
    for part in reversed(name.split(".")):
        nested = {part: nested}
    if value is None and name != "layers":
        raise ValueError("null is not a value to try")
    try:
        if name in DATA:
            ROW_SHARE.validate_python(value)
        else:
            Train.model_validate(nested)
    except ValidationError as error:
        raise ValueError(f"{value:g}: {error.errors()[0]['msg']}, as for the setting itself") from None


class Search(Section):
    """Trainings with other settings, compared on the validation rows before the training; test rows are never read."""

    trials: int = Field(
        20,
        ge=1,
        le=10_000,
        description="Trainings to compare. More find better settings, and fit them closer to the validation rows.",
    )
    hours: float | None = Field(
        None, gt=0, description="No trial begins after this many hours, over all runs; default: no limit."
    )
    metric: Literal["loss", "score", "reward_accuracy"] = Field(
        "loss",
        description="What the best trial is best in, on the validation rows. loss: lowest; score: right answers, of "
        "`train.validation.generate_rows`, which should then be all rows; reward_accuracy: of preferences.",
    )
    pruner: Literal["median", "hyperband", "none"] = Field(
        "median",
        description="Which trials end early, by their validation loss. median: those that are worse than half of the "
        "earlier ones; hyperband: most, after the first checks; none.",
    )
    checks: int = Field(
        4, ge=1, le=100, description="How often a trial is compared with the others, evenly over its steps."
    )
    parameters: Parameters

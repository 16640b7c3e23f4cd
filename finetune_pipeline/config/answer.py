"""`prompt` and `answer`: the system prompt, and the format of an answer."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeAlias

from pydantic import Field, model_validator

from finetune_pipeline.config.answer_schema import unresolved
from finetune_pipeline.config.section import Section

UNREADABLE = "(unreadable)"
FormatName: TypeAlias = Literal["json", "label", "text"]


class Prompt(Section):
    """The instruction of the task."""

    system: str = Field("", description="System prompt of every example, in training, evaluation and serving.")


class AnswerFormat(Section):
    """The format of a valid answer; checked in cleaning, quality, review, evaluation and serving."""

    format: FormatName = Field(
        "text", description="json: an object of `schema`; label: one of `labels`; text: any text that is not empty."
    )
    json_schema: dict[str, Any] | None = Field(
        None,
        alias="schema",
        description="JSON Schema of an answer (format: json), draft 2020-12; references only within it.",
    )
    labels: tuple[str, ...] = Field((), description="Allowed answers (format: label), two or more.")
    slice_by: str | None = Field(
        None,
        description="JSON field whose value is the slice of a row in reports and gates; with format label it is the "
        "label.",
    )

    @model_validator(mode="after")
    def _complete(self) -> AnswerFormat:
        if self.format == "json" and self.json_schema is None:
            raise ValueError("format json needs `schema`, the JSON Schema of an answer")
        if self.format == "label" and len(self.labels) < 2:
            raise ValueError("format label needs `labels`, two or more")
        if self.json_schema is not None:
            from jsonschema import Draft202012Validator, SchemaError

            try:
                Draft202012Validator.check_schema(self.json_schema)
            except SchemaError as error:
                raise ValueError(f"`schema` is not a valid JSON Schema: {error.message}") from error
            except RecursionError:
                raise ValueError("`schema` is nested too deeply: put its parts under `$defs`") from None
            foreign = unresolved(self.json_schema)
            if foreign:
                raise ValueError(
                    f"`schema` refers to {', '.join(foreign)}, which is not a schema within it, and nothing is "
                    "downloaded: put it under `$defs`, and refer to it by `#/$defs/<name>`"
                )
        return self

    def slice_of(self, completion: str) -> str:
        """The slice of a row: its label, or the value of the field `slice_by` of its completion.

        "" if the task has no slices; `UNREADABLE` if the completion is not a JSON object with that field (the quality
        gate accepts a small share of such rows).
        """
        if self.format == "label":
            return completion.strip()
        if self.format != "json" or self.slice_by is None:
            return ""
        try:
            value = json.loads(completion)
        except ValueError:
            return UNREADABLE
        if not isinstance(value, dict) or self.slice_by not in value:
            return UNREADABLE
        name = value[self.slice_by]
        return name if isinstance(name, str) else json.dumps(name, ensure_ascii=False, sort_keys=True)

"""`prompt` and `answer`: what the model is told, and what a good answer looks like."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, model_validator

from finetune_pipeline.config.answer_schema import unresolved
from finetune_pipeline.config.section import Section

UNREADABLE = "(unreadable)"


class Prompt(Section):
    system: str = Field("", description="System prompt put before every example, in training and in serving alike.")


class AnswerFormat(Section):
    """What a good answer looks like. It is checked when cleaning, when scoring and when serving."""

    format: Literal["json", "label", "text"] = Field(
        "text", description="json: an object; label: one of `labels`; text."
    )
    json_schema: dict[str, Any] | None = Field(
        None, alias="schema", description="JSON Schema of the answer (format: json)."
    )
    labels: tuple[str, ...] = Field((), description="The allowed answers (format: label).")
    slice_by: str | None = Field(
        None,
        description="JSON field whose value names the slice of a row in reports and gates; labels slice themselves.",
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
                raise ValueError(f"`schema` is no valid JSON Schema: {error.message}") from error
            except RecursionError:
                raise ValueError("`schema` is nested too deep: put its parts under `$defs`") from None
            foreign = unresolved(self.json_schema)
            if foreign:
                raise ValueError(
                    f"`schema` refers to {', '.join(foreign)}, which is no schema within it, and nothing is fetched: "
                    "put what is meant under `$defs`, and refer to it by `#/$defs/<name>`"
                )
        return self

    def slice_of(self, completion: str) -> str:
        """The slice of a row: its label, or the value of the field `slice_by` of its completion.

        "" where the task declares none; `UNREADABLE` where the completion is not the JSON object that it should be (the
        quality gate lets a small share of such rows pass).
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
        found = value[self.slice_by]
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, sort_keys=True)

"""`quality`: what the quality gate requires of the cleaned rows.

    quality:
      expectations:
        - type: expect_column_value_lengths_to_be_between
          kwargs: {column: prompt, min_value: 10}
          severity: warning

The columns are those of `quality/table.py`. Names and kwargs of expectations are checked where Great Expectations may
be imported: by `finetune validate` and by the asset `data_quality`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from finetune_pipeline.config.section import Section, Share

Allowed = Literal["refusals", "placeholders", "echo", "cut_off", "secrets"]
# Great Expectations takes these beside the kwargs of an expectation; here they have a key of their own or one value.
RESERVED = frozenset(
    {"batch_id", "catch_exceptions", "description", "id", "meta", "notes", "rendered_content", "result_format"}
    | {"severity", "windows"}
)


class DeclaredExpectation(Section):
    """An expectation of Great Expectations on the table of rows. Its columns: id, origin, source; prompt, completion
    (null where blank); prompt_chars, completion_chars; rejected (null where there is none); roles (`ua`: user,
    assistant); for JSON answers field.<name>. A
    critical one about single rows that is asked of at least `quality.mostly` of them (Great Expectations' default is
    all) is a rule: rows that do not meet it are not right."""

    type: str = Field(
        pattern=r"^expect_[a-z0-9_]+$", description="Great Expectations' name: expect_column_values_to_match_regex."
    )
    kwargs: dict[str, Any] = Field(
        {}, description="Its arguments, as Great Expectations documents them; `column` among them."
    )
    severity: Literal["critical", "warning"] = Field(
        "critical", description="critical: fails the gate where it is not met; warning: is shown, and fails nothing."
    )
    description: str = Field("", description="What it means in plain English, for reports; empty: GX's own words.")

    @field_validator("kwargs")
    @classmethod
    def _only_arguments(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        reserved = sorted(RESERVED & kwargs.keys())
        if reserved:
            raise ValueError(
                f"{', '.join(reserved)} is no argument of an expectation: `severity` and `description` stand beside "
                "`kwargs`, the others cannot be set"
            )
        return kwargs


class Quality(Section):
    """Expectations of the Great Expectations suite on the cleaned rows."""

    mostly: Share = Field(0.95, gt=0, description="Share of rows (0 to 1) that have to pass every rule.")
    min_rows: int = Field(200, ge=1, description="The gate fails with fewer cleaned rows.")
    max_prompt_chars: int = Field(8000, ge=1, description="Longest prompt, in characters.")
    max_completion_chars: int = Field(8000, ge=1, description="Longest completion, in characters; rejected ones too.")
    max_dropped: Share = Field(
        0.5,
        description="Largest share of all rows that reading and cleaning may drop; the gate fails with a larger one, "
        "however good the remaining rows are.",
    )
    allow: tuple[Allowed, ...] = Field(
        (),
        description="What is no fault in this task's completions: refusals (`I'm sorry, but I can't help with that`), "
        "placeholders (`[insert name]`, `TODO`), echo (the completion repeats the whole prompt: correction, "
        "translation), cut_off (it ends within a sentence), secrets (keys and passwords, in prompts too).",
    )
    expectations: tuple[DeclaredExpectation, ...] = Field(
        (), description="Expectations of your own, beside the built-in rules."
    )

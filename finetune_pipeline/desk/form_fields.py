"""The form fields for an answer: one per property of the declared JSON Schema, a choice for listed values.

form_fields(spec, '{"intent": "delivery", "order": null}')
    Field("intent", "choice", "Intent", options=(('"delivery"', "delivery"), ...), value='"delivery"')
    Field("order", "text", "Order", "like HV-12345, or left empty for none", value="", nullable=True)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.desk.labels import spelled

WHOLE = "whole answer"  # name of the only field of an answer that is not an object with declared properties
LONG_CHARS = 80  # longer texts get a text area
Kind = Literal["choice", "text", "number", "json", "long"]


@dataclass(frozen=True, slots=True)
class Field:
    """One control. `options`: pairs (value, text) of a choice; `value`: for choice and json the JSON of the value, else
    its text; `error`: what is wrong with the posted value."""

    name: str
    kind: Kind
    title: str
    hint: str = ""
    options: tuple[tuple[str, str], ...] = ()
    value: str = ""
    nullable: bool = False
    required: bool = True
    error: str = ""


def form_fields(spec: AnswerFormat, answer: str) -> list[Field]:
    """The form for an answer, with its current values; empty fields if it is not a JSON object."""
    if spec.format == "label":
        options = tuple((to_json(name), name) for name in spec.labels)
        return [Field(WHOLE, "choice", "Answer", "one of the declared labels", options, to_json(answer))]
    if not properties(spec):
        return [Field(WHOLE, "long", "Answer", "JSON" if spec.format == "json" else "", value=answer)]
    value = json_object(answer)
    return [_with_value(field, value) for field in empty_fields(spec)]


def empty_fields(spec: AnswerFormat) -> list[Field]:
    """One field per declared property, without values."""
    required = set((spec.json_schema or {}).get("required", ()))
    return [_field(name, schema, name in required) for name, schema in properties(spec).items()]


def guidance(spec: AnswerFormat) -> list[tuple[str, list[str], str]]:
    """(title, allowed values, hint) of each field, to be read beside a row."""
    if spec.format == "label":
        return [("Answer", list(spec.labels), "")]
    return [(field.title, [text for _, text in field.options], field.hint) for field in empty_fields(spec)]


def table(answer: str) -> list[tuple[str, str, bool]] | None:
    """A JSON object as rows (title, text of the value, whether it is empty); None for any other answer."""
    value = json_object(answer)
    if not value:
        return None
    return [
        (spelled(name), "none" if item is None else _text(item), item in (None, "")) for name, item in value.items()
    ]


def properties(spec: AnswerFormat) -> dict[str, Any]:
    """The declared properties of a JSON answer; {} for other formats."""
    declared = (spec.json_schema or {}).get("properties") if spec.format == "json" else None
    return declared if isinstance(declared, dict) else {}


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object in `text`; None if it is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def to_json(value: Any) -> str:
    """JSON with characters outside ASCII as they are."""
    return json.dumps(value, ensure_ascii=False)


def example(pattern: str) -> str:
    """A text that matches a simple pattern ("^HV-[0-9]{5}$" -> "HV-12345"); else the pattern itself."""
    digits = re.compile(r"(?:\\d|\[0-9\])(?:\{(\d)\})?")
    text = digits.sub(lambda match: "123456789"[: int(match[1] or 1)], pattern.removeprefix("^").removesuffix("$"))
    try:
        return text if re.fullmatch(pattern, text) else pattern
    except re.error:  # a pattern in another dialect
        return pattern


def _field(name: str, schema: Any, required: bool) -> Field:
    schema = schema if isinstance(schema, dict) else {}
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else list(types)
    values = (
        [True, False] if types == ["boolean"] else schema.get("enum", [schema["const"]] if "const" in schema else [])
    )
    nullable = "null" in types or None in values
    description = str(schema.get("description", ""))
    if values:
        options = tuple((to_json(value), "none" if value is None else _text(value)) for value in values)
        leave_out = () if required else (("", "leave out"),)
        return Field(name, "choice", spelled(name), description, leave_out + options, "", nullable, required)
    kind = _kind({name for name in types if name != "null"})
    limits = ", or ".join(
        part for part in (_limits(schema), "left empty for none" if nullable and kind != "json" else "") if part
    )
    hint = ". ".join(part for part in (description, limits) if part)
    return Field(name, kind, spelled(name), hint, (), "", nullable, required)


def _kind(types: set[str]) -> Kind:
    if types == {"string"}:
        return "text"
    return "number" if types and types <= {"number", "integer"} else "json"


def _limits(schema: Mapping[str, Any]) -> str:
    parts = [
        f"like {example(schema['pattern'])}" if "pattern" in schema else "",
        f"at least {schema['minimum']}" if "minimum" in schema else "",
        f"at most {schema['maximum']}" if "maximum" in schema else "",
        f"at most {schema['maxLength']} characters" if "maxLength" in schema else "",
    ]
    return ", ".join(part for part in parts if part)


def _with_value(field: Field, answer: Mapping[str, Any] | None) -> Field:
    if answer is None or field.name not in answer:
        return field
    value = answer[field.name]
    if field.kind in ("choice", "json"):
        return replace(field, value=to_json(value))
    kind: Kind = "long" if field.kind == "text" and len(str(value)) > LONG_CHARS else field.kind
    return replace(field, kind=kind, value="" if value is None else str(value))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else to_json(value)

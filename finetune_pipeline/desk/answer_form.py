"""The answer of a posted form, and what is wrong with it.

    read(spec, {"intent": '"refund"', "order": ""}, original)
        EditedAnswer('{"intent": "refund", "order": null}')

Whether an answer is valid is decided by clean/answers.py only; its errors are shown beside the field that they are
about. An answer that was not changed is returned character by character, so that an edit without a change approves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from finetune_pipeline.clean.answers import dump, normalize_answer, problem
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.desk.form_fields import WHOLE, Field, empty_fields, json_object, properties, to_json


@dataclass(frozen=True, slots=True)
class EditedAnswer:
    """The text of the answer, and errors by field (`WHOLE` for those about the whole answer)."""

    text: str
    errors: Mapping[str, str] = field(default_factory=dict)


def read(spec: AnswerFormat, posted: Mapping[str, str], original: str) -> EditedAnswer:
    """The answer of a posted form; `original` is the answer that was shown."""
    if spec.format == "label":
        return _checked(spec, _label(posted.get(WHOLE, ""), spec))
    if not properties(spec):
        return _checked(spec, posted.get(WHOLE, "").strip())
    before = json_object(original)
    after, errors = dict(before or {}), dict[str, str]()
    for control in empty_fields(spec):
        try:
            _set(after, control, posted.get(control.name, "").strip(), control.name in (before or {}))
        except ValueError as error:
            errors[control.name] = str(error)
    text = original if after == before else normalize_answer(dump(after), spec)[0]
    return EditedAnswer(text, errors) if errors else _checked(spec, text)


def with_errors(form: list[Field], posted: Mapping[str, str], edited: EditedAnswer) -> list[Field]:
    """The form with the posted values, and each error beside its field."""
    return [
        replace(control, value=posted.get(control.name, control.value), error=edited.errors.get(control.name, ""))
        for control in form
    ]


def shown(control: Field, posted: str) -> str:
    """A posted value as text: the value of a choice is JSON."""
    return dict(control.options).get(posted, posted)


def _checked(spec: AnswerFormat, text: str) -> EditedAnswer:
    whole = problem(text, spec)
    if whole is None:
        return EditedAnswer(text)
    value = json_object(text) or {}
    errors = {
        name: error
        for name in properties(spec)
        if name in value and (error := _property_problem(spec, name, value[name])) is not None
    }
    return EditedAnswer(text, errors or {WHOLE: whole})


def _property_problem(spec: AnswerFormat, name: str, value: Any) -> str | None:
    """What is wrong with one property, without its name; None if it is valid."""
    error = problem(dump({name: value}), _property_format(json.dumps(spec.json_schema), name))
    return error.removeprefix(f"{name}: ") if error else None


@lru_cache(maxsize=256)
def _property_format(schema: str, name: str) -> AnswerFormat:
    """A format with this property of the schema only."""
    whole = json.loads(schema)
    definitions = {key: whole[key] for key in ("$defs", "definitions") if key in whole}
    single = {"type": "object", "properties": {name: whole["properties"][name]}, **definitions}
    return AnswerFormat(format="json", json_schema=single)


def _set(answer: dict[str, Any], control: Field, posted: str, was_set: bool) -> None:
    """Set or leave out one property. ValueError describes what is wrong with the posted value."""
    if posted:
        answer[control.name] = _value(control, posted)
    elif not control.required and (not was_set or control.kind == "choice"):
        answer.pop(control.name, None)
    elif control.nullable and control.kind != "choice":
        answer[control.name] = None
    elif control.kind == "text":
        answer[control.name] = ""
    else:
        raise ValueError("choose one" if control.kind == "choice" else "fill this in")


def _value(control: Field, posted: str) -> Any:
    if control.kind == "choice":
        if posted not in dict(control.options):
            raise ValueError("choose one of the list")
        return json.loads(posted)
    if control.kind == "number":
        return _number(posted)
    return _json(posted) if control.kind == "json" else posted


def _json(posted: str) -> Any:
    try:
        value = json.loads(posted)
        dump(value).encode("utf-8")  # "\\ud800" is valid JSON, but cannot be encoded
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not JSON: {error.msg} at character {error.pos + 1}") from error
    except (RecursionError, UnicodeEncodeError) as error:
        raise ValueError("this JSON is nested too deeply, or contains half a character") from error
    return value


def _number(posted: str) -> int | float:
    try:
        return int(posted)
    except ValueError:
        pass
    try:
        number = float(posted.replace(",", "."))
    except ValueError:
        raise ValueError("this has to be a number") from None
    if not math.isfinite(number):
        raise ValueError("this has to be a finite number")
    return number


def _label(posted: str, spec: AnswerFormat) -> str:
    return {to_json(name): name for name in spec.labels}.get(posted, posted)

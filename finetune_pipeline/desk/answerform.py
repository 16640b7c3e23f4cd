"""An answer as a form, and back: one field for each property of the declared schema, a choice where values are listed.

    fields(spec, '{"intent": "delivery", "order": null}')
        Field("intent", "choice", options=(('"delivery"', "delivery"), ...), value='"delivery"')
        Field("order", "text", nullable=True, value="", hint="like HV-12345, or left empty for none")
    read(spec, {"intent": '"refund"', "order": ""}, original) -> Edited('{"intent": "refund", "order": null}')

Pure. What a valid answer is decides clean/answers.py alone; here its complaint is put beside the field it is about.
An answer that was not changed comes back as it was, character by character: an edit that changes nothing approves.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

from finetune_pipeline.clean.answers import dump, normalize_answer, problem
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.desk.labels import spelled

WHOLE = "whole answer"  # the name of the one field where an answer is no object with known properties
Kind = Literal["choice", "text", "number", "json", "long"]


@dataclass(frozen=True, slots=True)
class Field:
    """One control. `value` is what it holds: for a choice the JSON of the value, else text."""

    name: str
    kind: Kind
    title: str
    hint: str = ""
    options: tuple[tuple[str, str], ...] = ()
    value: str = ""
    nullable: bool = False
    required: bool = True
    complaint: str = ""


@dataclass(frozen=True, slots=True)
class Edited:
    """What a form made: the answer's text, or complaints by field (WHOLE for those about the answer as a whole)."""

    text: str
    complaints: Mapping[str, str] = field(default_factory=dict)


def fields(spec: AnswerFormat, answer: str) -> list[Field]:
    """The form for an answer, filled in with what it says now."""
    if spec.format == "label":
        options = tuple((json.dumps(name, ensure_ascii=False), name) for name in spec.labels)
        return [
            Field(
                WHOLE, "choice", "Answer", "one of the declared labels", options, json.dumps(answer, ensure_ascii=False)
            )
        ]
    properties = _properties(spec)
    if not properties:
        return [Field(WHOLE, "long", "Answer", "JSON" if spec.format == "json" else "", value=answer)]
    value = _object(answer)
    return [_filled(each, value) for each in _fields(spec)]


def rows(answer: str) -> list[tuple[str, str, bool]] | None:
    """A JSON object as (name, value in words, is it empty) for reading; None for anything else."""
    value = _object(answer)
    if not value:
        return None
    return [
        (spelled(name), "none" if item is None else _shown(item), item in (None, "")) for name, item in value.items()
    ]


def read(spec: AnswerFormat, posted: Mapping[str, str], original: str) -> Edited:
    """The answer that a posted form means, and what is wrong with it."""
    if spec.format == "label":
        return _judged(spec, _label(posted.get(WHOLE, ""), spec), {})
    if not _properties(spec):
        return _judged(spec, posted.get(WHOLE, "").strip(), {})
    before = _object(original) or {}
    after, complaints = dict(before), dict[str, str]()
    for each in _fields(spec):
        given = posted.get(each.name, "")
        try:
            _put(after, each, given, each.name in before)
        except ValueError as error:
            complaints[each.name] = str(error)
    unchanged = after == before and _object(original) is not None
    text = original if unchanged else normalize_answer(dump(after), spec)[0]
    return _judged(spec, text, complaints)


def with_complaints(form: list[Field], posted: Mapping[str, str], edited: Edited) -> list[Field]:
    """The form again as it was filled in, with each complaint beside its field."""
    return [
        replace(each, value=posted.get(each.name, each.value), complaint=edited.complaints.get(each.name, ""))
        for each in form
    ]


def shown(each: Field, given: str) -> str:
    """What was filled in, as a person reads it: a choice holds JSON."""
    return dict(each.options).get(given, given)


def _judged(spec: AnswerFormat, text: str, complaints: Mapping[str, str]) -> Edited:
    if complaints:
        return Edited(text, complaints)
    whole = problem(text, spec)
    if whole is None:
        return Edited(text)
    value = _object(text)
    found = {
        name: said for name in _properties(spec) if value and name in value and (said := _of_one(spec, name, value))
    }
    return Edited(text, found or {WHOLE: whole})


def _of_one(spec: AnswerFormat, name: str, value: Mapping[str, Any]) -> str | None:
    """The complaint about one property alone, by the same judge as the whole, without the property's name."""
    said = problem(dump({name: value[name]}), _alone(json.dumps(spec.json_schema), name))
    return said.removeprefix(f"{name}: ") if said else None


@lru_cache(maxsize=256)
def _alone(schema: str, name: str) -> AnswerFormat:
    """A format that knows one property of the schema only."""
    whole = json.loads(schema)
    shared = {key: whole[key] for key in ("$defs", "definitions") if key in whole}
    alone = {"type": "object", "properties": {name: whole["properties"][name]}, **shared}
    return AnswerFormat(format="json", json_schema=alone)


def _properties(spec: AnswerFormat) -> dict[str, Any]:
    found = (spec.json_schema or {}).get("properties") if spec.format == "json" else None
    return found if isinstance(found, dict) else {}


def _fields(spec: AnswerFormat) -> list[Field]:
    required = set((spec.json_schema or {}).get("required", ()))
    return [_field(name, schema, name in required) for name, schema in _properties(spec).items()]


def _field(name: str, schema: Any, required: bool) -> Field:
    schema = schema if isinstance(schema, dict) else {}
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else list(types)
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if types == ["boolean"]:
        values = [True, False]
    nullable = "null" in types or None in values
    said = str(schema.get("description", ""))
    if values:
        options = tuple(
            (json.dumps(value, ensure_ascii=False), "none" if value is None else _shown(value)) for value in values
        )
        left_out = () if required else (("", "leave out"),)
        return Field(name, "choice", spelled(name), said, left_out + options, "", nullable, required)
    plain = {kind for kind in types if kind != "null"}
    kind: Kind = "text" if plain == {"string"} else "number" if plain and plain <= {"number", "integer"} else "json"
    hints = (said, _pattern(schema), "left empty for none" if nullable and kind != "json" else "")
    hint = ", or ".join(part for part in hints[1:] if part)
    return Field(
        name, kind, spelled(name), ". ".join(part for part in (said, hint) if part), (), "", nullable, required
    )


def _pattern(schema: Mapping[str, Any]) -> str:
    parts = [
        f"like {example(schema['pattern'])}" if "pattern" in schema else "",
        f"at least {schema['minimum']}" if "minimum" in schema else "",
        f"at most {schema['maximum']}" if "maximum" in schema else "",
        f"at most {schema['maxLength']} characters" if "maxLength" in schema else "",
    ]
    return ", ".join(part for part in parts if part)


def example(pattern: str) -> str:
    """A text of a simple pattern ("^HV-[0-9]{5}$" -> "HV-12345"), which experts read more easily; else the pattern."""
    digits = re.compile(r"(?:\\d|\[0-9\])(?:\{(\d)\})?")
    made = digits.sub(lambda match: "123456789"[: int(match[1] or 1)], pattern.removeprefix("^").removesuffix("$"))
    try:
        return made if re.fullmatch(pattern, made) else pattern
    except re.error:  # a pattern of another dialect
        return pattern


def _filled(each: Field, value: Mapping[str, Any] | None) -> Field:
    if value is None or each.name not in value:
        return each
    item = value[each.name]
    if each.kind in ("choice", "json"):
        return replace(each, value=json.dumps(item, ensure_ascii=False))
    long: Kind = "long" if each.kind == "text" and len(str(item)) > 80 else each.kind
    return replace(each, kind=long, value="" if item is None else str(item))


def _put(into: dict[str, Any], each: Field, given: str, was_there: bool) -> None:
    """Set (or leave out) one property. ValueError says what is wrong with what was typed."""
    given = given.strip()
    if given == "":
        if not each.required and (not was_there or each.kind == "choice"):
            into.pop(each.name, None)
        elif each.nullable and each.kind != "choice":
            into[each.name] = None
        elif each.kind == "text":
            into[each.name] = ""
        else:
            raise ValueError("choose one" if each.kind == "choice" else "fill this in")
        return
    into[each.name] = _value(each, given)


def _value(each: Field, given: str) -> Any:
    if each.kind == "choice":
        if given not in {option for option, _ in each.options}:
            raise ValueError("choose one of the list")
        return json.loads(given)
    if each.kind == "number":
        return _number(given)
    if each.kind == "json":
        try:
            value = json.loads(given)
            dump(value).encode("utf-8")  # "\\ud800" is JSON, and no text that could be written down
        except json.JSONDecodeError as error:
            raise ValueError(f"this is no JSON: {error.msg} at character {error.pos + 1}") from error
        except (RecursionError, UnicodeEncodeError) as error:
            raise ValueError("this JSON is nested too deeply, or holds half a character") from error
        return value
    return given


def _number(given: str) -> int | float:
    try:
        return int(given)
    except ValueError:
        pass
    try:
        number = float(given.replace(",", "."))
    except ValueError:
        raise ValueError("this has to be a number") from None
    if not math.isfinite(number):
        raise ValueError("this has to be a finite number: JSON has no other")
    return number


def _label(given: str, spec: AnswerFormat) -> str:
    options = {json.dumps(name, ensure_ascii=False): name for name in spec.labels}
    return options.get(given, given)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _shown(item: Any) -> str:
    if isinstance(item, bool):
        return "yes" if item else "no"
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)


def guidance(spec: AnswerFormat) -> list[tuple[str, list[str], str]]:
    """What a good answer looks like, for reading: (field, allowed values, what else to know) each."""
    if spec.format == "label":
        return [("Answer", list(spec.labels), "")]
    return [(each.title, [shown for _, shown in each.options], each.hint) for each in _fields(spec)]

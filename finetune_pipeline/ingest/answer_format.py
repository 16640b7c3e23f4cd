"""Infers the declared format of answers from the completions: labels, JSON with its schema, or free text.

    answer_format(["refund", "delivery", "refund", ...], as_text=False)    # (AnswerFormat(format="label", ...), [])

The result is a proposal for a person to correct; values that occur once among many are left out as likely typing
errors, and named in a note.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.ingest.rows import writable

MAX_LABELS = 200
MAX_ENUM = 40
LABEL_CHARS = 60
ROWS_PER_VALUE = 3  # with fewer rows for each value, the values are texts rather than labels
MIN_ROWS_FOR_TYPOS = 100  # from this many rows on, a value that occurs once counts as a typing error
JSON_SHARE = 0.8  # of the completions that are JSON objects
REQUIRED_SHARE = 0.95  # of the objects that have a field

_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,15})\Z")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,15})(?:\.\d+)?\Z")


def answer_format(completions: Sequence[str], as_text: bool) -> tuple[AnswerFormat, list[str]]:
    """The format, and notes. `as_text`: fields of JSON answers come from a CSV, where all values are text."""
    filled = [completion.strip() for completion in completions if completion.strip()]
    notes = (
        [f"{len(completions) - len(filled)} completions are empty; those rows will be dropped"]
        if len(filled) < len(completions)
        else []
    )
    objects = [value for value in map(_object, filled) if value is not None]
    if filled and len(objects) >= JSON_SHARE * len(filled):
        return _json(objects, as_text, notes), notes
    labels = _labels(filled, notes)
    if labels:
        return AnswerFormat(format="label", labels=labels), notes
    return AnswerFormat(format="text"), notes


def _object(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # an unpaired surrogate may be written as an escape
            value = json.loads(writable(json.dumps(value, ensure_ascii=False)))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _labels(completions: Sequence[str], notes: list[str]) -> tuple[str, ...]:
    """The labels, sorted; () when the completions are texts. Spellings that differ in case only are one label."""
    if any("\n" in completion or len(completion) > LABEL_CHARS for completion in completions):
        return ()
    counts = _count_values(completions)
    if not 2 <= len(counts) <= MAX_LABELS or len(completions) < ROWS_PER_VALUE * len(counts):
        return ()
    return tuple(_without_typos(counts, "labels", notes))


def _count_values(values: Iterable[str]) -> Counter[str]:
    """How often each value occurs, regardless of case, under its most frequent spelling."""
    by_fold: dict[str, Counter[str]] = {}
    for value in values:
        by_fold.setdefault(value.strip().casefold(), Counter())[value.strip()] += 1
    return Counter({spellings.most_common(1)[0][0]: spellings.total() for spellings in by_fold.values()})


def _without_typos(counts: Counter[str], what: str, notes: list[str]) -> list[str]:
    once = sorted(value for value, count in counts.items() if count == 1)
    if counts.total() < MIN_ROWS_FOR_TYPOS or len(counts) - len(once) < 2:
        return sorted(counts)
    if once:
        notes.append(f"{what}: seen only once and left out (add them if they are right): {', '.join(once)}")
    return sorted(value for value, count in counts.items() if count > 1)


def _json(objects: Sequence[Mapping[str, Any]], as_text: bool, notes: list[str]) -> AnswerFormat:
    schema = schema_of(objects, as_text, notes)
    enums = [name for name, field in schema["properties"].items() if len(field.get("enum", ())) > 1]
    return AnswerFormat(format="json", json_schema=schema, slice_by=enums[0] if enums else None)


def schema_of(objects: Sequence[Mapping[str, Any]], as_text: bool, notes: list[str], where: str = "") -> dict[str, Any]:
    """A JSON Schema that these objects are valid under, except for fields and values that look like typing errors."""
    counts = Counter(name for item in objects for name in item)
    rare = [name for name, count in counts.items() if count == 1 and len(objects) >= MIN_ROWS_FOR_TYPOS]
    if rare:
        notes.append(f"fields seen only once and left out: {', '.join(where + name for name in rare)}")
    names = [name for name in counts if name not in rare]
    fields = {}
    for name in names:
        values = [item[name] for item in objects if name in item]
        fields[name] = _field([_value(v, values) for v in values] if as_text else values, notes, where + name)
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [name for name in names if counts[name] >= REQUIRED_SHARE * len(objects)],
        "properties": fields,
    }


def _value(value: Any, column: Sequence[Any]) -> Any:
    """The value of a CSV's cell: None for an empty one, a number where the whole column is numbers, else the text."""
    if value == "":
        return None
    filled = [text for text in column if text != ""]
    for pattern, kind in ((_INTEGER, int), (_NUMBER, float)):
        if all(isinstance(text, str) and pattern.match(text) for text in filled):
            return kind(value)
    return value


def _field(values: Sequence[Any], notes: list[str], where: str) -> dict[str, Any]:
    """The schema of one field: an enumeration where a few texts recur, else its types."""
    filled = [value for value in values if value is not None]
    nullable = len(filled) < len(values)
    if filled and all(isinstance(value, str) for value in filled):
        allowed = _enum(filled, notes, where)
        if allowed:
            return {"enum": [*allowed, *([None] if nullable else [])]}
    types = sorted({_type(value) for value in filled})
    if types == ["integer", "number"]:
        types = ["number"]
    if types == ["object"]:
        return {**schema_of(filled, False, notes, f"{where}."), "type": ["object", "null"] if nullable else "object"}
    types += ["null"] if nullable else []
    return {"type": types[0] if len(types) == 1 else types}


def _enum(values: Sequence[str], notes: list[str], where: str) -> list[str]:
    counts = _count_values(values)
    short = all(len(value) <= LABEL_CHARS and "\n" not in value for value in counts)
    if not short or len(values) < ROWS_PER_VALUE * len(counts):
        return []
    allowed = _without_typos(counts, where, notes)
    return allowed if len(allowed) <= MAX_ENUM else []


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    kinds = ((int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object"))
    return next(name for kind, name in kinds if isinstance(value, kind))

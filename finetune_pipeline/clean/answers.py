"""Validates answers against the declared format, and writes them in their canonical form.

Used for completions and for answers of a model: cleaning, quality gate, review, scoring, serving. `parse` is strict: an
answer that a program could not read is an error here too. `lenient` is for scoring: it extracts the answer from the
text that a model wrote around it, in the same way for every variant, so that variants are compared by their answers.

    parse('{"intent": "delivery"}', spec)           # {"intent": "delivery"}
    problem('{"intent": "delivry"}', spec)          # "intent: 'delivry' is not one of the 10 allowed values"
    normalize_answer('{ "intent": "Delivery " }', spec)
    # ('{"intent": "delivery"}', ["completion-label"])
    lenient('Sure: {"intent": "Delivery"}', spec)   # '{"intent": "delivery"}'
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune_pipeline.clean.pii import mask
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.config.answer_schema import validator_of

_FENCE = re.compile(r"\A```(?:json)?[ \t]*\n(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)
_QUOTES = " \t\r\n\"'`*“”„‘’«»"  # around a label; with the asterisks of Markdown's bold
_END_MARKS = ".,;:!?…"
_SHOWN = 40  # characters of an invalid value that a message quotes
_decoder = json.JSONDecoder()
_validators: dict[int, tuple[Any, Any]] = {}


class Truncated(ValueError):
    """JSON that ends before it is complete."""


def parse(text: str, spec: AnswerFormat) -> Any:
    """The answer as a value: an object (json), a declared label, or the text.

    Raises ValueError with a message for people; Truncated (a ValueError) where JSON ends early.
    """
    bare = text.strip()
    if not bare:
        raise ValueError("the answer is empty")
    if spec.format == "json":
        return _parse_json(bare, spec)
    if spec.format == "label" and bare not in spec.labels:
        raise ValueError(f"{_quoted(bare)} is not one of the {len(spec.labels)} labels")
    return bare


def problem(text: str, spec: AnswerFormat) -> str | None:
    """What is wrong with this answer, in words; None for a valid one."""
    try:
        parse(text, spec)
    except ValueError as error:
        return str(error)
    return None


def normalize_answer(text: str, spec: AnswerFormat) -> tuple[str, list[str]]:
    """The answer in its canonical form, and the slugs of the changes; unchanged where the form is ambiguous.

    completion-fence: a Markdown fence around JSON is removed. completion-label: a label (or an enumerated value) is
    spelled as declared, where only case and outer space differ and one spelling matches. completion-form: JSON is
    written with the schema's order of keys and usual spacing, so that the model learns one form. completion-space:
    outer space is removed.
    """
    bare = text.strip()
    if spec.format == "label":
        label = _declared(bare, spec.labels)
        return (label, ["completion-label"]) if label != text else (text, [])
    if spec.format == "text":
        return (bare, ["completion-space"]) if bare != text else (text, [])
    fenced = _FENCE.match(bare)
    inner = fenced[1] if fenced else bare
    try:
        value = load(inner)
    except ValueError:
        return text, []  # a text that is not JSON is dropped unchanged
    ordered, respelled = _conform(value, spec.json_schema or {})
    written = dump(ordered)
    rules = {
        "completion-fence": fenced is not None,
        "completion-label": respelled,
        "completion-form": written != inner and not respelled,
    }
    return written, [slug for slug, applies in rules.items() if applies]


def lenient(text: str, spec: AnswerFormat) -> str:
    """The answer within a model's output, in its canonical form (`normalize_answer`); unchanged where it is ambiguous.

    label: the declared label that differs only in case, quotes around it, outer space and end marks. json: the one
    object in a Markdown fence or between other words; key order and enumerated values as `normalize_answer` writes
    them. text: outer space is removed. The result may still break the schema, which `problem` reports.
    """
    if spec.format == "label":
        return _label(text, spec.labels)
    json_object = None if spec.format == "text" or _is_json(text) else _only_object(text)
    return normalize_answer(text if json_object is None else json_object, spec)[0]


def load(text: str) -> Any:
    """Strict JSON: a repeated key, NaN and Infinity are errors too. Raises ValueError, or Truncated."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        if at_end and text.lstrip()[:1] in ("{", "["):
            raise Truncated(f"the JSON ends early, after {len(text)} characters") from error
        raise ValueError(f"invalid JSON: {error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise ValueError("invalid JSON: nested too deeply") from error


def dump(value: Any) -> str:
    """JSON in the form of answers: one line, a space after comma and colon, non-ASCII letters not escaped."""
    return json.dumps(value, ensure_ascii=False)


def _parse_json(text: str, spec: AnswerFormat) -> Any:
    value = load(text)
    errors = _validator(spec.json_schema or {}).iter_errors(value)
    first = min(errors, key=lambda error: (list(map(str, error.absolute_path)), error.message), default=None)
    if first is not None:
        raise ValueError(_message(first))
    return value


def _validator(schema: Mapping[str, Any]) -> Any:
    """The validator of a schema, compiled once; cached by identity, since a schema cannot be hashed."""
    cached = _validators.get(id(schema))
    if cached is None or cached[0] is not schema:
        cached = _validators[id(schema)] = (schema, validator_of(schema))
    return cached[1]


def _message(error: Any) -> str:
    """A validation error of jsonschema, short and without personal data, for ledgers and reports."""
    where = ".".join(str(part) for part in error.absolute_path)
    prefix = f"{where}: " if where else ""
    value, rule = _quoted(error.instance), error.validator
    if rule == "enum":
        return f"{prefix}{value} is not one of the {len(error.validator_value)} allowed values"
    if rule == "type":
        types = error.validator_value
        return f"{prefix}{value} is not of type {types if isinstance(types, str) else ' or '.join(types)}"
    if rule == "pattern":
        return f"{prefix}{value} does not match {error.validator_value}"
    if rule in ("required", "additionalProperties"):
        return f"{prefix}{mask(error.message)[0]}"
    return f"{prefix}{value} breaks the rule {rule}: {error.validator_value}"


def _quoted(value: Any) -> str:
    shown = mask(value if isinstance(value, str) else dump(value))[0]
    return repr(shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("invalid JSON: a key is repeated")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"invalid JSON: {name}")


def _declared(text: str, allowed: Iterable[Any]) -> str:
    """The one allowed spelling that differs from `text` in case and outer space only; else `text`."""
    bare = text.strip()
    spellings = [value for value in allowed if isinstance(value, str)]
    if bare in spellings:
        return bare
    matches = [value for value in spellings if value.casefold() == bare.casefold()]
    return matches[0] if len(matches) == 1 else text


def _label(text: str, labels: Sequence[str]) -> str:
    """The declared label that `text` names: with its end marks, if a label has any, else without."""
    for written in (text, text.strip(_QUOTES)):
        label = _declared(written, labels)
        if label in labels:
            return label
    matches = [label for label in labels if _bare(label) == _bare(text)]
    return matches[0] if len(matches) == 1 and _bare(text) else text


def _bare(label: str) -> str:
    return label.lstrip(_QUOTES).rstrip(_QUOTES + _END_MARKS).casefold()


def _is_json(text: str) -> bool:
    try:
        load(text.strip())
    except ValueError:
        return False
    return True


def _only_object(text: str) -> str | None:
    """The only JSON object in a text; None where there is none, or a second, an incomplete or a listed one."""
    start = text.find("{")
    if start < 0 or text[:start].rstrip().endswith("["):
        return None
    try:
        _, end = _decoder.raw_decode(text, start)
    except (json.JSONDecodeError, RecursionError):
        return None
    json_object = text[start:end]
    return None if "{" in text[end:] or not _is_json(json_object) else json_object


def _conform(value: Any, schema: Any) -> tuple[Any, bool]:
    """(`value` with keys in the schema's order and enumerated texts as declared, whether a text was changed)."""
    if not isinstance(schema, Mapping):
        return value, False
    if isinstance(value, str) and "enum" in schema:
        declared = _declared(value, schema["enum"])
        return declared, declared != value
    if isinstance(value, list):
        items = [_conform(item, schema.get("items")) for item in value]
        return [item for item, _ in items], any(changed for _, changed in items)
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        order = [key for key in fields if key in value] + [key for key in value if key not in fields]
        parts = {key: _conform(value[key], fields.get(key)) for key in order}
        return {key: part for key, (part, _) in parts.items()}, any(changed for _, changed in parts.values())
    return value, False

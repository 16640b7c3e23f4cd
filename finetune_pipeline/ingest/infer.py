"""What a file of examples seems to hold: its columns, what a good answer is, how long rows are, a fitting prompt.

It only proposes: `scaffold.py` writes the proposal as a task.yaml with a comment to each guess, and a person corrects
it. What it is not: the reading for training (assets.py), which takes the declaration's word.

    inferred = infer(UPath("train.csv"), input="text", output="category")
    inferred.layout, inferred.answer.format, len(inferred.answer.labels)      # "columns", "label", 77
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from upath import UPath

from finetune_pipeline.config import AnswerFormat, Source
from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest.answer_format import answer_format
from finetune_pipeline.ingest.examples import Reading
from finetune_pipeline.ingest.layouts import Layout, Unfit
from finetune_pipeline.ingest.readers import open_rows
from finetune_pipeline.ingest.rows import Row, writable
from finetune_pipeline.records import Drop, Example, PreferencePair

SAMPLE_ROWS = 50_000
CHARS_PER_TOKEN = 3.0  # on the safe side for English prose (4 and more); JSON and other languages take more tokens
_BUDGETS = (512, 1024, 2048, 4096, 8192)
_GROUP_NAME = re.compile(
    r"(customer|client|user|account|member|patient|person|author|sender|thread|conversation|session|dialog(ue)?|case|"
    r"document|doc|family|company|organi[sz]ation|household|group)([_ -]?(id|no|nr|number|name|key))?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Inferred:
    """What was found. `input`, `output`, `outputs` are empty where the layout says it all; `answer` is a valid
    declaration; lengths are characters; `groups` are columns that may name what belongs together; `notes` are
    sentences for the person who reads the declaration."""

    format: str
    encoding: str
    layout: str
    columns: tuple[str, ...]
    input: str
    output: str
    outputs: tuple[str, ...]
    rows: int
    refused: Mapping[str, int]
    answer: AnswerFormat
    system: str
    prompt_chars: tuple[int, int]
    completion_chars: tuple[int, int]
    max_tokens: int
    groups: tuple[str, ...]
    notes: tuple[str, ...]


def infer(path: UPath, input: str | None = None, output: str | None = None, outputs: tuple[str, ...] = ()) -> Inferred:
    """Look at a file. DataError when it is missing or unreadable, or lacks the named columns (it says which it has)."""
    if not path.exists():
        raise DataError(f"{path} does not exist", "check the path given to --from")
    source = Source(path=str(path), input=input, output=output, outputs=outputs)
    opened = open_rows(path)
    sample = list(islice(opened.rows, SAMPLE_ROWS))
    file = Reading(path.name, source, replace(opened, rows=sample), AnswerFormat())
    if isinstance(file.layout, Unfit):
        named = "name them with --input and --output, spelled as in the file"
        raise DataError(f"{path} {file.complaint}", named if file.columns else "put one example in each row")
    examples, refused = _read(file)
    if not examples:
        raise DataError(f"{path} holds no example ({dict(refused) or 'it is empty'})", "check the file and its columns")
    return _inferred(file, file.layout, examples, refused, _cells(sample))


def _cells(rows: Sequence[Row]) -> dict[str, Counter[str]]:
    """How often each value stands in each column; numbers and short texts only: others name nothing."""
    cells: dict[str, Counter[str]] = {}
    for row in rows:
        for column, value in row.value.items() if row.problem is None else ():
            if isinstance(value, str | int) and value != "" and len(str(value)) <= 64:
                cells.setdefault(writable(column), Counter())[str(value)] += 1
    return cells


def _read(file: Reading) -> tuple[list[Example], Counter[str]]:
    examples: list[Example] = []
    refused: Counter[str] = Counter()
    for record in file.records():
        if isinstance(record, Drop):
            refused[record.reason] += 1
        else:
            examples.append(record.as_example() if isinstance(record, PreferencePair) else record)
    return examples, refused


def _inferred(
    file: Reading, layout: Layout, examples: list[Example], refused: Counter[str], cells: dict[str, Counter[str]]
) -> Inferred:
    as_text = file.format == "csv" and bool(layout.outputs)  # a CSV has no types: numbers and nulls are to be guessed
    answer, notes = answer_format([row.completion for row in examples], as_text)
    system = "" if all(row.messages[0].role == "system" for row in examples) else prompt_for(answer)
    questions = sorted(sum(len(m.content) for m in row.messages[:-1]) for row in examples)
    answers = sorted(len(row.completion) for row in examples)
    rows = len(examples) + refused.total()
    if rows >= SAMPLE_ROWS:
        notes.append(f"only the first {SAMPLE_ROWS} rows were looked at")
    if refused:
        told = ", ".join(f"{reason}: {count}" for reason, count in refused.most_common())
        notes.append(f"{refused.total()} of {rows} rows cannot be read and will be dropped ({told})")
    return Inferred(
        format=file.format,
        encoding=file.encoding,
        layout=layout.kind,
        columns=file.columns,
        input=layout.input,
        output=layout.output,
        outputs=layout.outputs,
        rows=rows,
        refused=dict(refused),
        answer=answer,
        system=system,
        prompt_chars=(questions[len(questions) // 2], questions[-1]),
        completion_chars=(answers[len(answers) // 2], answers[-1]),
        max_tokens=_budget(
            len(system) + max(len(r.completion) + sum(len(m.content) for m in r.messages[:-1]) for r in examples)
        ),
        groups=_groups(cells, layout, rows),
        notes=tuple(notes),
    )


def prompt_for(answer: AnswerFormat) -> str:
    """A system prompt that says what the declaration says of an answer."""
    if answer.format == "label":
        return "Classify the message. Answer with exactly one of these labels: " + ", ".join(answer.labels) + "."
    if answer.format == "json":
        fields = (answer.json_schema or {}).get("properties", {})
        return "Answer with one JSON object and nothing else: " + ", ".join(map(_field, fields.items())) + "."
    return "Answer the message."


def _field(item: tuple[str, Any]) -> str:
    name, schema = item
    if "enum" in schema:
        values = ["null" if value is None else str(value) for value in schema["enum"]]
        return f"{name} ({', '.join(values[:-1])} or {values[-1]})" if len(values) > 1 else f"{name} ({values[0]})"
    types = schema.get("type", [])
    return f"{name} ({types if isinstance(types, str) else ' or '.join(types)})"


def _budget(chars: int) -> int:
    """The least usual `clean.max_tokens` that the longest row fits into, by a cautious estimate."""
    tokens = chars / CHARS_PER_TOKEN + 32
    return next((budget for budget in _BUDGETS if tokens <= budget), _BUDGETS[-1])


def _groups(cells: Mapping[str, Counter[str]], layout: Layout, rows: int) -> tuple[str, ...]:
    """Columns named like a customer or a thread, whose values come back but do not rule the file."""
    used = {layout.input, layout.output, *layout.outputs}
    return tuple(
        name
        for name, values in cells.items()
        if name not in used
        and _GROUP_NAME.fullmatch(name)
        and values.total() >= rows / 2
        and 2 < len(values) < values.total()
        and max(values.values()) <= max(2, values.total() / 5)
    )

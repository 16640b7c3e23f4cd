"""Infers a declaration from a file of examples: columns, format of the answers, lengths, and a system prompt.

    inferred = infer(UPath("train.csv"), input="text", output="category")
    inferred.layout, inferred.answer.format, len(inferred.answer.labels)      # "columns", "label", 77

The result is a proposal: `scaffold.py` writes it as a task.yaml with a comment for each inferred value, and a person
corrects it. The asset `raw_examples` reads the file as declared, not as inferred.
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
from finetune_pipeline.ingest.examples import MERGED, SourceFile
from finetune_pipeline.ingest.layouts import Layout, MissingColumns
from finetune_pipeline.ingest.readers import open_rows
from finetune_pipeline.ingest.rows import Row, writable
from finetune_pipeline.records import Drop, Example
from finetune_pipeline.records.ledger import counted

SAMPLE_ROWS = 50_000
CHARS_PER_TOKEN = 3.0  # a low estimate for English prose (4 and more); JSON and other languages take more tokens
_MAX_TOKENS = (512, 1024, 2048, 4096, 8192)
_GROUP_NAME = re.compile(
    r"(customer|client|user|account|member|patient|person|author|sender|thread|conversation|session|dialog(ue)?|case|"
    r"document|doc|family|company|organi[sz]ation|household|group)([_ -]?(id|no|nr|number|name|key))?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Inferred:
    """The proposal. `input`, `output`, `outputs` are empty where the layout has no columns to name; `dropped` counts
    rows that are not examples by reason; `answer` is a valid declaration; `prompt_chars` and `completion_chars` are
    (median, maximum); `groups` are columns that may name a group; `notes` are sentences for the reader of task.yaml."""

    format: str
    encoding: str
    layout: str
    columns: tuple[str, ...]
    input: str
    output: str
    outputs: tuple[str, ...]
    rows: int
    dropped: Mapping[str, int]
    answer: AnswerFormat
    system: str
    prompt_chars: tuple[int, int]
    completion_chars: tuple[int, int]
    max_tokens: int
    groups: tuple[str, ...]
    notes: tuple[str, ...]


def infer(path: UPath, input: str | None = None, output: str | None = None, outputs: tuple[str, ...] = ()) -> Inferred:
    """Infer from a file. DataError when it is missing or unreadable, or lacks the named columns (with those it has)."""
    if not path.exists():
        raise DataError(f"{path} does not exist", "check the path given to --from")
    source = Source(path=str(path), input=input, output=output, outputs=outputs)
    opened = open_rows(path)
    sample = list(islice(opened.rows, SAMPLE_ROWS))
    file = SourceFile(path.name, source, replace(opened, rows=sample), AnswerFormat())
    if isinstance(file.layout, MissingColumns):
        named = "name them with --input and --output, spelled as in the file"
        raise DataError(f"{path} {file.problem}", named if file.columns else "put one example in each row")
    examples, dropped = _read(file)
    if not examples:
        reasons = counted(dropped) or "it is empty"
        raise DataError(f"{path} has no row that is an example ({reasons})", "check the file and its columns")
    return _inferred(file, file.layout, examples, dropped, _count_cells(sample))


def _count_cells(rows: Sequence[Row]) -> dict[str, Counter[str]]:
    """How often each value occurs in each column; numbers and short texts only, since others are not names."""
    cells: dict[str, Counter[str]] = {}
    for row in rows:
        for column, value in row.value.items() if row.problem is None else ():
            if isinstance(value, str | int) and value != "" and len(str(value)) <= 64:
                cells.setdefault(writable(column), Counter())[str(value)] += 1
    return cells


def _read(file: SourceFile) -> tuple[list[Example], Counter[str]]:
    examples: list[Example] = []
    dropped: Counter[str] = Counter()
    for record in file.records():
        if isinstance(record, Drop):
            dropped[record.reason] += 1
        else:
            examples.append(record)
    return examples, dropped


def _inferred(
    file: SourceFile, layout: Layout, examples: list[Example], dropped: Counter[str], cells: dict[str, Counter[str]]
) -> Inferred:
    as_text = file.format == "csv" and bool(layout.outputs)  # a CSV has no types: numbers and nulls are inferred
    answer, notes = answer_format([row.completion for row in examples], as_text)
    system = "" if all(row.messages[0].role == "system" for row in examples) else prompt_for(answer)
    prompt_chars = [sum(len(m.content) for m in row.messages[:-1]) for row in examples]
    completion_chars = [len(row.completion) for row in examples]
    answer_chars = [max(len(row.completion), len(row.rejected or "")) for row in examples]
    longest = max(map(sum, zip(prompt_chars, answer_chars, strict=True)))
    rows = len(examples) + dropped.total()
    return Inferred(
        format=file.format,
        encoding=file.encoding,
        layout=layout.kind,
        columns=file.columns,
        input=layout.input,
        output=layout.output,
        outputs=layout.outputs,
        rows=rows,
        dropped=dict(dropped),
        answer=answer,
        system=system,
        prompt_chars=_median_and_max(prompt_chars),
        completion_chars=_median_and_max(completion_chars),
        max_tokens=_max_tokens(len(system) + longest),
        groups=_groups(cells, layout, rows),
        notes=(*notes, *_row_notes(rows, dropped, sum(row.rejected is not None for row in examples))),
    )


def _median_and_max(values: Sequence[int]) -> tuple[int, int]:
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[-1]


def _row_notes(rows: int, dropped: Counter[str], pairs: int) -> list[str]:
    notes = [f"{pairs} rows have a rejected answer beside the chosen one, for preference training"] if pairs else []
    notes += [f"only the first {SAMPLE_ROWS} rows were read"] if rows >= SAMPLE_ROWS else []
    lost = Counter({reason: count for reason, count in dropped.items() if reason != MERGED})
    if lost:
        notes.append(f"{lost.total()} of {rows} rows cannot be read and will be dropped ({counted(lost)})")
    return notes


def prompt_for(answer: AnswerFormat) -> str:
    """A system prompt that describes the declared answer."""
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


def _max_tokens(chars: int) -> int:
    """The smallest usual `clean.max_tokens` that a row of so many characters fits, by a cautious estimate."""
    tokens = chars / CHARS_PER_TOKEN + 32
    return next((limit for limit in _MAX_TOKENS if tokens <= limit), _MAX_TOKENS[-1])


def _groups(cells: Mapping[str, Counter[str]], layout: Layout, rows: int) -> tuple[str, ...]:
    """Columns named like a customer or a thread, with values that recur but of which none covers most of the file."""
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

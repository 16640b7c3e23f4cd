"""Row layouts: which columns of a row hold prompt and completion, or which key holds the conversation.

    columns      {"message": "where is it?", "intent": "delivery"}          declared, or recognized by usual names
    alpaca       {"instruction": "...", "input": "...", "output": "..."}
    sharegpt     {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    messages     {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    preference   {"prompt": "...", "chosen": "...", "rejected": "..."}: texts or lists of messages; without `prompt` the
                 two are whole conversations, as lists or as transcripts ("\\n\\nHuman: ...\\n\\nAssistant: ...")
    unpaired     {"prompt": "...", "completion": "...", "label": false}: whether the completion is a good one

A file has one layout: it is decided once, from the file's columns, and a row that deviates from it is dropped with a
reason (conversations.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from finetune_pipeline.config import Source

# Usual names, the most specific first; compared in lower case.
INPUT_NAMES = (
    "prompt", "question", "input", "query", "instruction", "user", "message", "text", "sentence", "utterance",
    "request", "body", "content", "description", "email", "review", "comment", "ticket", "document", "source",
)  # fmt: skip
OUTPUT_NAMES = (
    "completion", "answer", "output", "response", "assistant", "reply", "label", "category", "intent", "class",
    "target", "sentiment", "topic", "summary", "result", "json",
)  # fmt: skip
UNPAIRED = ("prompt", "completion", "label")


@dataclass(frozen=True, slots=True)
class Layout:
    """`kind` as above; `input`, `output`, `outputs` name columns (kind columns; `input` is also alpaca's context)."""

    kind: str
    input: str = ""
    output: str = ""
    outputs: tuple[str, ...] = ()
    group: str | None = None

    def __str__(self) -> str:
        if self.kind != "columns":
            return self.kind
        return f"columns: {self.input} → {self.output or ', '.join(self.outputs)}"


@dataclass(frozen=True, slots=True)
class MissingColumns:
    """The file lacks columns of its layout: `needed` names them in words."""

    needed: str


def layout_of(columns: Sequence[str], source: Source, flags: Collection[str] = ()) -> Layout | MissingColumns:
    """The layout of a file with these columns: as declared, else recognized. `flags`: the columns that hold nothing but
    true and false (a `label` of other values is a completion)."""
    if source.group is not None and source.group not in columns:
        return MissingColumns(f"the group column {source.group!r}")
    kind: str = source.rows
    if kind == "auto":
        kind = "columns" if source.input or source.output or source.outputs else _recognize(columns, flags)
    if kind == "columns":
        return _columns(columns, source)
    needed = {
        "alpaca": ("instruction", "output"),
        "sharegpt": ("conversations",),
        "messages": ("messages",),
        "preference": ("chosen", "rejected"),
        "unpaired": UNPAIRED,
    }[kind]
    missing = [name for name in needed if name not in columns]
    return MissingColumns(_named(missing)) if missing else Layout(kind, group=source.group)


def _recognize(columns: Collection[str], flags: Collection[str]) -> str:
    names = set(columns)
    if "messages" in names:
        return "messages"
    if "conversations" in names:
        return "sharegpt"
    if {"chosen", "rejected"} <= names:
        return "preference"
    if names.issuperset(UNPAIRED) and "label" in flags:
        return "unpaired"
    return "alpaca" if {"instruction", "output"} <= names else "columns"


def _columns(columns: Sequence[str], source: Source) -> Layout | MissingColumns:
    declared = [name for name in (source.input, source.output, *source.outputs) if name]
    missing = [name for name in declared if name not in columns]
    if missing:
        return MissingColumns(_named(missing))
    input_ = source.input or usual_column(columns, INPUT_NAMES, taken=declared)
    if input_ is None:
        return MissingColumns("a column with the prompt (declare it as `input`)")
    if source.outputs:
        return Layout("columns", input_, "", source.outputs, source.group)
    output = source.output or usual_column(columns, OUTPUT_NAMES, taken=[input_])
    if output is None:
        return MissingColumns("a column with the completion (declare it as `output`)")
    return Layout("columns", input_, output, (), source.group)


def usual_column(columns: Sequence[str], names: Sequence[str], taken: Collection[str] = ()) -> str | None:
    """The column, not in `taken`, whose name comes first among the usual `names`; None where there is none."""
    by_lower = {column.lower(): column for column in columns if column not in taken}
    return next((by_lower[name] for name in names if name in by_lower), None)


def _named(missing: Sequence[str]) -> str:
    return f"the column{'s' if len(missing) > 1 else ''} {', '.join(repr(name) for name in missing)}"

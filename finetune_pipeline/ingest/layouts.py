"""How a row is laid out: which of its columns are question and answer, or which key holds the conversation.

    columns      {"message": "where is it?", "intent": "delivery"}          declared, or recognized by usual names
    alpaca       {"instruction": "...", "input": "...", "output": "..."}
    sharegpt     {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    messages     {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    preference   {"prompt": "...", "chosen": "...", "rejected": "..."}

A layout belongs to a file: it is decided once, from the file's columns, and a row that departs from it is dropped with
a reason (conversations.py). What it is not: the reading of rows (readers.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from finetune_pipeline.config import Source

# Usual names, most telling first; compared in lower case.
INPUT_NAMES = (
    "prompt", "question", "input", "query", "instruction", "user", "message", "text", "sentence", "utterance",
    "request", "body", "content", "description", "email", "review", "comment", "ticket", "document", "source",
)  # fmt: skip
OUTPUT_NAMES = (
    "completion", "answer", "output", "response", "assistant", "reply", "label", "category", "intent", "class",
    "target", "sentiment", "topic", "summary", "result", "json",
)  # fmt: skip


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
class Unfit:
    """The file has not the columns it needs: `needed` says which, in words."""

    needed: str


def layout_of(columns: Sequence[str], source: Source) -> Layout | Unfit:
    """The layout of a file with these columns: as declared, else recognized."""
    if source.group is not None and source.group not in columns:
        return Unfit(f"the group column {source.group!r}")
    kind: str = source.rows
    if kind == "auto":
        kind = "columns" if source.input or source.output or source.outputs else _recognized(columns)
    if kind == "columns":
        return _columns(columns, source)
    needed = {
        "alpaca": ("instruction", "output"),
        "sharegpt": ("conversations",),
        "messages": ("messages",),
        "preference": ("chosen", "rejected"),
    }[kind]
    missing = [name for name in needed if name not in columns]
    return Unfit(_named(missing)) if missing else Layout(kind, group=source.group)


def _recognized(columns: Collection[str]) -> str:
    has = set(columns)
    if "messages" in has:
        return "messages"
    if "conversations" in has:
        return "sharegpt"
    if {"chosen", "rejected"} <= has:
        return "preference"
    return "alpaca" if {"instruction", "output"} <= has else "columns"


def _columns(columns: Sequence[str], source: Source) -> Layout | Unfit:
    declared = [name for name in (source.input, source.output, *source.outputs) if name]
    missing = [name for name in declared if name not in columns]
    if missing:
        return Unfit(_named(missing))
    question = source.input or usual(columns, INPUT_NAMES, taken=declared)
    if question is None:
        return Unfit("a column with the question (declare it as `input`)")
    if source.outputs:
        return Layout("columns", question, "", source.outputs, source.group)
    answer = source.output or usual(columns, OUTPUT_NAMES, taken=[question])
    if answer is None:
        return Unfit("a column with the answer (declare it as `output`)")
    return Layout("columns", question, answer, (), source.group)


def usual(columns: Sequence[str], names: Sequence[str], taken: Collection[str] = ()) -> str | None:
    """The column with the most telling of the usual `names`, or None."""
    by_lower = {column.lower(): column for column in columns if column not in taken}
    return next((by_lower[name] for name in names if name in by_lower), None)


def _named(missing: Sequence[str]) -> str:
    return f"the column{'s' if len(missing) > 1 else ''} {', '.join(repr(name) for name in missing)}"

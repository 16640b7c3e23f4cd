"""The asset `raw_examples`: every row of every declared source, as an example or as a drop with its reason.

examples.jsonl  {"id": "9f1c20e4a7b35d68", "messages": [...], "source": "shop", "origin": "shop_export.csv:12", ...};
                with "rejected": "..." where the source has a worse completion of the same prompt
drops.jsonl     {"id": "...", "origin": "chat.jsonl:88", "stage": "ingest", "reason": "invalid-json", "detail": "..."}

Rows are streamed to disk: memory grows by one counter entry a row, not by the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import IO

from finetune_pipeline.config import Task
from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest.examples import MERGED, Record, SourceFile
from finetune_pipeline.ingest.layouts import MissingColumns
from finetune_pipeline.ingest.sources import fingerprint, opened_files
from finetune_pipeline.records import Check, Drop, Example, Json, Verdict, dumps
from finetune_pipeline.records.ledger import counted
from finetune_pipeline.store import StageContext, StageResult, TaskStore

_ALIVE_EVERY = 5_000  # rows


@dataclass(frozen=True, slots=True)
class FileSummary:
    """The figures of one file, in the artifact's summary. `problem` is why no row of it is an example, if so;
    `unreadable`: because no row can be read (it is not in the summary). `merged`: rows that are the rejected completion
    of another row."""

    file: str
    source: str
    rows: int
    examples: int
    format: str
    encoding: str
    layout: str
    problem: str = ""
    unreadable: bool = False
    merged: int = 0

    def to_json(self) -> dict[str, Json]:
        left_out = {"unreadable", *(() if self.problem else ("problem",)), *(() if self.merged else ("merged",))}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def sentence(self) -> str:
        """A line for the log."""
        if self.problem:
            return f"{self.file}: all {self.rows} rows dropped, the file {self.problem}"
        how = ", ".join(part for part in (self.format, self.encoding, self.layout) if part)
        return f"{self.file}: {self.rows} rows, {self.examples} examples ({how})"


def sources_fingerprint(task: Task, store: TaskStore) -> str:
    """Hash of the content of all sources: when it changes, the rows are read again."""
    return fingerprint(task, store.root)


def raw_examples(context: StageContext) -> StageResult:
    """Read every source. DataError when a file cannot be read, or when no row of any file is an example."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    files: list[FileSummary] = []
    with ExitStack() as open_files:
        out: dict[str, IO[str]] = {
            name: open_files.enter_context((context.out / f"{name}.jsonl").open("w", encoding="utf-8"))
            for name in ("examples", "drops")
        }
        for file in _files(context):
            before = counts.copy()
            for record in file.records():
                _write(record, out)
                counts["read"] += 1
                counts["drops" if isinstance(record, Drop) else "examples"] += 1
                if isinstance(record, Drop):
                    reasons[record.reason] += 1
                    counts["merged"] += record.reason == MERGED
                else:
                    counts["pairs"] += record.rejected is not None
                if counts["read"] % _ALIVE_EVERY == 0:
                    context.report.alive()
            files.append(_summary(file, counts - before))
            context.report.log(files[-1].sentence())
    if not counts["examples"]:
        raise _no_examples(files, reasons, context.task.name)
    return _result(context, counts, reasons, files)


def _files(context: StageContext) -> Iterator[SourceFile]:
    for source in context.task.sources:
        for name, opened in opened_files(source, context.store.root):
            yield SourceFile(name, source, opened, context.task.answer)


def _write(record: Record, out: dict[str, IO[str]]) -> None:
    if isinstance(record, Example):
        out["examples"].write(dumps(record.to_json()) + "\n")
    else:
        out["drops"].write(dumps(asdict(record)) + "\n")


def _summary(file: SourceFile, counts: Counter[str]) -> FileSummary:
    return FileSummary(
        file=file.name,
        source=file.source.label,
        rows=counts["read"],
        examples=counts["examples"],
        format=file.format,
        encoding=file.encoding,
        layout="" if isinstance(file.layout, MissingColumns) else str(file.layout),
        problem=file.problem if counts["read"] else "",
        unreadable=bool(file.unreadable),
        merged=counts["merged"],
    )


def _no_examples(files: Sequence[FileSummary], reasons: Counter[str], task: str) -> DataError:
    """The error for sources without any example: for each file, what it has and what it needs."""
    if not any(file.rows for file in files):
        names = ", ".join(file.file for file in files)
        return DataError(f"the data set is empty, no rows in: {names}", "put rows there, or correct `sources`")
    descriptions = [f"{file.file} {file.problem or _reading(file)}" for file in files]
    why = counted(reasons)
    layouts = "declare the columns of each source with `input` and `output` (or `outputs`), or its layout with `rows`"
    unreadable = all(file.unreadable for file in files)
    return DataError(
        f"no row of {task} could be read as an example ({why}): " + "; ".join(descriptions),
        "correct the source files: one example in each row" if unreadable else layouts,
    )


def _reading(file: FileSummary) -> str:
    return f"was read as {file.layout or file.format}, {file.rows} rows"


def _result(
    context: StageContext, counts: Counter[str], reasons: Counter[str], files: Sequence[FileSummary]
) -> StageResult:
    read, examples, drops = counts["read"], counts["examples"], sum(reasons.values())
    if read != examples + drops:
        raise AssertionError(f"{read} rows were read, but there are {examples} examples and {drops} drops")
    summary: dict[str, Json] = {
        "rows": read,
        "examples": examples,
        "pairs": counts["pairs"],
        "drops": drops,
        "dropped": dict(reasons.most_common()),
        "files": [file.to_json() for file in files],
    }
    check = Check("every_row_accounted", True, "rows read = examples + drops", f"{read} = {examples} + {drops}")
    sentence = f"{read} rows read: {examples} examples, {drops} dropped with a reason"
    return StageResult(
        summary, Verdict("raw_examples", True, context.key, sentence, (check,), {"rows": read, "drops": drops})
    )

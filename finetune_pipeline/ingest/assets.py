"""The asset `raw_examples`: every row of every declared source, as an example or as a drop with its reason.

examples.jsonl  {"id": "9f1c20e4a7b35d68", "messages": [...], "source": "shop", "origin": "shop_export.csv:12", ...}
drops.jsonl     {"id": "...", "origin": "chat.jsonl:88", "stage": "ingest", "reason": "invalid-json", "detail": "..."}
pairs.jsonl     preference pairs, each of which also stands in examples.jsonl as its preferred answer

Rows are streamed to disk: memory grows by a counter entry a row, not by the rows. What it is not: any judgment of the
rows' quality, which is the cleaning's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from finetune_pipeline.config import Task
from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest.examples import Reading, Record
from finetune_pipeline.ingest.layouts import Unfit
from finetune_pipeline.ingest.sources import fingerprint, opened_files
from finetune_pipeline.records import Check, Drop, Example, Json, PreferencePair, Verdict, dumps
from finetune_pipeline.store import StageContext, StageResult, TaskStore

_ALIVE_EVERY = 5_000  # rows


def sources_fingerprint(task: Task, store: TaskStore) -> str:
    """Hash of what all sources hold: when it changes, the rows are read anew."""
    return fingerprint(task, store.root)


def raw_examples(context: StageContext) -> StageResult:
    """Read every source. DataError when a file cannot be read, or when no row of any file is an example."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    files: list[dict[str, Any]] = []
    with ExitStack() as open_files:
        out = {
            name: open_files.enter_context((context.out / f"{name}.jsonl").open("w", encoding="utf-8"))
            for name in ("examples", "drops", "pairs")
        }
        for file in _files(context):
            before = counts.copy()
            for record in file.records():
                _write(record, out)
                counts["read"] += 1
                counts[_kind(record)] += 1
                reasons.update([record.reason] if isinstance(record, Drop) else [])
                if counts["read"] % _ALIVE_EVERY == 0:
                    context.report.alive()
            files.append(_described(file, counts - before))
            context.report.log(_sentence(files[-1]))
    if not counts["examples"]:
        raise _nothing(files, reasons, context)
    return _outcome(context, counts, reasons, files)


def _files(context: StageContext) -> Iterator[Reading]:
    for source in context.task.sources:
        for name, opened in opened_files(source, context.store.root):
            yield Reading(name, source, opened, context.task.answer)


def _kind(record: Record) -> str:
    return "drops" if isinstance(record, Drop) else "examples"


def _write(record: Record, out: dict[str, Any]) -> None:
    if isinstance(record, PreferencePair):
        out["pairs"].write(dumps(_plain(record)) + "\n")
        record = record.as_example()
    name = "examples" if isinstance(record, Example) else "drops"
    out[name].write(dumps(_plain(record)) + "\n")


def _plain(record: Record) -> dict[str, Any]:
    return record.to_json() if isinstance(record, Example) else asdict(record)


def _described(file: Reading, counts: Counter[str]) -> dict[str, Any]:
    """What the summary says of one file."""
    facts = {
        "file": file.name,
        "source": file.source.label,
        "rows": counts["read"],
        "examples": counts["examples"],
        "format": file.format,
        "encoding": file.encoding,
        "layout": "" if isinstance(file.layout, Unfit) else str(file.layout),
    }
    return facts | ({"problem": file.complaint} if file.complaint and counts["read"] else {})


def _sentence(facts: dict[str, Any]) -> str:
    if "problem" in facts:
        return f"{facts['file']}: all {facts['rows']} rows dropped, the file {facts['problem']}"
    how = ", ".join(part for part in (facts["format"], facts["encoding"], facts["layout"]) if part)
    return f"{facts['file']}: {facts['rows']} rows, {facts['examples']} examples ({how})"


def _nothing(files: list[dict[str, Any]], reasons: Counter[str], context: StageContext) -> DataError:
    """No example in any file: say for each file what it has and what it would need."""
    if not any(facts["rows"] for facts in files):
        names = ", ".join(facts["file"] for facts in files)
        return DataError(f"the data set is empty, no rows in: {names}", "put rows there, or correct `sources`")
    told = [f"{facts['file']} {facts.get('problem') or _reading(facts)}" for facts in files]
    why = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
    layouts = "declare the columns of each source with `input` and `output` (or `outputs`), or its layout with `rows`"
    unreadable = all("no row that can be read" in facts.get("problem", "") for facts in files)
    return DataError(
        f"no row of {context.task.name} could be read as an example ({why}): " + "; ".join(told),
        "fix the rows where they come from: one example in each" if unreadable else layouts,
    )


def _reading(facts: dict[str, Any]) -> str:
    return f"was read as {facts['layout'] or facts['format']}, {facts['rows']} rows"


def _outcome(
    context: StageContext, counts: Counter[str], reasons: Counter[str], files: list[dict[str, Any]]
) -> StageResult:
    read, examples, drops = counts["read"], counts["examples"], sum(reasons.values())
    if read != examples + drops:
        raise AssertionError(f"{read} rows were read, but there are {examples} examples and {drops} drops")
    summary: dict[str, Json] = {
        "rows": read,
        "examples": examples,
        "drops": drops,
        "dropped": dict(reasons.most_common()),
        "files": files,
    }
    check = Check(
        "every_row_accounted",
        read == examples + drops,
        "rows read = examples + drops",
        f"{read} = {examples} + {drops}",
    )
    sentence = f"{read} rows read: {examples} examples, {drops} dropped with a reason"
    return StageResult(
        summary, Verdict("raw_examples", True, context.key, sentence, (check,), {"rows": read, "drops": drops})
    )

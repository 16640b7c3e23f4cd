"""The asset `data_quality`: check the cleaned rows, write the verdict, the failing rows and the report.

    verdict.json             records.Verdict
    rows.jsonl               {"id": "9f1c20e4a7b35d68", "origin": "tickets.csv:12", "rules": ["completion_valid"]}
    validation_result.json   Great Expectations' own results, without texts
    report.html              the report for people

A verdict that does not pass is a result, not an error: it is stored, and the steps that require the gate raise
GateRefused.
"""

from __future__ import annotations

import json

from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest.assets import FileSummary
from finetune_pipeline.quality import gate, report, suite
from finetune_pipeline.quality.losses import Losses, Reading
from finetune_pipeline.quality.table import frame_of
from finetune_pipeline.records import Artifact, read_jsonl, write_jsonl
from finetune_pipeline.store import StageContext, StageResult


def readings(raw: Artifact) -> dict[str, Reading]:
    """How many rows of each source were read, and how many of them could not be. DataError for an artifact that an
    older version made."""
    found: dict[str, Reading] = {}
    try:
        for file in (FileSummary(**each) for each in raw.summary["files"]):
            before = found.get(file.source, Reading(0, 0))
            unreadable = file.rows - file.examples - file.merged
            found[file.source] = Reading(before.rows + file.rows, before.unreadable + unreadable)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"raw_examples does not say how many rows each file has ({error})", "materialize raw_examples again"
        ) from error
    return found


def data_quality(context: StageContext) -> StageResult:
    """Make the artifact. DataError when the table cannot be checked at all, DeclarationError for an expectation of the
    declaration that Great Expectations does not know."""
    raw, clean = context.inputs["raw_examples"], context.inputs["clean_examples"]
    rows = list(clean.examples())
    dropped = sum(1 for _ in read_jsonl(clean.path("drops.jsonl")))
    losses = Losses.of(context.task, len(rows), dropped, readings(raw))
    frame = frame_of(rows, context.task)
    context.report.alive()
    checked = suite.run(frame, context.task, losses, clean.content_hash)
    verdict = gate.evaluate_quality(checked, frame, losses, context.task.quality, clean.content_hash)
    (context.out / "verdict.json").write_text(json.dumps(verdict.to_json(), indent=1, ensure_ascii=False), "utf-8")
    write_jsonl(context.out / "rows.jsonl", gate.failing(checked, frame))
    report.write(checked, frame, verdict, context.out, f"Data quality of {context.task.name}")
    context.report.log(verdict.summary)
    return StageResult({"passed": verdict.passed, "summary": verdict.summary, **verdict.figures}, verdict)

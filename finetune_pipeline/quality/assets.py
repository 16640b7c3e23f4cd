"""The asset `data_quality`: judge the cleaned rows, write the verdict, the failing rows and the report.

    verdict.json   records.Verdict
    rows.jsonl     {"id": "9f1c20e4a7b35d68", "origin": "tickets.csv:12", "rules": ["completion_valid"]}
    docs/          Great Expectations' report, one page that needs nothing from the internet

A verdict that says no is a result, not an error: it is stored, and whoever needs the gate refuses by it.
"""

from __future__ import annotations

import json

from finetune_pipeline.errors import DataError
from finetune_pipeline.quality import docs, gate, rules, suite
from finetune_pipeline.records import Artifact, read_jsonl, write_jsonl
from finetune_pipeline.store import StageContext, StageResult


def readings(raw: Artifact) -> dict[str, rules.Reading]:
    """How many rows of each source were read, and how many of them could not be. DataError for an artifact that an
    older version made."""
    found: dict[str, rules.Reading] = {}
    try:
        for file in raw.summary["files"]:
            before = found.get(file["source"], rules.Reading(0, 0))
            read, unreadable = int(file["rows"]), int(file["rows"]) - int(file["examples"])
            found[file["source"]] = rules.Reading(before.rows + read, before.unreadable + unreadable)
    except (KeyError, TypeError) as error:
        raise DataError(f"raw_examples does not say how many rows each file has ({error})", "make it again") from error
    return found


def data_quality(work: StageContext) -> StageResult:
    """Make the artifact. DataError when the table cannot be judged at all."""
    raw, clean = work.inputs["raw_examples"], work.inputs["clean_examples"]
    asked = rules.rules_of(work.task)
    dropped = sum(1 for _ in read_jsonl(clean.path("drops.jsonl")))
    frame = rules.table(clean.examples(), work.task, dropped, readings(raw))
    work.report.alive()
    result = suite.run(frame, work.task, clean.content_hash)
    verdict = gate.evaluate_quality(result, frame, asked, work.task.quality, clean.content_hash)
    (work.out / "verdict.json").write_text(json.dumps(verdict.to_json(), indent=1, ensure_ascii=False), "utf-8")
    write_jsonl(work.out / "rows.jsonl", gate.failing(frame, asked))
    docs.write(result, work.out / "docs", f"Data quality of {work.task.name}", verdict.summary)
    work.report.log(verdict.summary)
    return StageResult({"passed": verdict.passed, "summary": verdict.summary, **verdict.figures}, verdict)

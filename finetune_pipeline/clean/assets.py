"""The asset `clean_examples`: cleaned rows, and the ledger of what was fixed and what was dropped, and why.

examples.jsonl  the rows that stay, in the order they were read
fixes.jsonl   {"id": "9f1c…", "origin": "shop.csv:12", "stage": "clean", "rule": "html", "detail": ""}
drops.jsonl     {"id": "77ab…", "origin": "shop.csv:31", "stage": "clean", "reason": "exact-duplicate", "detail": "…"}
clusters.jsonl  {"kept": "9f1c…", "dropped": "77ab…", "similarity": 0.93}
conflicts.jsonl {"rows": ["9f1c…", "0b3a…"], "origins": ["shop.csv:12", "shop.csv:40"], "similarity": 0.97}: both stay,
                for people to look at (nearly the same question, another answer)

A thin edge: what is decided is decided in pipeline.py. Rows are held in memory, about 2 kB each.
"""

from __future__ import annotations

from collections.abc import Iterator

from finetune_pipeline.clean.pipeline import Cleaned, clean
from finetune_pipeline.errors import DataError
from finetune_pipeline.records import Check, Verdict, write_jsonl
from finetune_pipeline.store import StageContext, StageResult


def clean_examples(context: StageContext) -> StageResult:
    """Clean every raw example. DataError when no row stays."""
    from finetune_pipeline.models import model_files, model_source

    count = model_files.token_counter(
        model_source.folder_of(context.inputs["base_model"], context.task.base, context.report)
    )
    raw = context.inputs["raw_examples"]
    rows = list(raw.examples())
    result = clean(rows, context.task.clean, context.task.answer, context.task.prompt.system, count, context.report)
    if not result.kept:
        raise _nothing(result)
    write_jsonl(context.out / "examples.jsonl", result.kept)
    write_jsonl(context.out / "fixes.jsonl", result.fixes)
    write_jsonl(context.out / "drops.jsonl", result.drops)
    write_jsonl(context.out / "clusters.jsonl", result.clusters)
    write_jsonl(context.out / "conflicts.jsonl", result.conflicts)
    context.report.log(f"{len(rows)} rows: {len(result.kept)} kept, {len(result.drops)} dropped")
    return StageResult(result.summary(), ledger(len(rows), result, raw.content_hash))


def ledger(rows: int, result: Cleaned, about: str) -> Verdict:
    """The verdict on the reconciliation, with warnings; `about` is the content of the raw rows that were cleaned."""
    kept, drops = len(result.kept), len(result.drops)
    holds = rows == kept + drops
    check = Check("ledger_reconciles", holds, "rows = kept + dropped", f"{rows} = {kept} + {drops}")
    sentence = f"{rows} rows: {kept} kept, {drops} dropped with a reason"
    figures = {"rows": rows, "kept": kept, "drops": drops}
    return Verdict("clean_examples", holds, about, sentence, (check, *_warnings(result)), figures)


def _warnings(result: Cleaned) -> Iterator[Check]:
    prompts, rows = result.several_answers
    if prompts:
        told = f"{prompts} questions have several answers, in {rows} rows; all are kept"
        yield Check("one answer to a question", False, "one each, unless several are meant", told, "warning")
    if result.conflicts:
        told = f"{len(result.conflicts)} pairs, in conflicts.jsonl; the first are shown to the reviewers"
        yield Check("near questions agree", False, "no two nearly equal questions with other answers", told, "warning")
    if result.similarity.get("rows_of_templates"):
        told = f"{result.similarity['rows_of_templates']} rows come from a template and are compared more strictly"
        yield Check(
            "near duplicates as declared", False, "`clean.near_duplicate_threshold` for all rows", told, "warning"
        )


def _nothing(result: Cleaned) -> DataError:
    reasons = result.summary()["dropped"]
    told = ", ".join(f"{reason}: {count}" for reason, count in reasons.items()) if isinstance(reasons, dict) else ""
    first = next((f"{drop.origin}: {drop.reason} ({drop.detail})" for drop in result.drops), "no rows came in")
    return DataError(
        f"no row is left after cleaning ({told}); the first: {first}",
        "fix the rows, or the declaration: `answer` (what a good one is), `clean.max_tokens` (how long a row may be)",
    )

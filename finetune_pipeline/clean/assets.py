"""The asset `clean_examples`: cleaned rows, and the ledger of what was mended and what was dropped, and why.

examples.jsonl  the rows that stay, in the order they were read
changes.jsonl   {"id": "9f1c…", "origin": "shop.csv:12", "stage": "clean", "rule": "html", "detail": ""}
drops.jsonl     {"id": "77ab…", "origin": "shop.csv:31", "stage": "clean", "reason": "exact-duplicate", "detail": "…"}
clusters.jsonl  {"kept": "9f1c…", "dropped": "77ab…", "similarity": 0.93}

A thin edge: what is decided is decided in rows.py. Rows are held in memory, about 2 kB each.
"""

from __future__ import annotations

from finetune_pipeline.clean.rows import Cleaned, clean
from finetune_pipeline.errors import DataError
from finetune_pipeline.materialise import Outcome, Work
from finetune_pipeline.records import Check, Verdict, write_jsonl


def clean_examples(work: Work) -> Outcome:
    """Clean every raw example. DataError when no row stays."""
    from finetune_pipeline import base_model

    count = base_model.token_counter(base_model.folder_of(work.inputs["base_model"], work.task.base, work.report))
    raw = work.inputs["raw_examples"]
    rows = list(raw.examples())
    result = clean(rows, work.task.clean, work.task.answer, work.task.prompt.system, count, work.report)
    if not result.kept:
        raise _nothing(result)
    write_jsonl(work.out / "examples.jsonl", result.kept)
    write_jsonl(work.out / "changes.jsonl", result.changes)
    write_jsonl(work.out / "drops.jsonl", result.drops)
    write_jsonl(work.out / "clusters.jsonl", result.clusters)
    work.report.log(f"{len(rows)} rows: {len(result.kept)} kept, {len(result.drops)} dropped")
    return Outcome(result.summary(), ledger(len(rows), result, raw.content))


def ledger(rows: int, result: Cleaned, about: str) -> Verdict:
    """The verdict on the reconciliation; `about` is the content of the raw rows that were cleaned."""
    kept, drops = len(result.kept), len(result.drops)
    holds = rows == kept + drops
    check = Check("ledger_reconciles", holds, "rows = kept + dropped", f"{rows} = {kept} + {drops}")
    sentence = f"{rows} rows: {kept} kept, {drops} dropped with a reason"
    return Verdict("clean_examples", holds, about, sentence, (check,), {"rows": rows, "kept": kept, "drops": drops})


def _nothing(result: Cleaned) -> DataError:
    reasons = result.summary()["dropped"]
    told = ", ".join(f"{reason}: {count}" for reason, count in reasons.items()) if isinstance(reasons, dict) else ""
    first = next((f"{drop.origin}: {drop.reason} ({drop.detail})" for drop in result.drops), "no rows came in")
    return DataError(
        f"no row is left after cleaning ({told}); the first: {first}",
        "mend the rows, or the declaration: `answer` (what a good one is), `clean.max_tokens` (how long a row may be)",
    )

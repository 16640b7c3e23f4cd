"""The asset `clean_examples`: cleaned rows, and the ledger of what was fixed and what was dropped, and why.

examples.jsonl    the kept rows, in the order in which they were read
fixes.jsonl       {"id": "9f1c…", "origin": "shop.csv:12", "stage": "clean", "rule": "html", "detail": ""}
drops.jsonl       {"id": "77ab…", "origin": "shop.csv:31", "stage": "clean", "reason": "exact-duplicate", "detail": "…"}
duplicates.jsonl  {"kept": "9f1c…", "dropped": "77ab…", "similarity": 0.93}
conflicts.jsonl   {"rows": ["9f1c…", "0b3a…"], "origins": ["shop.csv:12", "shop.csv:40"], "similarity": 0.97}: both
                  rows are kept, and shown to the reviewers (nearly the same prompt, another completion)

Rows are held in memory, about 2 kB each. The rules are applied in pipeline.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from finetune_pipeline.clean.pipeline import Cleaned, clean
from finetune_pipeline.config import Clean
from finetune_pipeline.errors import DataError
from finetune_pipeline.records import Check, Verdict, write_jsonl
from finetune_pipeline.records.ledger import counted
from finetune_pipeline.store import StageContext, StageResult


def clean_examples(context: StageContext) -> StageResult:
    """Clean every raw example. DataError when no row is kept."""
    from finetune_pipeline.models import model_files, model_source

    count_tokens = model_files.token_counter(
        model_source.folder_of(context.inputs["base_model"], context.task.base, context.report)
    )
    raw = context.inputs["raw_examples"]
    rows, rules = list(raw.examples()), within_context(context)
    result = clean(rows, rules, context.task.answer, context.task.prompt.system, count_tokens, context.report)
    if not result.kept:
        raise _no_rows_left(result)
    write_jsonl(context.out / "examples.jsonl", result.kept)
    write_jsonl(context.out / "fixes.jsonl", result.fixes)
    write_jsonl(context.out / "drops.jsonl", result.drops)
    write_jsonl(context.out / "duplicates.jsonl", result.pairs)
    write_jsonl(context.out / "conflicts.jsonl", result.conflicts)
    context.report.log(f"{len(rows)} rows: {len(result.kept)} kept, {len(result.drops)} dropped")
    return StageResult(result.summary(), ledger(len(rows), result, raw.content_hash))


def within_context(context: StageContext) -> Clean:
    """The rules, with at most as many tokens as the base model reads: longer rows would only fail the training."""
    rules = context.task.clean
    limit = int(context.inputs["base_model"].json("base_model.json").get("context") or 0)
    if not 0 < limit < rules.max_tokens:
        return rules
    context.report.log(f"rows have at most the {limit} tokens that the base model reads, not {rules.max_tokens}")
    return rules.model_copy(update={"max_tokens": limit})


def ledger(rows: int, result: Cleaned, about: str) -> Verdict:
    """The verdict on the ledger, with warnings; `about` is the content hash of the raw rows."""
    kept, drops = len(result.kept), len(result.drops)
    reconciles = rows == kept + drops
    check = Check("ledger_reconciles", reconciles, "rows = kept + dropped", f"{rows} = {kept} + {drops}")
    sentence = f"{rows} rows: {kept} kept, {drops} dropped with a reason"
    figures = {"rows": rows, "kept": kept, "drops": drops}
    return Verdict("clean_examples", reconciles, about, sentence, (check, *_warnings(result)), figures)


def _warnings(result: Cleaned) -> Iterator[Check]:
    several = result.several_completions
    if several.prompts:
        observed = f"{several.prompts} prompts have several completions, in {several.rows} rows; all are kept"
        yield Check("one completion for a prompt", False, "one, unless several are intended", observed, "warning")
    if result.conflicts:
        observed = f"{len(result.conflicts)} pairs, in conflicts.jsonl; the first are shown to the reviewers"
        expected = "no two nearly identical prompts with different completions"
        yield Check("near duplicates agree", False, expected, observed, "warning")
    if result.similarity.template_rows:
        observed = f"{result.similarity.template_rows} rows come from a template and need a higher similarity"
        expected = "`clean.near_duplicate_threshold` for all rows"
        yield Check("near-duplicate threshold as declared", False, expected, observed, "warning")


def _no_rows_left(result: Cleaned) -> DataError:
    first = next((f"{drop.origin}: {drop.reason} ({drop.detail})" for drop in result.drops), "there are no input rows")
    return DataError(
        f"no row is left after cleaning ({counted(result.drops_by_reason)}); the first: {first}",
        "correct the rows, or the declaration: `answer` (their format), `clean.max_tokens` (their longest length)",
    )

"""Make the review's two assets: the sample that the experts review, and the data with their verdicts applied.

review_sample   sample.jsonl: a simple random sample of the rows that nobody has reviewed (sampling.py); round.json:
                its round (Round); flagged.jsonl: rows to review beside the sample, which the gate does not count
expert_review   examples.jsonl: all cleaned rows, edits applied, without rejected rows (outcome.py); reviews.jsonl,
                fixes.jsonl, drops.jsonl. Raises WaitingForPeople until every row of the sample has its verdicts
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from upath import UPath

from finetune_pipeline.config import Task
from finetune_pipeline.errors import DataError
from finetune_pipeline.records import Artifact, Example, Json, Verdict, write_jsonl
from finetune_pipeline.review.edits import Edits, without_personal
from finetune_pipeline.review.figures import ReviewFigures
from finetune_pipeline.review.flagged import FILE, flag
from finetune_pipeline.review.gate import evaluate_review
from finetune_pipeline.review.history import ROUND, load_history, open_round, record_gate_result, round_of
from finetune_pipeline.review.outcome import ApplyEdit, ReviewedRows, apply_reviews
from finetune_pipeline.review.rounds import GateResult, rules_hash
from finetune_pipeline.review.sampling import Sample, draw
from finetune_pipeline.review.verdict_store import Progress, by_row, load_all, load_for, progress, verdicts_folder
from finetune_pipeline.review.waiting import waiting_for_experts
from finetune_pipeline.store import StageContext, StageResult, TaskStore


def review_sample(context: StageContext) -> StageResult:
    """Draw the rows for the experts. DataError when there are no rows to draw from."""
    clean = context.inputs["clean_examples"]
    rows = list(clean.examples())
    if not rows:
        raise DataError(
            "clean_examples has no rows, so there is nothing to review",
            "check drops.jsonl for the reasons why cleaning dropped all rows",
        )
    sample = _draw(context, rows, clean.content_hash)
    write_jsonl(context.out / "sample.jsonl", sample.rows)
    (context.out / ROUND).write_text(json.dumps(sample.round.to_json(), indent=1), "utf-8")
    flagged = flag(clean, rows, context.task.review.max_flagged)
    write_jsonl(context.out / FILE, flagged)
    number, population = sample.round.number, sample.round.population or 0
    which = "" if number == 1 else " that nobody reviewed in an earlier round"
    context.report.log(f"round {number}: {len(sample.rows)} of {population} rows{which} are in the sample")
    return StageResult(
        {
            "rows": len(sample.rows),
            "population": population,
            "share": len(sample.rows) / population,
            "round": number,
            "analysis": sample.round.analysis,
            "gone": sample.round.gone,
            "flagged_pairs": len(flagged),
        }
    )


def _draw(context: StageContext, rows: Sequence[Example], content_hash: str) -> Sample:
    reviews = load_all(context.store, context.task)
    before = context.store.current("review_sample")
    previous = None if before is None else round_of(before)
    given = [review for version in (previous.drawn if previous else ()) for review in reviews.get(version, ())]
    if before is not None and not all(review.recorded for review in given):
        open_round(context.store, before)  # its first verdict did not come from the desk, which stores the round
    history = load_history(context.store)
    if previous is not None and given:
        history = history.with_round(previous)
    return draw(rows, history, previous, reviews, context.task.review, content_hash)


def reviews_fingerprint(task: Task, store: TaskStore) -> str:
    """Hash of all that `expert_review` reads beyond its inputs: the verdict files and the recorded verdicts.

    A missing file of recorded verdicts is no error here, since a task's status does not need it. A verdict that is
    withdrawn after the folder was listed does not count.
    """
    folder = verdicts_folder(store)
    paths = sorted(folder.glob("*.json"), key=lambda path: path.name) if folder.exists() else []
    hashes = [(path.name, _hash_or_none(path)) for path in paths]
    recorded = store.root / task.review.recorded if task.review.recorded else None
    if recorded is not None:
        hashes.append((recorded.name, _hash_or_none(recorded) or "missing"))
    lines = "".join(f"{name}={digest}\n" for name, digest in hashes if digest is not None)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _hash_or_none(path: UPath) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None


def expert_review(context: StageContext) -> StageResult:
    """Evaluate the sample, and apply all verdicts to the data, also those of earlier rounds.

    WaitingForPeople while verdicts are missing.
    """
    clean, sample = context.inputs["clean_examples"], context.inputs["review_sample"]
    rules, sampled = context.task.review, list(sample.examples("sample.jsonl"))
    rows = list(clean.examples())
    by_id = by_row(rows, load_for(context.store, context.task, rows))
    reviews = [without_personal(review, context.task) for row in sampled for review in by_id[row.id]]
    state = progress(sampled, reviews, rules)
    if not state.complete:
        raise waiting_for_experts(context.task.name, state)
    review_round = round_of(sample)
    earlier = load_history(context.store).results_in(review_round.number)
    verdict = evaluate_review(sampled, reviews, rules, clean.content_hash, review_round, earlier)
    reviewed = apply_reviews(rows, by_id, _edit_function(context), context.task)
    write_jsonl(context.out / "examples.jsonl", reviewed.kept)
    masked = (without_personal(review, context.task) for group in by_id.values() for review in group)
    write_jsonl(context.out / "reviews.jsonl", (asdict(review) for review in masked))
    write_jsonl(context.out / "fixes.jsonl", reviewed.fixes)
    write_jsonl(context.out / "drops.jsonl", reviewed.drops)
    figures = ReviewFigures.from_json(verdict.figures)
    _record(context, sample, verdict, figures)
    context.report.log(verdict.summary)
    return StageResult(_summary(state, reviewed, figures), verdict)


def _record(context: StageContext, sample: Artifact, verdict: Verdict, figures: ReviewFigures) -> None:
    rules = rules_hash(context.task.review)
    result = GateResult(verdict.passed, figures.right, figures.rows, verdict.about, rules, context.now)
    record_gate_result(context.store, sample, result)


def _edit_function(context: StageContext) -> ApplyEdit:
    """`Edits.applied` of the task; the tokenizer is loaded with the first edit."""
    loaded: list[Edits] = []

    def apply_edit(row: Example, completion: str) -> tuple[Example, list[str]]:
        if not loaded:
            from finetune_pipeline.models import model_files, model_source

            folder = model_source.folder_of(context.inputs["base_model"], context.task.base, context.report)
            loaded.append(Edits(context.task, model_files.token_counter(folder)))
        return loaded[0].applied(row, completion)

    return apply_edit


def _summary(state: Progress, reviewed: ReviewedRows, figures: ReviewFigures) -> dict[str, Json]:
    return {
        "rows": len(reviewed.kept),
        "pairs": sum(row.rejected is not None for row in reviewed.kept),
        "round": figures.round,
        "reviewed": state.done,
        "right": state.right,
        "share": figures.share,
        "lower_bound": figures.lower_bound,
        "fresh_rows_none_wrong": figures.fresh_rows_none_wrong,
        "edited": sum(fix.rule == "expert-edit" for fix in reviewed.fixes),
        "dropped": len(reviewed.drops),
        "dropped_by_reason": dict(Counter(drop.reason for drop in reviewed.drops)),
        "recorded": state.recorded,
        "verdicts": state.verdicts,
    }

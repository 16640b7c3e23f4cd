"""The review's two assets: which rows the experts see, and what their verdicts do to the data.

    review_sample   sample.jsonl: a simple random sample of the rows that nobody has reviewed; round.json: the round of
                    the review that it belongs to (rounds.py)
                    flagged.jsonl: rows to look at besides, which decide nothing (flagged.py)
    expert_review   examples.jsonl (all cleaned rows, edits applied, rejected rows out), reviews.jsonl, fixes.jsonl,
                    drops.jsonl; raises WaitingForPeople until every row of the sample has its verdicts

The pure part is `settle`. What it is not: the draw (rounds.py), the gate (gate.py), the rules for a correction
(edits.py), or the verdicts' home (verdict_store.py).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from upath import UPath

from finetune_pipeline.clean.row_cleaner import RowDropped
from finetune_pipeline.config import Task
from finetune_pipeline.errors import DataError, WaitingForPeople
from finetune_pipeline.records import Artifact, Drop, Example, Fix, Json, Review, Verdict, write_jsonl
from finetune_pipeline.review.edits import Edits, without_personal, without_repeated
from finetune_pipeline.review.flagged import FILE, flag
from finetune_pipeline.review.gate import evaluate_review
from finetune_pipeline.review.history import ROUND, decide, load_history, open_round, round_of
from finetune_pipeline.review.rounds import Decision, Drawn, draw, rules_hash
from finetune_pipeline.review.verdict_store import (
    Progress,
    approves,
    by_row,
    load_all,
    load_for,
    progress,
    verdicts_folder,
)
from finetune_pipeline.store import StageContext, StageResult, TaskStore

STAGE = "review"
Apply = Callable[[Example, str], tuple[Example, list[str]]]  # Edits.applied


@dataclass(frozen=True, slots=True)
class Settled:
    """What the verdicts made of the rows: len(kept) + len(drops) is the number of rows that came in."""

    kept: tuple[Example, ...]
    fixes: tuple[Fix, ...]
    drops: tuple[Drop, ...]


def review_sample(context: StageContext) -> StageResult:
    """Draw the rows for the experts. DataError when there is nothing to draw from."""
    clean = context.inputs["clean_examples"]
    rows = list(clean.examples())
    if not rows:
        raise DataError(
            "clean_examples has no rows, so there is nothing to review",
            "see why cleaning dropped all rows: drops.jsonl",
        )
    drawn = _draw(context, rows, clean.content_hash)
    write_jsonl(context.out / "sample.jsonl", drawn.rows)
    (context.out / ROUND).write_text(json.dumps(drawn.round.to_json(), indent=1), "utf-8")
    flagged = flag(clean, rows, context.task.review.max_flagged)
    write_jsonl(context.out / FILE, flagged)
    of = drawn.round.population or 0
    known = "" if drawn.round.number == 1 else " that nobody reviewed in an earlier round"
    context.report.log(f"round {drawn.round.number}: {len(drawn.rows)} of {of} rows{known} are in the sample")
    figures: dict[str, Json] = {"round": drawn.round.number, "look": drawn.round.look, "gone": drawn.round.gone}
    return StageResult(
        {"rows": len(drawn.rows), "of": of, "share": len(drawn.rows) / of, **figures, "flagged_pairs": len(flagged)}
    )


def _draw(context: StageContext, rows: Sequence[Example], about: str) -> Drawn:
    said = load_all(context.store, context.task)
    before = context.store.current("review_sample")
    last = None if before is None else round_of(before)
    given = [review for shown in (last.drawn if last else ()) for review in said.get(shown, ())]
    if before is not None and not all(review.recorded for review in given):
        open_round(context.store, before)  # its first verdict came from elsewhere than the desk
    history = load_history(context.store)
    if last is not None and given:
        history = history.including(last)
    return draw(rows, history, last, said, context.task.review, about)


def reviews_fingerprint(task: Task, store: TaskStore) -> str:
    """Hash of everything `expert_review` reads beyond its inputs: the verdict files and the recorded ones. A recorded
    file that is missing is no error here: where a task stands can be told without it. A verdict that is withdrawn
    after the folder was listed is none."""
    folder = verdicts_folder(store)
    paths = sorted(folder.glob("*.json"), key=lambda path: path.name) if folder.exists() else []
    hashes = {path.name: _hash_if_there(path) for path in paths}
    given = {name: found for name, found in hashes.items() if found is not None}
    recorded = store.root / task.review.recorded if task.review.recorded else None
    declared = [] if recorded is None else [(recorded.name, _hash_if_there(recorded) or "missing")]
    lines = "".join(f"{name}={found}\n" for name, found in (*given.items(), *declared))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _hash_if_there(path: UPath) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None


def expert_review(context: StageContext) -> StageResult:
    """Judge the sample and apply all verdicts, also those of earlier rounds, to the data.

    WaitingForPeople while verdicts are missing.
    """
    clean, sample = context.inputs["clean_examples"], context.inputs["review_sample"]
    rules, sampled = context.task.review, list(sample.examples("sample.jsonl"))
    rows = list(clean.examples())
    given = by_row(rows, load_for(context.store, context.task, rows))
    reviews = [without_personal(review, context.task) for row in sampled for review in given[row.id]]
    state = progress(sampled, reviews, rules)
    if not state.complete:
        raise waiting(context.task.name, state)
    drawn = round_of(sample)
    verdict = evaluate_review(
        sampled, reviews, rules, clean.content_hash, drawn, load_history(context.store).of(drawn.number)
    )
    settled = settle(rows, given, _applier(context), context.task)
    write_jsonl(context.out / "examples.jsonl", settled.kept)
    told = (without_personal(review, context.task) for group in given.values() for review in group)
    write_jsonl(context.out / "reviews.jsonl", (asdict(review) for review in told))
    write_jsonl(context.out / "fixes.jsonl", settled.fixes)
    write_jsonl(context.out / "drops.jsonl", settled.drops)
    _remember(context, sample, verdict)
    context.report.log(verdict.summary)
    return StageResult(_summary(state, settled, verdict.figures), verdict)


def _remember(context: StageContext, sample: Artifact, verdict: Verdict) -> None:
    right, rows = (int(str(verdict.figures[name])) for name in ("right", "rows"))
    rules = rules_hash(context.task.review)
    decide(context.store, sample, Decision(verdict.passed, right, rows, verdict.about, rules, context.now))


def _applier(context: StageContext) -> Apply:
    """What applies corrections; the tokenizer is loaded with the first one."""
    found: list[Edits] = []

    def applied(row: Example, answer: str) -> tuple[Example, list[str]]:
        if not found:
            from finetune_pipeline.models import model_files, model_source

            folder = model_source.folder_of(context.inputs["base_model"], context.task.base, context.report)
            found.append(Edits(context.task, model_files.token_counter(folder)))
        return found[0].applied(row, answer)

    return applied


def waiting(task: str, state: Progress) -> WaitingForPeople:
    return WaitingForPeople(
        f"{state.done} of {state.total} rows of {task} are reviewed; {len(state.missing)} wait for an expert",
        f"open the desk, page Review of {task}, and judge the rows that are left; the run goes on afterwards",
    )


def settle(rows: Iterable[Example], given: Mapping[str, Sequence[Review]], apply: Apply, task: Task) -> Settled:
    """Apply the verdicts: what more than half of a row's reviewers say happens to it (keep, drop, or one and the same
    edit). Where no such majority exists the row leaves too: nobody knows what is right. An edit that does not pass the
    rules for every row takes its row out, and so does one that makes two rows the same."""
    kept: list[Example] = []
    fixes: list[Fix] = []
    drops: list[Drop] = []
    for row in rows:
        reviews = given.get(row.id, ())
        outcome, by = _majority(row, reviews)
        if outcome == "keep":
            kept.append(row)
        elif outcome == "edit":
            _edit(row, by, apply, kept, fixes, drops)
        else:
            drops.append(Drop(row.id, row.origin, STAGE, outcome, _who(by or reviews)))
    edited = frozenset(change.id for change in fixes if change.rule == "expert-edit")
    if edited:
        kept, repeated = without_repeated(kept, edited, task)
        drops += [replace(drop, stage=STAGE) for drop in repeated]
    return Settled(tuple(kept), tuple(fixes), tuple(drops))


def _edit(
    row: Example,
    by: Sequence[Review],
    apply: Apply,
    kept: list[Example],
    fixes: list[Fix],
    drops: list[Drop],
) -> None:
    """Put the corrected row among those that are kept, or say in the ledger why it cannot be."""
    try:
        edited, slugs = apply(row, by[0].completion or "")
    except RowDropped as refused:
        detail = f"{_who(by)}: {refused.reason}" + (f" ({refused.detail})" if refused.detail else "")
        drops.append(Drop(row.id, row.origin, STAGE, "edit-refused", detail))
        return
    kept.append(edited)
    fixes.append(Fix(row.id, row.origin, STAGE, "expert-edit", _who(by)))
    fixes += [Fix(row.id, row.origin, STAGE, slug) for slug in dict.fromkeys(slugs)]


def _majority(row: Example, reviews: Sequence[Review]) -> tuple[str, list[Review]]:
    """What happens to the row (keep, edit, or a reason for dropping it), and the reviews that say so."""
    if not reviews:
        return "keep", []
    votes = Counter(_vote(row, review) for review in reviews)
    vote, count = votes.most_common(1)[0]
    if 2 * count <= len(reviews):
        return "reviewers-disagree", []
    return {"approve": "keep", "reject": "expert-rejected"}.get(vote[0], "edit"), [
        review for review in reviews if _vote(row, review) == vote
    ]


def _vote(row: Example, review: Review) -> tuple[str, str | None]:
    return ("approve", None) if approves(row, review) else (review.decision, review.completion)


def _who(reviews: Sequence[Review]) -> str:
    return ", ".join(review.reviewer for review in reviews)


def _summary(state: Progress, settled: Settled, figures: Mapping[str, Json]) -> dict[str, Json]:
    return {
        "rows": len(settled.kept),
        "round": figures["round"],
        "reviewed": state.done,
        "right": state.approved,
        "share": figures["share"],
        "lower_bound": figures["lower_bound"],
        "fresh_rows_needed": figures["fresh_rows_none_wrong"],
        "edited": sum(change.rule == "expert-edit" for change in settled.fixes),
        "dropped": len(settled.drops),
        "dropped_by_reason": dict(Counter(drop.reason for drop in settled.drops)),
        "recorded": state.recorded,
        "verdicts": state.given,
    }

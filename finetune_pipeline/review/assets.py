"""The review's two assets: which rows the experts see, and what their verdicts do to the data.

    review_sample   sample.jsonl: a simple random sample of the cleaned rows, seeded; a row's place in the draw depends
                    on its id alone, so that rows added later leave most of the sample (and its verdicts) as it was
                    flagged.jsonl: rows to look at besides, which decide nothing (flagged.py)
    expert_review   examples.jsonl (all cleaned rows, edits applied, rejected rows out), reviews.jsonl, changes.jsonl,
                    drops.jsonl; raises WaitingForPeople until every row of the sample has its verdicts

The pure parts are `draw` and `settle`. What it is not: the gate (gate.py), or the verdicts' home (inbox.py).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from finetune_pipeline.clean.answers import problem, tidy
from finetune_pipeline.config import AnswerFormat, ReviewRules, Task
from finetune_pipeline.errors import DataError, WaitingForPeople
from finetune_pipeline.materialise import Outcome, Work
from finetune_pipeline.records import Change, Drop, Example, Json, Review, content_id, write_jsonl
from finetune_pipeline.review.flagged import FILE, flag, flagged_in, flagged_rows
from finetune_pipeline.review.gate import judge
from finetune_pipeline.review.inbox import Progress, approves, by_row, load, load_for, progress, verdicts_folder
from finetune_pipeline.store import TaskStore

STAGE = "review"


@dataclass(frozen=True, slots=True)
class Settled:
    """What the verdicts made of the rows: len(kept) + len(drops) is the number of rows that came in."""

    kept: tuple[Example, ...]
    changes: tuple[Change, ...]
    drops: tuple[Drop, ...]


def review_sample(work: Work) -> Outcome:
    """Draw the rows for the experts. DataError when there is nothing to draw from."""
    rows = list(work.inputs["clean_examples"].examples())
    if not rows:
        raise DataError(
            "clean_examples has no rows, so there is nothing to review",
            "see why cleaning dropped all rows: drops.jsonl",
        )
    sample = draw(rows, work.task.review)
    write_jsonl(work.out / "sample.jsonl", sample)
    flagged = flag(work.inputs["clean_examples"], rows, work.task.review.max_flagged)
    write_jsonl(work.out / FILE, flagged)
    figures: dict[str, Json] = {"rows": len(sample), "of": len(rows), "share": len(sample) / len(rows)}
    return Outcome({**figures, "flagged_pairs": len(flagged)})


def draw(rows: Sequence[Example], rules: ReviewRules) -> list[Example]:
    """A simple random sample: the first n rows in the order of a hash of seed and row id.

    Every row is equally likely to be in it, which the binomial bound needs. When rows are added, a row leaves the
    sample only by being overtaken.
    """
    wanted = max(rules.min_rows, math.ceil(rules.fraction * len(rows)))
    ordered = sorted(rows, key=lambda row: (content_id(str(rules.seed), row.id), row.id))
    return ordered[: min(wanted, rules.max_rows, len(rows))]


def reviews_fingerprint(task: Task, store: TaskStore) -> str:
    """Hash of everything `expert_review` reads beyond its inputs: the verdict files and the recorded ones. A recorded
    file that is missing is no error here: where a task stands can be told without it."""
    folder = verdicts_folder(store)
    paths = sorted(folder.glob("*.json"), key=lambda path: path.name) if folder.exists() else []
    digest = hashlib.sha256()
    for path in (*paths, *([store.root / task.review.recorded] if task.review.recorded else [])):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"
        digest.update(f"{path.name}={content}\n".encode())
    return digest.hexdigest()[:16]


def expert_review(work: Work) -> Outcome:
    """Judge the sample and apply the verdicts to the data.

    WaitingForPeople while verdicts are missing; DataError when an expert's edit breaks the declared answer format.
    """
    clean, sample = work.inputs["clean_examples"], work.inputs["review_sample"]
    rules, sampled = work.task.review, list(sample.examples("sample.jsonl"))
    reviews = load(work.store, work.task, sample)
    flagged = flagged_rows(flagged_in(sample), sampled)
    state = progress(sampled, reviews, rules)
    if not state.complete:
        raise waiting(work.task.name, state)
    rows = list(clean.examples())
    given = by_row(flagged, load_for(work.store, work.task, flagged))
    verdict = judge(sampled, reviews, rules, clean.content, population=len(rows))
    settled = settle(rows, {**given, **by_row(sampled, reviews)}, work.task.answer)
    write_jsonl(work.out / "examples.jsonl", settled.kept)
    write_jsonl(work.out / "reviews.jsonl", (asdict(review) for review in reviews))
    write_jsonl(work.out / "changes.jsonl", settled.changes)
    write_jsonl(work.out / "drops.jsonl", settled.drops)
    work.report.log(verdict.summary)
    return Outcome(_summary(state, settled, verdict.figures), verdict)


def waiting(task: str, state: Progress) -> WaitingForPeople:
    return WaitingForPeople(
        f"{state.done} of {state.total} rows of {task} are reviewed; {len(state.missing)} wait for an expert",
        f"open the desk, page Review of {task}, and judge the rows that are left; the run goes on afterwards",
    )


def settle(rows: Iterable[Example], given: Mapping[str, Sequence[Review]], answer: AnswerFormat) -> Settled:
    """Apply the verdicts: what more than half of a row's reviewers say happens to it (keep, drop, or one and the same
    edit). Where no such majority exists the row leaves too: nobody knows what is right."""
    kept: list[Example] = []
    changes: list[Change] = []
    drops: list[Drop] = []
    for row in rows:
        reviews = given.get(row.id, ())
        outcome, by = _majority(row, reviews)
        if outcome == "keep":
            kept.append(row)
        elif outcome == "edit":
            kept.append(_edited(row, by[0], answer))
            changes.append(Change(row.id, row.origin, STAGE, "expert-edit", _who(by)))
        else:
            drops.append(Drop(row.id, row.origin, STAGE, outcome, _who(by or reviews)))
    return Settled(tuple(kept), tuple(changes), tuple(drops))


def _majority(row: Example, reviews: Sequence[Review]) -> tuple[str, list[Review]]:
    """What happens to the row (keep, edit, or a reason for dropping it), and the reviews that say so."""
    if not reviews:
        return "keep", []
    votes = Counter(_vote(row, review) for review in reviews)
    vote, count = votes.most_common(1)[0]
    if 2 * count <= len(reviews):
        return "experts-disagree", []
    return {"approve": "keep", "reject": "expert-rejected"}.get(vote[0], "edit"), [
        review for review in reviews if _vote(row, review) == vote
    ]


def _vote(row: Example, review: Review) -> tuple[str, str | None]:
    return ("approve", None) if approves(row, review) else (review.decision, review.answer)


def _edited(row: Example, review: Review, answer: AnswerFormat) -> Example:
    text, _ = tidy(review.answer or "", answer)
    complaint = problem(text, answer)
    if complaint:
        raise DataError(
            f"{review.reviewer}'s edit of row {row.id} ({row.origin}) breaks the answer format: {complaint}",
            "correct the edit in the desk (or in the recorded file) and run again",
        )
    return row.with_answer(text)


def _who(reviews: Sequence[Review]) -> str:
    return ", ".join(review.reviewer for review in reviews)


def _summary(state: Progress, settled: Settled, figures: Mapping[str, Json]) -> dict[str, Json]:
    return {
        "rows": len(settled.kept),
        "reviewed": state.done,
        "right": state.approved,
        "share": figures["share"],
        "lower_bound": figures["lower_bound"],
        "edited": len(settled.changes),
        "dropped": len(settled.drops),
        "dropped_by_reason": dict(Counter(drop.reason for drop in settled.drops)),
        "recorded": state.recorded,
        "verdicts": state.given,
    }

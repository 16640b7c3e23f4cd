"""Apply an expert's correction to a row: the rules of cleaning for one row, then those of the quality gate. Pure.

    edits = Edits(task, count_tokens)
    edits.applied(row, '{ "intent": "Refund", "note": "mail jo@example.com" }')
    → (row with the completion '{"intent": "refund", "note": "mail <EMAIL>"}', ["completion-label", "pii-email"])

The correction is preferred to what it corrects: `rejected` of the edited row is the completion that the expert saw,
unless the row has a rejected completion already, or only white space differs. Where the correction is that rejected
completion, the expert reverses the preference, and the two change places.

The desk checks a correction before it saves it, so that the expert sees what is wrong. The review checks again, since
verdicts come from files too, and drops the row if the correction fails. Without `count_tokens` (it needs the base
model's tokenizer) the length in tokens is not checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetune_pipeline.clean import lengths
from finetune_pipeline.clean.normalize import identity
from finetune_pipeline.clean.pii import mask
from finetune_pipeline.clean.row_cleaner import RowCleaner, RowDropped
from finetune_pipeline.clean.row_rules import without_rejected
from finetune_pipeline.config import Task
from finetune_pipeline.quality.rules import Rule, broken_by, rules_of
from finetune_pipeline.records import Drop, Example, Review


class Edits:
    """The rules for one corrected row, for one declaration."""

    def __init__(self, task: Task, count_tokens: lengths.TokenCounter | None = None) -> None:
        self._task, self._count_tokens = task, count_tokens
        self._cleaner = RowCleaner(task.clean, task.answer)
        self._rules = rules_of(task)

    def applied(self, row: Example, completion: str) -> tuple[Example, list[str]]:
        """The row with the cleaned completion, and a slug for each fix. RowDropped when it cannot be trained on."""
        edited, slugs = self._cleaner.clean(replace(row.with_completion(completion), rejected=None))
        edited = replace(edited, rejected=_rejected_for(row, edited.completion))
        if self._count_tokens is not None:
            length = lengths.measure([edited], self._task.prompt.system, self._count_tokens)[0]
            complaint = lengths.out_of_bounds(length, self._task.clean)
            if complaint is not None:
                raise RowDropped(*complaint)
            if length.rejected > self._task.clean.max_tokens:
                edited, slugs = _without_rejected(edited, slugs, "too-long")
        failed = self._broken_by(edited)
        if failed and edited.rejected is not None and not self._broken_by(replace(edited, rejected=None)):
            edited, slugs = _without_rejected(edited, slugs, "unusable")  # a secret, say, for which it was corrected
        elif failed:
            raise RowDropped(failed[0].name.replace("_", "-"), f"required: {failed[0].description}")
        return edited, slugs

    def _broken_by(self, row: Example) -> list[Rule]:
        return broken_by(row, self._task, self._rules)


def _rejected_for(row: Example, completion: str) -> str | None:
    """What an edit to this completion is preferred to; all texts are cleaned."""
    if row.rejected is not None and not _same_words(completion, row.rejected):
        return row.rejected
    return None if _same_words(completion, row.completion) else row.completion


def _same_words(left: str, right: str) -> bool:
    return left.split() == right.split()


def _without_rejected(row: Example, slugs: list[str], why: str) -> tuple[Example, list[str]]:
    removed = without_rejected(row, why)
    return removed.row, [*slugs, *removed.slugs]


def without_personal(review: Review, task: Task) -> Review:
    """The verdict with personal data in note and completion masked, unless the task keeps personal data."""
    if task.clean.personal_data == "keep":
        return review
    completion = None if review.completion is None else mask(review.completion)[0]
    return replace(review, completion=completion, note=mask(review.note)[0])


def without_repeated(rows: Sequence[Example], edited: frozenset[str], task: Task) -> tuple[list[Example], list[Drop]]:
    """The rows without those that an edit made duplicates, and their drops. `edited`: ids of edited rows. Before the
    edits there were no duplicates, so only two rows of which one is edited are checked. Of the two, one with a rejected
    completion stays before one without, else the first."""
    completions = [identity(row.completion) for row in rows]
    edited_at = [i for i, row in enumerate(rows) if row.id in edited]
    new_completions = {completions[i] for i in edited_at}
    same = [i for i, completion in enumerate(completions) if completion in new_completions]
    drops = {drop.id: drop for drop in _exact([rows[i] for i in same], task)}
    if task.clean.near_duplicate_threshold < 1 and len(same) > 1:
        drops = _near(rows, edited_at, completions, task) | drops
    return [row for row in rows if row.id not in drops], list(drops.values())


def _exact(rows: Sequence[Example], task: Task) -> Sequence[Drop]:
    from finetune_pipeline.clean.duplicates import without_duplicates  # needs numpy, which the desk does not load

    exact = task.clean.model_copy(update={"near_duplicate_threshold": 1.0, "contradictions": "keep"})
    return without_duplicates(rows, exact, task.answer).drops


def _near(rows: Sequence[Example], edited_at: Sequence[int], completions: Sequence[str], task: Task) -> dict[str, Drop]:
    """Drops of one of each two rows with near-duplicate prompts and one completion. Similarity is measured over all
    rows, as in cleaning."""
    from finetune_pipeline.clean.duplicates import prompt_text
    from finetune_pipeline.clean.similarity import measure, resemblance

    prompts = [prompt_text(row) for row in rows]
    similarities = measure(prompts, task.clean.near_duplicate_threshold)
    drops: dict[str, Drop] = {}
    for i in edited_at:
        same = [j for j, completion in enumerate(completions) if completion == completions[i] and j != i]
        for _, j, similarity in similarities.between([i], same) if same else ():
            if resemblance(prompts[i], prompts[j]) < task.clean.near_duplicate_threshold:
                continue  # similar only without their instructions
            first, later = (rows[at] for at in sorted((i, j), key=lambda at: (rows[at].rejected is None, at)))
            if first.id not in drops:
                detail = f"of {first.id} ({first.origin}), similarity {similarity:.2f}, after an edit"
                drops.setdefault(later.id, Drop(later.id, later.origin, "review", "near-duplicate", detail))
    return drops

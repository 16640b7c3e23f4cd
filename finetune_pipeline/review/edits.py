"""An expert's correction goes the way of every row: through the cleaning's rules for one row, then the quality gate's.

    edits = Edits(task, count)
    edits.applied(row, '{ "intent": "Refund", "note": "mail jo@example.com" }')
    → (row with the answer '{"intent": "refund", "note": "mail <EMAIL>"}', ["completion-label", "pii-email"])

The desk asks before it keeps a correction, so that the expert reads what is wrong with it; the review asks again, since
verdicts come from files too, and drops what does not pass. Without `count` (which counts tokens, and takes the base
model's tokenizer) the length in tokens is not checked. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetune_pipeline.clean import lengths
from finetune_pipeline.clean.normalize import identity
from finetune_pipeline.clean.pii import mask
from finetune_pipeline.clean.row_cleaner import RowCleaner, RowDropped
from finetune_pipeline.config import Task
from finetune_pipeline.quality.rules import rules_of
from finetune_pipeline.records import Drop, Example, Review


class Edits:
    """The rules for one corrected row, for one declaration."""

    def __init__(self, task: Task, count: lengths.Counter | None = None) -> None:
        self._task, self._count = task, count
        self._cleaner = RowCleaner(task.clean, task.answer)
        self._rules = [rule for rule in rules_of(task) if rule.check is not None]

    def applied(self, row: Example, answer: str) -> tuple[Example, list[str]]:
        """The row with this answer as it may be trained on, and a slug for each change. Refused says why it may not."""
        edited, slugs = self._cleaner.clean(row.with_completion(answer))
        if self._count is not None:
            length = lengths.measure([edited], self._task.prompt.system, self._count)[0]
            complaint = lengths.out_of_bounds(length, self._task.clean)
            if complaint is not None:
                raise RowDropped(*complaint)
        broken = [rule for rule in self._rules if rule.check is not None and not rule.check([edited])[0]]
        if broken:
            raise RowDropped(broken[0].name.replace("_", "-"), f"it has to hold that {broken[0].says}")
        return edited, slugs


def without_personal(review: Review, task: Task) -> Review:
    """The verdict as it may be kept and shown: no personal data in note or answer, where the task masks or drops it."""
    if task.clean.personal_data == "keep":
        return review
    answer = None if review.completion is None else mask(review.completion)[0]
    return replace(review, completion=answer, note=mask(review.note)[0])


def without_repeated(rows: Sequence[Example], edited: frozenset[str], task: Task) -> tuple[list[Example], list[Drop]]:
    """The rows without those that a correction made duplicates, and their drops. Before the corrections there were
    none, so only pairs with a corrected row are looked for; of each, the first stays."""
    said = [identity(row.completion) for row in rows]
    corrected = [i for i, row in enumerate(rows) if row.id in edited]
    answers = {said[i] for i in corrected}
    same = [i for i, answer in enumerate(said) if answer in answers]
    drops = {drop.id: drop for drop in _exact([rows[i] for i in same], task)}
    if task.clean.near_duplicate_threshold < 1 and len(same) > 1:
        drops = _near(rows, corrected, said, task) | drops
    return [row for row in rows if row.id not in drops], list(drops.values())


def _exact(rows: Sequence[Example], task: Task) -> Sequence[Drop]:
    from finetune_pipeline.clean.duplicates import without_duplicates  # numpy, which the desk does without

    exact = task.clean.model_copy(update={"near_duplicate_threshold": 1.0, "contradictions": "keep"})
    return without_duplicates(rows, exact, task.answer).drops


def _near(rows: Sequence[Example], corrected: Sequence[int], said: Sequence[str], task: Task) -> dict[str, Drop]:
    """Of near questions with one answer the later row; how near is measured among all rows, as the cleaning does."""
    from finetune_pipeline.clean.duplicates import prompt_text
    from finetune_pipeline.clean.similarity import measure, resemblance

    asked = [prompt_text(row) for row in rows]
    alike = measure(asked, task.clean.near_duplicate_threshold)
    drops: dict[str, Drop] = {}
    for i in corrected:
        same = [j for j, answer in enumerate(said) if answer == said[i] and j != i]
        for _, j, similarity in alike.between([i], same) if same else ():
            if resemblance(asked[i], asked[j]) < task.clean.near_duplicate_threshold:
                continue  # alike only without their instructions
            first, later = rows[min(i, j)], rows[max(i, j)]
            if first.id not in drops:
                detail = f"of {first.id} ({first.origin}), similarity {similarity:.2f}, since a correction"
                drops.setdefault(later.id, Drop(later.id, later.origin, "review", "near-duplicate", detail))
    return drops

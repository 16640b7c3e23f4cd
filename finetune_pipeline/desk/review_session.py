"""The current sample as one reviewer sees it: rows, verdicts, the result of the gate so far.

session = open_review("support_tickets", "anna")      # None before a sample is drawn
session.queue.next_after(None), session.verdict.summary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_pipeline.config import Task
from finetune_pipeline.desk.review_queue import ReviewQueue, queue_of
from finetune_pipeline.materialize import open_task
from finetune_pipeline.records import Artifact, Example, Message, Review, Verdict
from finetune_pipeline.review import gate, history, verdict_store
from finetune_pipeline.review.flagged import Flagged, flagged_in, flagged_rows
from finetune_pipeline.store import TaskStore


@dataclass(frozen=True)
class ReviewSession:
    """`pairs`: near-duplicate prompts with different completions."""

    task: Task
    store: TaskStore
    sample: Artifact
    reviews: Sequence[Review]
    queue: ReviewQueue
    reviewer: str
    pairs: tuple[Flagged, ...] = ()

    def conflicts(self, row: Example) -> list[Example]:
        """The rows with nearly the same prompt and another completion."""
        return [other for pair in self.pairs if row in pair.rows for other in pair.rows if other != row]

    def reviewers_of(self, row: Example) -> list[str]:
        """Who gave a verdict on the current content of the row."""
        return [review.reviewer for review in verdict_store.by_row([row], self.reviews)[row.id]]

    @property
    def verdict(self) -> Verdict:
        """The result of the gate for the rows that have all their verdicts now."""
        about = str(self.sample.manifest["inputs"].get("clean_examples", ""))
        drawn = history.round_of(self.sample)
        earlier = history.load_history(self.store).results_in(drawn.number)
        return gate.evaluate_review(self.queue.rows, self.reviews, self.task.review, about, drawn, earlier)

    @property
    def is_outdated(self) -> bool:
        """Whether the cleaned rows changed since the sample was drawn."""
        clean = self.store.current("clean_examples")
        return clean is not None and self.sample.manifest["inputs"].get("clean_examples") != clean.content_hash

    @property
    def is_used(self) -> bool:
        """Whether the current expert_review was made from this sample."""
        review = self.store.current("expert_review")
        made_from = review.manifest["inputs"].get("review_sample") if review else None
        return made_from == self.sample.content_hash


def open_review(name: str, reviewer: str) -> ReviewSession | None:
    """The review of a task; None before a sample is drawn."""
    task, store = open_task(name)
    sample = store.current("review_sample")
    if sample is None:
        return None
    rows, pairs = list(sample.examples("sample.jsonl")), tuple(flagged_in(sample))
    flagged = flagged_rows(pairs, rows)
    reviews = verdict_store.load_for(store, task, [*rows, *flagged])
    queue = queue_of(rows, reviews, task.review, reviewer, flagged)
    return ReviewSession(task, store, sample, reviews, queue, reviewer, pairs)


def earlier_messages(row: Example) -> list[Message]:
    """The messages of a conversation without prompt and completion, which are found by position: an earlier message
    may have the same text as the prompt."""
    last = len(row.messages) - 1
    prompt = max((index for index, message in enumerate(row.messages) if message.role == "user"), default=-1)
    completion = last if row.ends_with_completion else -1
    return [message for index, message in enumerate(row.messages) if index not in (prompt, completion)]

"""The status of a task for the front page: a state for each stage, and what this user has to do.

    status_of("support_tickets", "anna")
    TaskStatus("support_tickets", steps=(StepState("ingest", "fresh"), ...), todo=(TodoItem(...),), ...)

States: fresh, stale and missing are those of `materialize.plan`; failed is a fresh asset whose verdict failed; waiting
(for this user), others and ready are states of the review. A stage with several assets has the state of the worst one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from finetune_pipeline.config import Task
from finetune_pipeline.desk.labels import OUTCOMES, bare, capitalized, failed_gate, plural
from finetune_pipeline.errors import DeclarationError, FinetuneError
from finetune_pipeline.ingest.sources import missing
from finetune_pipeline.materialize import Plan, open_task, plan
from finetune_pipeline.records import Review
from finetune_pipeline.review.history import round_of
from finetune_pipeline.review.verdict_store import Progress, load, progress, todo
from finetune_pipeline.store import STAGES, TaskStore

# The stages as steps. The base model is not a step for the users of the desk: it is part of the first one.
STEPS: Mapping[str, tuple[str, ...]] = {
    stage: (*STAGES["models"], *assets) if stage == "ingest" else assets
    for stage, assets in STAGES.items()
    if stage != "models"
}
State: TypeAlias = Literal["failed", "waiting", "others", "ready", "stale", "missing", "fresh"]  # worst first
WORST_FIRST: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, slots=True)
class ReviewState:
    """The review for one user; `left` rows still need this user's verdict."""

    progress: Progress
    left: int
    round: int = 1


@dataclass(frozen=True, slots=True)
class AssetState:
    """The state of one asset, and its plan."""

    plan: Plan
    state: State

    @property
    def asset(self) -> str:
        """Its name."""
        return self.plan.asset


@dataclass(frozen=True, slots=True)
class StepState:
    """The state of a stage."""

    name: str
    state: State


@dataclass(frozen=True, slots=True)
class TodoItem:
    """One thing to do or to know. `tone`: "you" (needs this user), "bad" or "good"; `action`: the text of the link;
    `page`: its target, after /tasks/<task>."""

    task: str
    tone: Literal["you", "bad", "good"]
    title: str
    text: str
    action: str
    page: str = ""


@dataclass(frozen=True)
class TaskStatus:
    """`problem` is the error that prevents reading the task; all other fields are then empty."""

    name: str
    task: Task | None = None
    assets: tuple[AssetState, ...] = ()
    steps: tuple[StepState, ...] = ()
    todo: tuple[TodoItem, ...] = ()
    review: ReviewState | None = None
    problem: FinetuneError | None = None
    problems: tuple[str, ...] = field(default=())

    @property
    def is_declaration_invalid(self) -> bool:
        """Whether the declaration prevents reading the task, and not a damaged artifact, for example."""
        return isinstance(self.problem, DeclarationError)


def status_of(name: str, person: str) -> TaskStatus:
    """The status of a task for a user, read from the store. A FinetuneError becomes `problem`."""
    try:
        return _status_of(name, person)
    except FinetuneError as error:
        problems = error.problems if isinstance(error, DeclarationError) else ()
        return TaskStatus(name, problem=error, problems=problems)


def _status_of(name: str, person: str) -> TaskStatus:
    task, store = open_task(name)
    review = review_state(task, store, person)
    assets = asset_states(plan(task, store), review)
    items = (*_missing_sources(name, missing(task, store.root)), *todo_items(name, assets, review))
    return TaskStatus(name, task, assets, step_states(assets), items, review)


def _missing_sources(name: str, messages: Sequence[str]) -> list[TodoItem]:
    """Declared files that do not exist: the next run would fail."""
    hint = "Add the file, or correct `sources` in the declaration. Finished results are kept."
    texts = [f"{capitalized(message)}. {hint}" for message in messages]
    return [TodoItem(name, "bad", "A source is missing", text, "See the rows", "#rows") for text in texts]


def review_state(task: Task, store: TaskStore, person: str) -> ReviewState | None:
    """None before a sample is drawn."""
    sample = store.current("review_sample")
    if sample is None:
        return None
    rows = list(sample.examples("sample.jsonl"))
    reviews: list[Review] = load(store, task, sample)
    left = todo(rows, reviews, task.review, person)
    return ReviewState(progress(rows, reviews, task.review), len(left), round_of(sample).number)


def asset_states(plans: Sequence[Plan], review: ReviewState | None) -> tuple[AssetState, ...]:
    """The states of the plan, refined by verdicts and by the progress of the review."""
    has_sample = any(plan.asset == "review_sample" and plan.state == "fresh" for plan in plans)
    return tuple(AssetState(plan, _refined(plan, review if has_sample else None)) for plan in plans)


def _refined(plan: Plan, review: ReviewState | None) -> State:
    if plan.asset == "expert_review" and plan.state != "fresh" and review is not None:
        if review.progress.complete:
            return "ready"
        return "waiting" if review.left else "others"
    verdict = plan.artifact.verdict if plan.artifact else None
    failed = plan.state == "fresh" and verdict is not None and not verdict.passed
    return "failed" if failed else plan.state


def step_states(assets: Sequence[AssetState]) -> tuple[StepState, ...]:
    """The worst state of the assets of each stage."""
    states = {asset.asset: asset.state for asset in assets}
    return tuple(
        StepState(stage, min((states[name] for name in names), key=WORST_FIRST.index)) for stage, names in STEPS.items()
    )


def todo_items(name: str, assets: Sequence[AssetState], review: ReviewState | None) -> tuple[TodoItem, ...]:
    """What a user has to do or to know, most urgent first."""
    items = [_failed_gate(name, asset) for asset in assets if asset.state == "failed"]
    state = next(asset.state for asset in assets if asset.asset == "expert_review")
    if review is not None and state == "waiting":
        items.insert(0, _rows_to_review(name, review))
    elif state == "ready":
        text = "Every row of the sample has its verdicts. The next run of the pipeline uses them."
        items.append(TodoItem(name, "good", "The review is complete", text, "See the result", "/review"))
    return tuple(items)


def _rows_to_review(name: str, review: ReviewState) -> TodoItem:
    done, total = review.progress.done, review.progress.total
    title = f"{plural(review.left, 'row')} to review"
    again = "" if review.round == 1 else f"This is round {review.round}, with rows that nobody has reviewed before. "
    text = f"{again}{done} of {total} rows are reviewed. Training starts after all of them are reviewed."
    return TodoItem(name, "you", title, text, "Continue the review" if done else "Start the review", "/review")


def _failed_gate(name: str, asset: AssetState) -> TodoItem:
    artifact = asset.plan.artifact
    title, hint = failed_gate(asset.asset)
    if artifact is not None and asset.asset == "release_decision":
        with artifact.reading("decision.json"):
            title = OUTCOMES[artifact.json("decision.json")["outcome"]]
    page = {"data_quality": "/quality", "expert_review": "/review"}.get(asset.asset, f"#{asset.asset}")
    summary = bare(artifact.verdict.summary).rstrip(".") if artifact and artifact.verdict else ""
    return TodoItem(name, "bad", title, f"{summary}. {hint}", "See the reasons", page)

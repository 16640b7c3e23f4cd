"""Where each task stands, for the front page: ten steps with a state each, and what waits for the person who looks.

    status_of("support_tickets", "anna") -> TaskStatus(steps=(StepState("read", "fresh"), ...), waiting=(Waiting(...),))

States: fresh, stale and missing come from `materialize.plan`; failed is a verdict that says no about what is there now;
waiting (for this person), others and ready are about the review. A step of several assets has the state of its worst.

What it is not: the story of one task (task_view.py), or HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from finetune_pipeline.config import Task
from finetune_pipeline.desk.labels import OUTCOMES, bare, first_up, plural, refusal
from finetune_pipeline.errors import DeclarationError, FinetuneError
from finetune_pipeline.ingest.sources import missing
from finetune_pipeline.materialize import Plan, open_task, plan
from finetune_pipeline.records import Review
from finetune_pipeline.review.history import round_of
from finetune_pipeline.review.verdict_store import Progress, load, progress, todo
from finetune_pipeline.store import TaskStore

STEPS: Mapping[str, tuple[str, ...]] = {
    "read": ("base_model", "raw_examples"),
    "clean": ("clean_examples", "suitability_report"),
    "quality": ("data_quality",),
    "review": ("review_sample", "expert_review"),
    "split": ("data_split", "baseline_report"),
    "train": ("adapter",),
    "evaluate": ("eval_report",),
    "decide": ("release_decision",),
    "serve": ("registered_model", "deployed_endpoint"),
    "watch": ("traffic_report",),
}
WORST = ("failed", "waiting", "others", "ready", "stale", "missing", "fresh")


@dataclass(frozen=True, slots=True)
class ReviewState:
    """The review as one person sees it: `mine` rows still need this person's verdict."""

    progress: Progress
    mine: int
    needed: int
    round: int = 1


@dataclass(frozen=True, slots=True)
class AssetState:
    plan: Plan
    state: str

    @property
    def asset(self) -> str:
        return self.plan.asset


@dataclass(frozen=True, slots=True)
class StepState:
    name: str
    state: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """One thing to do: what, why, and the page (below the task's) where it is done."""

    task: str
    tone: str
    title: str
    text: str
    action: str
    page: str = ""


@dataclass(frozen=True)
class TaskStatus:
    """A task as the front page shows it. A broken declaration has `problem` and nothing else."""

    name: str
    task: Task | None = None
    assets: tuple[AssetState, ...] = ()
    steps: tuple[StepState, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    review: ReviewState | None = None
    problem: FinetuneError | None = None
    problems: tuple[str, ...] = field(default=())

    def state_of(self, asset: str) -> str:
        return next((each.state for each in self.assets if each.asset == asset), "missing")


def status_of(name: str, person: str) -> TaskStatus:
    """Read all of it from the store. Whatever a person can hint is told in `problem`, never raised."""
    try:
        return _status_of(name, person)
    except FinetuneError as error:
        problems = error.problems if isinstance(error, DeclarationError) else ()
        return TaskStatus(name, problem=error, problems=problems)


def _status_of(name: str, person: str) -> TaskStatus:
    task, store = open_task(name)
    review = review_state(task, store, person)
    assets = asset_states(plan(task, store), review)
    items = (*_lost(name, missing(task, store.root)), *waiting(name, assets, review))
    return TaskStatus(name, task, assets, step_states(assets), items, review)


def _lost(name: str, sources: Sequence[str]) -> list[Waiting]:
    """Declared files that are not there: the next run would fail."""
    hint = "Put it there, or correct `sources` in the declaration. What was made so far is kept."
    told = [f"{first_up(said)}. {hint}" for said in sources]
    return [Waiting(name, "bad", "A source is missing", text, "See the rows", "#rows") for text in told]


def review_state(task: Task, store: TaskStore, person: str) -> ReviewState | None:
    """None where no sample was drawn yet."""
    sample = store.current("review_sample")
    if sample is None:
        return None
    rows = list(sample.examples("sample.jsonl"))
    reviews: list[Review] = load(store, task, sample)
    mine = todo(rows, reviews, task.review, person)
    return ReviewState(progress(rows, reviews, task.review), len(mine), task.review.reviewers, round_of(sample).number)


def asset_states(plans: Sequence[Plan], review: ReviewState | None) -> tuple[AssetState, ...]:
    """The plan's states, refined by verdicts and by how far the people are."""
    sampled = any(each.asset == "review_sample" and each.state == "fresh" for each in plans)
    return tuple(AssetState(each, _refined(each, review if sampled else None)) for each in plans)


def _refined(each: Plan, review: ReviewState | None) -> str:
    if each.asset == "expert_review" and each.state != "fresh" and review is not None:
        if review.progress.complete:
            return "ready"
        return "waiting" if review.mine else "others"
    verdict = each.artifact.verdict if each.artifact else None
    refused = each.state == "fresh" and verdict is not None and not verdict.passed
    return "failed" if refused else each.state


def step_states(assets: Sequence[AssetState]) -> tuple[StepState, ...]:
    found = {each.asset: each.state for each in assets}
    return tuple(
        StepState(name, min((found[asset] for asset in members), key=WORST.index)) for name, members in STEPS.items()
    )


def waiting(name: str, assets: Sequence[AssetState], review: ReviewState | None) -> tuple[Waiting, ...]:
    """What a person has to do, or should know, most urgent first."""
    states = {each.asset: each for each in assets}
    items = [_refusal(name, each) for each in assets if each.state == "failed"]
    state = states["expert_review"].state
    if review is not None and state == "waiting":
        items.insert(0, _review_waits(name, review))
    elif state == "ready":
        text = "Every row of the sample has its verdicts; the next run of the pipeline takes them up."
        items.append(Waiting(name, "good", "The review is complete", text, "See the result", "/review"))
    return tuple(items)


def _review_waits(name: str, review: ReviewState) -> Waiting:
    done, total = review.progress.done, review.progress.total
    title = f"{plural(review.mine, 'row')} to review"
    again = "" if review.round == 1 else f"This is round {review.round}, with rows that nobody has reviewed before. "
    text = f"{again}{done} of {total} rows are reviewed. Nothing is trained before the experts have judged all of them."
    return Waiting(name, "you", title, text, "Go on reviewing" if done else "Start reviewing", "/review")


def _refusal(name: str, each: AssetState) -> Waiting:
    artifact = each.plan.artifact
    title, hint = refusal(each.asset)
    if artifact is not None and each.asset == "release_decision":
        with artifact.reading("decision.json"):
            title = OUTCOMES[artifact.json("decision.json")["outcome"]]
    page = {"data_quality": "/quality", "expert_review": "/review"}.get(each.asset, f"#{each.asset}")
    said = bare(artifact.verdict.summary).rstrip(".") if artifact and artifact.verdict else ""
    return Waiting(name, "bad", title, f"{said}. {hint}", "Read why", page)

"""The state of tasks for the terminal. Reads artifacts; makes nothing, and does not load Dagster.

summary("support_tickets")             rows, gates, results, decision, endpoint, last move of the traffic, next steps
overview()                             one line per task
validation_report("support_tickets")   DeclarationError with every problem, else a confirmation
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetune_pipeline import tracking
from finetune_pipeline.baseline.report import BaselineReport
from finetune_pipeline.baseline.variants import TUNED, title
from finetune_pipeline.config import Task
from finetune_pipeline.config.addresses import address, mlflow_page
from finetune_pipeline.desk.labels import plural, when
from finetune_pipeline.errors import DeclarationError, FinetuneError, ModelError, WaitingForPeople
from finetune_pipeline.graph import STEPS
from finetune_pipeline.materialize import Plan, open_task, plan
from finetune_pipeline.records import Artifact, read_jsonl
from finetune_pipeline.serve import deployment_state
from finetune_pipeline.serve.deployment_report import DeploymentReport
from finetune_pipeline.serve.deployment_state import HistoryEntry
from finetune_pipeline.split.accounting import account_of
from finetune_pipeline.statistics.formatting import percent
from finetune_pipeline.store import TaskStore, data_root, task_names

BAR_WIDTH = 18  # characters; with the longest title it fits into 80 columns


def summary(name: str) -> RenderableType:
    """One task in detail: a line for each finished part. DeclarationError when the declaration is invalid."""
    task, store = open_task(name)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in _sections(task, store):
        grid.add_row(label, Text(text) if isinstance(text, str) else text)  # Text: brackets are not markup
    return Group(Text(""), grid)


def _sections(task: Task, store: TaskStore) -> Iterable[tuple[str, RenderableType]]:
    yield task.name, Text(task.description, style="dim")
    made = {step.asset: artifact for step in STEPS if (artifact := store.current(step.asset)) is not None}
    if not made:
        yield "", "no artifact yet"
    for label, asset, render in (
        ("data", "clean_examples", lambda a: _rows(made, a)),
        ("gates", "suitability_report", lambda a: _gate("suitability", a)),
        ("", "data_quality", lambda a: _gate("quality", a)),
        ("", "expert_review", lambda a: _gate("review", a)),
        ("", "data_split", lambda a: _gate("split", a)),
        ("plan", "training_plan", lambda a: _gate("training", a)),
        ("search", "training_search", _search),
        ("result", "baseline_report", lambda a: _results(made.get("eval_report") or a)),
        ("", "release_decision", _difference),
        ("decision", "release_decision", _decision),
        ("endpoint", "deployed_endpoint", _endpoint),
    ):
        if asset in made and (asset != "training_search" or task.search is not None):
            yield label, render(made[asset])
    if waiting := [journal for journal in tracking.pending() if journal.about.task == task.name]:
        yield "MLflow", f"{plural(len(waiting), 'training')} to deliver: `finetune sync`, when MLflow answers"
    if history := deployment_state.read(store).history:
        yield "traffic", _last_transition(history)
    yield "next", _next(task, store)


def _rows(made: Mapping[str, Artifact], clean: Artifact) -> str:
    split = made.get("data_split")
    if split is None:
        ledgers = (read_jsonl(artifact.path("drops.jsonl")) for artifact in (made["raw_examples"], clean))
        drops = Counter(drop["reason"] for ledger in ledgers for drop in ledger)
        kept = sum(1 for _ in clean.examples())
        splits = ""
    else:
        account = account_of(split)
        drops = account.dropped_by_reason
        kept = sum(account.splits.values())
        splits = " (" + ", ".join(f"{rows} {name}" for name, rows in account.splits.items()) + ")"
    reasons = ", ".join(f"{rows} {reason}" for reason, rows in drops.most_common())
    return f"{kept + drops.total()} rows read, {kept} kept{splits}, {drops.total()} dropped: {reasons or 'none'}"


def _gate(name: str, artifact: Artifact) -> Text:
    verdict = artifact.verdict
    if verdict is None:
        return Text(f"{name}: no verdict was stored", style="red")
    mark = Text("✓ ", "green") if verdict.passed else Text("✗ ", "red")
    return mark + Text(f"{name}: {verdict.summary}", style="")


def _search(artifact: Artifact) -> str:
    """The best trial, its settings, and how many were compared; the declaration may have been changed since."""
    summary = artifact.summary
    if "best_trial" not in summary:
        return "not made for the declared search yet"
    values = ", ".join(f"{name} {value}" for name, value in dict(summary["best_values"]).items())
    return (
        f"trial {summary['best_trial']} of {summary['trials']} is the best by validation {summary['metric']}: {values} "
        f"({summary['pruned']} ended early, {summary['failed']} failed)"
    )


def _results(report: Artifact) -> RenderableType:
    figures: BaselineReport = report.json("report.json")
    table = Table.grid(padding=(0, 2))
    table.add_row(Text(f"exactly right, of {figures['rows']} test rows", style="dim"), "", "")
    for name, figure in figures["variants"].items():
        bar = Text("█" * round(BAR_WIDTH * figure["exact"]), style="green" if name == TUNED else "blue")
        table.add_row(title(name), f"{percent(figure['exact']):>6}", bar)
    return table


def _difference(decision: Artifact) -> str:
    figures = decision.json("decision.json")["figures"]
    gain = figures.get("gain")
    if not gain:
        return ""
    low, high = gain["interval"]
    return (
        f"Tuned model minus {title(gain['over'])}: {100 * gain['difference']:+.1f} points "
        f"(95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
    )


def _decision(artifact: Artifact) -> Text:
    decision = artifact.json("decision.json")
    style = {"PROMOTE": "bold green", "REJECT": "bold red"}.get(decision["outcome"], "bold yellow")
    reasons = decision["summary"].removeprefix(f"{decision['outcome']}: ")
    return Text(decision["outcome"], style=style) + Text(f"  {reasons}", style="")


def _endpoint(artifact: Artifact) -> Text:
    report: DeploymentReport = artifact.json("endpoint.json")
    sample = report["sample"]
    text = Text(f"{artifact.verdict.summary if artifact.verdict else ''}\n")
    if sample:
        text += Text(f"prompt  {sample['prompt']}\n", style="dim")
        text += Text(f"tuned   {sample['tuned']}\n", style="green")
        text += Text(f"base    {' '.join(sample['base'].split())[:160]}", style="blue")
    return text


def _last_transition(history: Sequence[HistoryEntry]) -> str:
    """The newest change of what serves: "rollback from version 4 to version 3, 5 Jan 2026, 10:00 UTC: wrong prices"."""
    last = history[-1]
    numbers = {entry.after: entry.version for entry in history if entry.action != "unhold"}
    before = f" from version {numbers[last.before]}" if last.before in numbers and last.before != last.after else ""
    about = {
        "promote": f"{before} to version {last.version}",
        "rollback": f"{before} to version {last.version}",
        "settings": f" of version {last.version}",
        "unhold": f" of version {last.version}",
    }[last.action]
    return f"{last.action}{about}, {when(last.at)}" + (f": {last.reason}" if last.reason else "")


def _next(task: Task, store: TaskStore) -> str:
    todo = [each.asset for each in plan(task, store) if each.state != "fresh"]
    adapter = store.current("adapter")
    places = (
        f"`make up` (or `finetune up`), then\n"
        f"  desk        {address('FINETUNE_DESK_URL')}/tasks/{task.name}\n"
        f"  graph       {address('FINETUNE_DAGSTER_URL')}\n"
        f"  training    {mlflow_page(adapter and adapter.summary.get('mlflow_experiment_id'))}\n"
        f"  endpoint    {address('FINETUNE_ENDPOINT_URL')}/v1\n"
        f"  artifacts   {store.root}"
    )
    return places if not todo else f"to make: {', '.join(todo)}\n{places}"


def overview() -> RenderableType:
    """A table with one line per task: fresh assets, state, next step."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("task", "made", "state", "next"):
        table.add_column(column)
    for name in task_names():
        table.add_row(*(Text(cell) for cell in (name, *_line(name))))
    if not table.row_count:
        return Text(f"no task in {data_root()}; make one with `finetune init`")
    return table


def _line(name: str) -> tuple[str, str, str]:
    """Made, state and next step of a task; an error is reported in its own line, so that it hides no other task."""
    try:
        return _state(name)
    except DeclarationError as error:
        return "", "invalid declaration", "; ".join((error.message, *error.problems))
    except FinetuneError as error:
        return "", "unreadable", f"{error.message}; {error.hint}" if error.hint else error.message


def _state(name: str) -> tuple[str, str, str]:
    from finetune_pipeline.ingest.sources import missing
    from finetune_pipeline.review.waiting import require_review_complete

    task, store = open_task(name)
    plans = plan(task, store)
    made = f"{sum(each.state == 'fresh' for each in plans)} of {len(plans)}"
    if missing_files := missing(task, store.root):
        return made, "sources missing", "; ".join(missing_files)
    if failed := _failed_gate(plans):
        return made, f"{failed[0]} failed", failed[1]
    try:
        require_review_complete(task, store)
    except WaitingForPeople as waiting:
        return made, "expert_review", waiting.message
    todo = next((each for each in plans if each.state != "fresh"), None)
    if todo is None:
        return made, "deployed", "nothing to do: every asset is fresh"
    return made, todo.asset, f"{todo.state}; run `finetune run {name}`"


def _failed_gate(plans: Iterable[Plan]) -> tuple[str, str] | None:
    """The first fresh asset whose verdict failed, and the verdict's summary."""
    for each in plans:
        verdict = each.artifact.verdict if each.state == "fresh" and each.artifact else None
        if verdict is not None and not verdict.passed:
            return each.asset, verdict.summary
    return None


def validation_report(name: str) -> str:
    """A confirmation with notes on files that will be dropped. DeclarationError lists every problem of declaration,
    sources, expectations, base model, training and recorded verdicts."""
    from finetune_pipeline.ingest.sources import problems, remarks
    from finetune_pipeline.models.model_source import check_available
    from finetune_pipeline.quality import expectations
    from finetune_pipeline.review.verdict_store import recorded_file
    from finetune_pipeline.train import declared

    task, store = open_task(name)
    errors = [*problems(task, store), *expectations.problems(task)]
    try:
        check_available(task)
    except ModelError as error:
        errors.append(f"base: {error.message} ({error.hint})")
    errors += declared.problems(task)
    try:
        recorded_file(store, task)
    except FinetuneError as error:
        errors.append(f"{error.message} ({error.hint})")
    if errors:
        raise DeclarationError(f"{name} has {plural(len(errors), 'problem')}", problems=tuple(errors))
    sources = plural(len(task.sources), "source")
    valid = f"{name} is valid: declaration, {sources} and base model. Next: `finetune run {name}`"
    return "\n".join([valid, *(f"  note: {remark}" for remark in remarks(task, store))])

"""Where a task stands, in words a person reads in ten seconds. Reads artifacts; makes and decides nothing.

summary("support_tickets")    rows, gates, results, decision, endpoint, where to look next
overview()                    a line for each task
validation_report("my_task")       every problem of a declaration at once (DeclarationError if there is one)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetune_pipeline.config import Task
from finetune_pipeline.config.addresses import address
from finetune_pipeline.errors import DeclarationError, FinetuneError, ModelError, WaitingForPeople
from finetune_pipeline.graph import STEPS
from finetune_pipeline.materialize import open_task, plan
from finetune_pipeline.records import Artifact
from finetune_pipeline.store import TaskStore, data_root, task_names

NAMES = {
    "zero_shot": "base, instruction only",
    "few_shot": "base, with examples",
    "few_shot_retrieved": "base, with the nearest examples",
    "classical": "classical model (no language model)",
    "champion": "live version",
    "tuned": "tuned",
}


def summary(name: str) -> RenderableType:
    """The story of one task so far; what has not been made yet is left out."""
    task, store = open_task(name)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in _sections(task, store):
        grid.add_row(label, Text(text) if isinstance(text, str) else text)  # a text of a person may hold brackets
    return Group(Text(""), grid)


def _sections(task: Task, store: TaskStore) -> Iterable[tuple[str, RenderableType]]:
    yield task.name, Text(task.description, style="dim")
    made = {step.asset: artifact for step in STEPS if (artifact := store.current(step.asset)) is not None}
    if not made:
        yield "", "nothing has been made yet"
    for label, asset, tell in (
        ("data", "clean_examples", lambda a: _rows(made, a)),
        ("gates", "suitability_report", lambda a: _gate("suitability", a)),
        ("", "data_quality", lambda a: _gate("quality", a)),
        ("", "expert_review", lambda a: _gate("review", a)),
        ("", "data_split", lambda a: _gate("no leak", a)),
        ("result", "baseline_report", lambda a: _results(made.get("eval_report") or a)),
        ("", "release_decision", _difference),
        ("decision", "release_decision", _decision),
        ("endpoint", "deployed_endpoint", _endpoint),
    ):
        if asset in made:
            yield label, tell(made[asset])
    yield "next", _next(task, store)


def _rows(made: dict[str, Artifact], clean: Artifact) -> str:
    split = made.get("data_split")
    if split is None:
        drops = Counter(d["reason"] for a in (made["raw_examples"], clean) for d in _jsonl(a, "drops.jsonl"))
        kept = sum(1 for _ in clean.examples())
        splits = ""
    else:
        account = split.json("accounting.json")
        drops = Counter({r: n for reasons in account["dropped"].values() for r, n in reasons.items()})
        kept = sum(account["splits"].values())
        splits = " (" + ", ".join(f"{n} {split}" for split, n in account["splits"].items()) + ")"
    reasons = ", ".join(f"{n} {reason}" for reason, n in drops.most_common())
    return f"{kept + drops.total()} rows in, {kept} kept{splits}, {drops.total()} dropped: {reasons or 'none'}"


def _jsonl(artifact: Artifact, name: str) -> Iterable[dict[str, Any]]:
    from finetune_pipeline.records import read_jsonl

    return read_jsonl(artifact.path(name))


def _gate(name: str, artifact: Artifact) -> Text:
    verdict = artifact.verdict
    if verdict is None:
        return Text(f"{name}: no verdict was stored", style="red")
    mark = Text("✓ ", "green") if verdict.passed else Text("✗ ", "red")
    return mark + Text(f"{name}: {verdict.summary}", style="")


def _results(report: Artifact) -> RenderableType:
    figures = report.json("report.json")
    table = Table.grid(padding=(0, 2))
    table.add_row(Text(f"exactly right, of {figures['rows']} test rows", style="dim"), "", "")
    for name, figure in figures["variants"].items():
        share = figure["exact"]
        bar = "█" * round(30 * share)
        style = "green" if name == "tuned" else "blue"
        table.add_row(NAMES.get(name, name), f"{share:6.1%}", Text(bar, style=style))
    return table


def _difference(decision: Artifact) -> str:
    figures = decision.json("decision.json")["figures"]
    gain = figures.get("gain", {})
    if "interval" not in gain:
        return ""
    low, high = gain["interval"]
    return (
        f"tuned minus {NAMES.get(gain['over'], gain['over'])}: {100 * gain['difference']:+.1f} points "
        f"(95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
    )


def _decision(artifact: Artifact) -> Text:
    decision = artifact.json("decision.json")
    style = {"PROMOTE": "bold green", "REJECT": "bold red"}.get(decision["outcome"], "bold yellow")
    words = decision["summary"].removeprefix(f"{decision['outcome']}: ")
    return Text(decision["outcome"], style=style) + Text(f"  {words}", style="")


def _endpoint(artifact: Artifact) -> Text:
    shown = artifact.json("endpoint.json")
    text = Text(f"{artifact.verdict.summary if artifact.verdict else ''}\n")
    sample = shown.get("sample")
    if sample:
        text += Text(f"asked   {sample['prompt']}\n", style="dim")
        text += Text(f"tuned   {sample['tuned']}\n", style="green")
        text += Text(f"base    {' '.join(sample['base'].split())[:160]}", style="blue")
    return text


def _next(task: Task, store: TaskStore) -> str:
    desk = f"{address('FINETUNE_DESK_URL')}/tasks/{task.name}"
    todo = [p.asset for p in plan(task, store) if p.state != "fresh"]
    folder = f"artifacts   {store.root}"
    servers = (
        f"`make up` (or `finetune up`), then\n  desk        {desk}\n  graph       {address('FINETUNE_DAGSTER_URL')}\n"
        f"  training    {address('FINETUNE_MLFLOW_URL')}\n  endpoint    {address('FINETUNE_ENDPOINT')}/v1\n  {folder}"
    )
    return servers if not todo else f"still to make: {', '.join(todo)}\n{servers}"


def overview() -> RenderableType:
    """A line for each task: how far it is, and what it waits for."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("task", "made", "stands at", "what next"):
        table.add_column(column)
    for name in task_names():
        table.add_row(*(Text(cell) for cell in (name, *_line(name))))
    if not table.row_count:
        return Text(f"no task in {data_root()}; make one with `finetune init`")
    return table


def _line(name: str) -> tuple[str, str, str]:
    """What the overview says of a task; whatever is wrong with it is said in its own line."""
    try:
        return _stands_at(name)
    except DeclarationError as error:
        return "", "declaration", "; ".join((error.message, *error.problems))
    except FinetuneError as error:
        return "", "unreadable", f"{error.message}; {error.hint}" if error.hint else error.message


def _stands_at(name: str) -> tuple[str, str, str]:
    from finetune_pipeline.defs.run import wait_for_review
    from finetune_pipeline.ingest.sources import missing

    task, store = open_task(name)
    plans = plan(task, store)
    fresh = [p for p in plans if p.state == "fresh"]
    made = f"{len(fresh)} of {len(plans)}"
    if lost := missing(task, store.root):
        return made, "sources", "; ".join(lost)
    refused = next((p for p in fresh if p.artifact and p.artifact.verdict and not p.artifact.verdict.passed), None)
    if refused is not None and refused.artifact is not None and refused.artifact.verdict is not None:
        return made, f"{refused.asset} says no", refused.artifact.verdict.summary
    try:
        wait_for_review(task, store)
    except WaitingForPeople as waiting:
        return made, "expert_review", waiting.message
    todo = next((p for p in plans if p.state != "fresh"), None)
    if todo is None:
        return made, "deployed", "nothing: all is made from what is there now"
    return made, todo.asset, f"{todo.state}; `finetune run {name}` makes it"


def validation_report(name: str) -> str:
    """What a look at declaration, sources and base model finds. DeclarationError with all problems, or good news."""
    from finetune_pipeline.ingest.sources import problems, remarks
    from finetune_pipeline.models.model_source import check_available
    from finetune_pipeline.review.verdict_store import recorded_file

    task, store = open_task(name)
    found = list(problems(task, store))
    try:
        check_available(task)
    except ModelError as error:
        found.append(f"base: {error.message} ({error.hint})")
    try:
        recorded_file(store, task)
    except FinetuneError as error:
        found.append(f"{error.message} ({error.hint})")
    if found:
        raise DeclarationError(f"{name}: {len(found)} to fix", problems=tuple(found))
    good = f"{name}: the declaration, its sources ({len(task.sources)}) and the base model are in order"
    return "\n".join([good, *(f"  note: {remark}" for remark in remarks(task, store))])

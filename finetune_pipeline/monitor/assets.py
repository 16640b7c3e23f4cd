"""The asset `traffic_report`: how the deployed model does in its work, and whether it is time to train again.

    report.json   the figures of alarms.py, with `about`: which version, which days
    report.html   the same for people, one page without anything from outside

The verdict is about the deployment's content and blocks nothing: a sensor reads it, and may start a retraining.
The report covers the newest `monitor.window_days` days (UTC) as of the run, and is made again when their logs change.

What it is not: the metrics endpoint (serve/metrics.py), which tells the present second.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from finetune_pipeline.config import Task
from finetune_pipeline.monitor.alarms import Reference, Report, evaluate_traffic
from finetune_pipeline.monitor.log import files, read, window
from finetune_pipeline.monitor.page import page
from finetune_pipeline.records import Json, Verdict, content_id, dumps, read_jsonl
from finetune_pipeline.store import StageContext, StageResult, TaskStore, traffic_folder

SUMMARY = ("requests", "invalid_share", "p50_seconds", "p95_seconds", "fallbacks", "errors", "abandoned", "alarms")


def traffic_fingerprint(task: Task, store: TaskStore) -> str:
    """Hash of names and sizes of the logs in the window that ends today (logs only grow): it changes when a request is
    logged or a day leaves the window, and not while nothing happens."""
    days = window(datetime.now(UTC).isoformat(), task.monitor.window_days)
    found = files(traffic_folder(task.name), days)
    return content_id(*(f"{path.name}:{path.stat().st_size}" for path in found))


def traffic_report(context: StageContext) -> StageResult:
    """Judge the traffic of the version that serves. Without traffic the report says so, and raises no alarm."""
    task, deployment = context.task, context.inputs["deployed_endpoint"]
    serving = deployment.json("endpoint.json")["champion"]
    days = window(context.now, task.monitor.window_days)
    adapter = serving["adapter"] if serving else ""
    traffic = read(files(traffic_folder(task.name), days), adapter, task.answer.slice_of)
    report = evaluate_traffic(traffic, reference(context), task.monitor)
    about: dict[str, Json] = {
        "task": task.name,
        "version": serving["version"] if serving else None,
        "adapter": adapter,
        "from": days[0],
        "to": days[-1],
        "made_at": context.now,
    }
    checks = [
        {"name": c.name, "passed": c.passed, "expected": c.expected, "observed": c.observed} for c in report.checks
    ]
    (context.out / "report.json").write_text(
        dumps({"about": about, "summary": report.summary, "checks": checks, **report.figures}), "utf-8"
    )
    (context.out / "report.html").write_text(page(about, report, task.monitor), "utf-8")
    context.report.log(report.summary)
    return StageResult({name: report.figures[name] for name in SUMMARY}, _verdict(report, deployment.content_hash))


def reference(context: StageContext) -> Reference:
    """The test rows' questions, masked as the log masks them, and the tuned model's answers to them."""
    from finetune_pipeline.clean.pii import mask

    tests = {row.id: row for row in context.inputs["data_split"].examples("test.jsonl")}
    rows: list[dict[str, Any]] = [
        row
        for row in read_jsonl(context.inputs["eval_report"].path("answers.jsonl"))
        if row["variant"] == "tuned" and row["id"] in tests
    ]
    kinds = Counter(kind for row in rows if (kind := context.task.answer.slice_of(row["text"])))
    return Reference(
        [len(mask(tests[row["id"]].prompt)[0]) for row in rows],
        [len(mask(row["text"])[0]) for row in rows],
        [row["prompt_tokens"] for row in rows],
        [row["completion_tokens"] for row in rows],
        kinds,
    )


def _verdict(report: Report, about: str) -> Verdict:
    figures = {name: report.figures[name] for name in SUMMARY}
    return Verdict("traffic_report", not report.alarms, about, report.summary, report.checks, figures)

"""The asset `traffic_report`: format compliance, latency and drift of the live traffic, and alarms.

    report.json   TrafficReport (figures.py)
    report.html   the same for people

The verdict is about the deployment's content and blocks nothing: a sensor reads it and may start a retraining. The
report covers the newest `monitor.window_days` days (UTC) up to the run, and is made again when their logs change. The
metrics of the present moment are at the endpoint itself (serve/metrics.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from finetune_pipeline.baseline.variants import TUNED
from finetune_pipeline.config import Task
from finetune_pipeline.monitor.alarms import Reference, Report, evaluate_traffic
from finetune_pipeline.monitor.figures import About, CheckFigures, TrafficReport
from finetune_pipeline.monitor.report import page
from finetune_pipeline.monitor.traffic_log import files, read, window
from finetune_pipeline.records import Answer, Check, Json, Verdict, content_id, dumps, read_jsonl
from finetune_pipeline.serve.deployment_report import DeploymentReport
from finetune_pipeline.store import StageContext, StageResult, TaskStore, traffic_folder


def traffic_fingerprint(task: Task, store: TaskStore) -> str:
    """Hash of names and sizes of the logs in the window that ends today (logs only grow): it changes with every logged
    request and when a day leaves the window."""
    days = window(datetime.now(UTC).isoformat(), task.monitor.window_days)
    logs = files(traffic_folder(task.name), days)
    return content_id(*(f"{path.name}:{path.stat().st_size}" for path in logs))


def traffic_report(context: StageContext) -> StageResult:
    """Check the traffic of the version that serves. Without traffic there is no alarm."""
    task, deployment = context.task, context.inputs["deployed_endpoint"]
    deployed: DeploymentReport = deployment.json("endpoint.json")
    serving = deployed["champion"]
    days = window(context.now, task.monitor.window_days)
    adapter = serving["adapter"] if serving else ""
    traffic = read(files(traffic_folder(task.name), days), adapter, task.answer.slice_of)
    report = evaluate_traffic(traffic, reference(context), task.monitor)
    about: About = {
        "task": task.name,
        "version": serving["version"] if serving else None,
        "adapter": adapter,
        "from": days[0],
        "to": days[-1],
        "made_at": context.now,
    }
    written: TrafficReport = {
        "about": about,
        "summary": report.summary,
        "checks": _plain(report.checks),
        **report.figures,
    }
    (context.out / "report.json").write_text(dumps(written), "utf-8")
    (context.out / "report.html").write_text(page(about, report, task.monitor), "utf-8")
    context.report.log(report.summary)
    summary = _summary(report)
    verdict = Verdict(
        "traffic_report", not report.alarms, deployment.content_hash, report.summary, report.checks, summary
    )
    return StageResult(summary, verdict)


def reference(context: StageContext) -> Reference:
    """The prompts of the test rows, masked as the log masks them, and the tuned model's answers to them."""
    from finetune_pipeline.clean.pii import mask

    tests = {row.id: row for row in context.inputs["data_split"].examples("test.jsonl")}
    rows = (Answer(**row) for row in read_jsonl(context.inputs["eval_report"].path("answers.jsonl")))
    answers = [answer for answer in rows if answer.variant == TUNED and answer.id in tests]
    return Reference(
        prompt_chars=[len(mask(tests[answer.id].prompt)[0]) for answer in answers],
        completion_chars=[len(mask(answer.text)[0]) for answer in answers],
        prompt_tokens=[answer.prompt_tokens for answer in answers],
        completion_tokens=[answer.completion_tokens for answer in answers],
        kinds=Counter(kind for answer in answers if (kind := context.task.answer.slice_of(answer.text))),
    )


def _plain(checks: Sequence[Check]) -> list[CheckFigures]:
    return [{"name": c.name, "passed": c.passed, "expected": c.expected, "observed": c.observed} for c in checks]


def _summary(report: Report) -> dict[str, Json]:
    figures = report.figures
    return {
        "requests": figures["requests"],
        "invalid_share": figures["invalid_share"],
        "p50_seconds": figures["p50_seconds"],
        "p95_seconds": figures["p95_seconds"],
        "fallbacks": figures["fallbacks"],
        "errors": figures["errors"],
        "abandoned": figures["abandoned"],
        "alarms": figures["alarms"],
    }

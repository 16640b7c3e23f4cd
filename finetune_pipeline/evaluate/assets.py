"""The asset `eval_report`: the tuned model and the live version on the test rows that the baselines answered.

    answers.jsonl   records.Answer, one line for each variant and test row, the baselines' first
    scores.jsonl    records.Score, the same
    general.jsonl   {"id": "fact-02", "base": 1.91, "tuned": 1.95}: losses on general texts, in nats per token
    report.json     EvalReport (report.py)
    report.html     the same for people

One job process loads the tuned model once and appends answers to `<stage>/answers/<key>/` as they are complete, so that
a killed evaluation resumes there; the folder is removed when the artifact is stored. The decision about the release is
another asset (release/).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune_pipeline.baseline.answer_log import AnswerFile
from finetune_pipeline.baseline.answering import ANSWERS, answer_request, run_job
from finetune_pipeline.baseline.assets import heading, write_report
from finetune_pipeline.baseline.metrics import score_all
from finetune_pipeline.baseline.report import as_summary, compile_report
from finetune_pipeline.baseline.variants import CHAMPION, TUNED
from finetune_pipeline.config import Provider
from finetune_pipeline.errors import GateRefused, reading
from finetune_pipeline.evaluate import champion, general_ability
from finetune_pipeline.evaluate.cost import cost
from finetune_pipeline.evaluate.memorization import memorized
from finetune_pipeline.evaluate.report import EvalReport, page, select_cases
from finetune_pipeline.evaluate.request import GENERAL, MEMORIZATION, EvaluationRequest
from finetune_pipeline.providers.record import read_record
from finetune_pipeline.records import Answer, Example, Json, Score, ServedVersion, read_jsonl, write_jsonl
from finetune_pipeline.store import StageContext, StageResult

JOB = "finetune_pipeline.evaluate.job"
NO_LIKELIHOODS = "the provider's API gives no likelihood of a given text"


def eval_report(context: StageContext) -> StageResult:
    """Answer the test rows with the tuned model and with the live version (variant `champion`, where one is live),
    measure the side effects of tuning, and add the baselines' answers.

    GateRefused when the baselines answered other test rows, or the adapter is of another base model; ModelError,
    StorageError (the adapter does not fit), DataError, DeclarationError (of the backend), JobCanceled.
    """
    tests = list(context.inputs["data_split"].examples("test.jsonl"))
    baseline = context.inputs["baseline_report"]
    baseline_answers = [Answer(**row) for row in read_jsonl(baseline.path("answers.jsonl"))]
    _require_same_rows(tests, baseline_answers)
    _require_same_base(context)
    live = champion.served_version(context.fingerprint)
    request, partial, precision = _run_jobs(context, live)
    new = AnswerFile(partial / ANSWERS).answers
    answers = [*baseline_answers, *new]
    baseline_scores = [Score(**row) for row in read_jsonl(baseline.path("scores.jsonl"))]
    scores = [*baseline_scores, *score_all(tests, new, context.task.answer)]
    variants = [*baseline.json("report.json")["variants"], *([CHAMPION] if live else []), TUNED]
    report = _report(context, request, tests, answers, scores, variants, live)
    if precision:
        report["precision"] = precision
    cases = select_cases(tests, answers, scores, report["best_prompted"])
    write_report(context, answers, scores, report, page(heading(context), report, cases))
    return StageResult(_summary(report), unfinished=partial)


def evaluation_request(context: StageContext, partial: Path) -> EvaluationRequest:
    """Answer with the tuned model, and measure what the task declares, and what a provider's API allows."""
    answers = answer_request(context, partial, [TUNED], context.inputs["adapter"])
    local, declared = answers.provider is None, context.task.evaluate
    return EvaluationRequest(answers, declared.general and local, declared.memorization and local)


def _run_jobs(context: StageContext, live: ServedVersion | None) -> tuple[EvaluationRequest, Path, str | None]:
    """Run the job of the tuned model, then that of the live version. Returns the first request, the folder with the
    answers of both, and what the tuned model computed in (None: a provider computed)."""
    partial = context.store.unfinished("eval_report", "answers", context.key)
    opponent = EvaluationRequest(champion.answer_request(context, partial, live)) if live else None
    request = evaluation_request(context, partial)
    counts = run_job(JOB, request, request.answers, context.report)
    if opponent is not None:
        run_job(JOB, opponent, opponent.answers, context.report)
    return request, partial, counts.precision


def _require_same_rows(tests: Sequence[Example], baseline_answers: Sequence[Answer]) -> None:
    differing = sorted({row.id for row in tests} ^ {answer.id for answer in baseline_answers})
    if baseline_answers and differing:
        raise GateRefused(
            f"the baselines answered other rows than the current test rows: {len(differing)} differ, "
            f"such as {differing[0]}",
            "materialize baseline_report again, so that all variants answer the same rows",
        )


def _require_same_base(context: StageContext) -> None:
    """GateRefused for an adapter of another base model: one of the same shapes would load, and answer otherwise."""
    adapter, base = context.inputs["adapter"], context.inputs["base_model"]
    trained_on = adapter.manifest["inputs"].get("base_model", base.content_hash)
    if trained_on != base.content_hash:
        raise GateRefused(
            f"the adapter {adapter.content_hash} was trained on the base model {trained_on}, and the current one is "
            f"{base.content_hash}",
            "materialize adapter again, or declare the base model that it was trained on",
        )


def _report(
    context: StageContext,
    request: EvaluationRequest,
    tests: Sequence[Example],
    answers: Sequence[Answer],
    scores: Sequence[Score],
    variants: Sequence[str],
    live: ServedVersion | None,
) -> EvalReport:
    """report.json; general.jsonl is written on the way."""
    task, partial = context.task, request.answers.partial
    compared = compile_report(tests, answers, scores, variants, task.answer, request.answers.max_new_tokens)
    report: EvalReport = {
        "rows": compared["rows"],
        "variants": compared["variants"],
        "best_prompted": compared["best_prompted"],
        "max_new_tokens": compared["max_new_tokens"],
        "cost": cost(compared["variants"], task.suitability, _providers(context, request, live)),
    }
    if request.answers.provider:
        report["not_measured"] = {"general": NO_LIKELIHOODS, "memorization": NO_LIKELIHOODS}
    if live:
        report["champion"] = asdict(live)
    if request.general:
        losses = _measured(partial / GENERAL)
        rows = general_ability.compared(losses["base"], losses["tuned"])
        write_jsonl(context.out / "general.jsonl", rows)
        if rows:
            report["general"] = general_ability.summary(rows)
    if request.memorization:
        losses = _measured(partial / MEMORIZATION)
        report["memorization"] = memorized(losses["train"], losses["test"])
    return report


def _providers(context: StageContext, request: EvaluationRequest, live: ServedVersion | None) -> dict[str, Provider]:
    """Variant -> the provider that answered it, for the prices; without the variants of this machine."""
    champion_folder = context.store.find("adapter", live.adapter_key) if live else None
    record = read_record(champion_folder.folder) if champion_folder else None
    tuned = request.answers.provider
    return {
        **({TUNED: tuned.provider} if tuned else {}),
        **({CHAMPION: record.provider} if record else {}),
    }


def _measured(path: Path) -> Any:
    """What the job measured. StorageError when the file is missing or damaged."""
    with reading(path, f"delete {path.parent} and run again"):
        return json.loads(path.read_text("utf-8"))


def _summary(report: EvalReport) -> dict[str, Json]:
    figures: dict[str, Json] = {**as_summary(report)}
    if "general" in report:
        figures["general_rise"] = report["general"]["rise"]
    if "memorization" in report:
        figures["memorization_auc"] = report["memorization"]["auc"]
    return figures

"""The asset `baseline_report`: what prompts and a classical model reach on the test rows, before anything is trained.

    answers.jsonl   records.Answer, one line for each variant and test row
    scores.jsonl    records.Score, the same
    report.json     BaselineReport (report.py): the figures of every variant
    report.html     the same for people

One job process loads the model once and appends answers to `<stage>/answers/<key>/` as they are complete, so that a
killed run resumes there; the folder is removed when the artifact is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune_pipeline.baseline import classical
from finetune_pipeline.baseline.answer_log import AnswerFile
from finetune_pipeline.baseline.answering import ANSWERS, answer_request, run_job
from finetune_pipeline.baseline.metrics import score_all
from finetune_pipeline.baseline.report import Heading, as_summary, compile_report, page
from finetune_pipeline.baseline.variants import CLASSICAL
from finetune_pipeline.records import Answer, Score, dumps, write_jsonl
from finetune_pipeline.store import StageContext, StageResult

JOB = "finetune_pipeline.baseline.job"


def baseline_report(context: StageContext) -> StageResult:
    """Answer the test rows with every declared prompt and the classical model. ModelError, DataError,
    DeclarationError (of the backend), JobCanceled."""
    task = context.task
    variants = [v for v in task.baseline.variants if v != CLASSICAL or classical.applies(task.answer)]
    partial = context.store.unfinished("baseline_report", "answers", context.key)
    request = answer_request(context, partial, variants)
    run_job(JOB, request, request, context.report)
    tests = list(context.inputs["data_split"].examples("test.jsonl"))
    answers = AnswerFile(partial / ANSWERS).answers
    scores = score_all(tests, answers, task.answer)
    report = compile_report(tests, answers, scores, variants, task.answer, request.max_new_tokens)
    write_report(context, answers, scores, report, page(heading(context), report))
    return StageResult(as_summary(report), unfinished=partial)


def heading(context: StageContext) -> Heading:
    """What stands above the figures of this run."""
    provider = context.task.train.provider
    base = provider.model if provider else str(context.inputs["base_model"].json("base_model.json")["id"])
    return Heading(context.task.name, context.task.description, base, context.now)


def write_report(
    context: StageContext, answers: Sequence[Answer], scores: Sequence[Score], report: Mapping[str, object], html: str
) -> None:
    """Write the four files of a report."""
    write_jsonl(context.out / "answers.jsonl", answers)
    write_jsonl(context.out / "scores.jsonl", scores)
    (context.out / "report.json").write_text(dumps(report), "utf-8")
    (context.out / "report.html").write_text(html, "utf-8")

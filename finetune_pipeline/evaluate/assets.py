"""The two reports: what prompting reaches before training, and what the tuned model reaches on the same rows.

    baseline_report    answers.jsonl, scores.jsonl, report.json, report.html
    eval_report        the same with the tuned model and the live version beside the baseline's variants;
    general_ability.jsonl

    report.json  {"rows": 104, "max_new_tokens": 53, "best_prompted": "few_shot",
                  "champion": {"version": 3, "adapter": "9be0…", ...},
                  "variants": {"tuned": {"rows": 104, "exact": 0.71, "interval": [0.61, 0.8], "valid": 0.99, ...}},
                  "general": {"texts": 60, "base": 1.9, "tuned": 2.0, "rise": 0.05},
                  "memorization": {"auc": 0.53, "interval": [0.43, 0.63], ...},
                  "cost": {"currency": "USD", "per_1000": {"tuned": 1.0, ...}, ...}}

One job process loads the model once and writes answers to `<stage>/partial/<key>/` as they come, so that a killed
evaluation goes on where it was; the folder goes when the artifact is there.

What it is not: a verdict. Whether the difference is worth a release is decided in release/.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune_pipeline.backends import local
from finetune_pipeline.config import Suitability
from finetune_pipeline.errors import GateRefused
from finetune_pipeline.evaluate import champion, classical, general_ability, metrics
from finetune_pipeline.evaluate.answer_log import AnswerFile
from finetune_pipeline.evaluate.memorization import memorized
from finetune_pipeline.evaluate.report import Facts, page
from finetune_pipeline.models import model_files, model_source
from finetune_pipeline.records import Answer, Artifact, Example, Json, Score, dumps, read_jsonl, write_jsonl
from finetune_pipeline.store import StageContext, StageResult

JOB = "finetune_pipeline.evaluate.job"
SLACK = 1.2  # an answer may be this much longer than the longest reference
DAYS_PER_MONTH = 365 / 12


def baseline_report(context: StageContext) -> StageResult:
    """Answer the test rows with every declared prompt and the classical model. ModelError, DataError, JobCancelled."""
    wanted = [
        v for v in context.task.baseline.variants if v != classical.VARIANT or classical.applies(context.task.answer)
    ]
    partial = _answer(context, "baseline_report", wanted)
    tests = list(context.inputs["data_split"].examples("test.jsonl"))
    answers = AnswerFile(partial / "answers.jsonl").answers
    scores = _scores(context, tests, answers)
    return StageResult(_write(context, tests, answers, scores, wanted, {}), unfinished=partial)


def eval_report(context: StageContext) -> StageResult:
    """Answer the test rows with the tuned model and with the live version (variant `champion`, where one is live),
    measure what tuning did besides, and join the baseline's answers.

    GateRefused when the baseline is about other test rows; ModelError, StorageError (the adapter does not fit),
    DataError, JobCancelled.
    """
    tests = list(context.inputs["data_split"].examples("test.jsonl"))
    baseline = context.inputs["baseline_report"]
    before = [Answer(**row) for row in read_jsonl(baseline.path("answers.jsonl"))]
    _same_rows(tests, before)
    live = champion.served(context.fingerprint)
    opponent = (
        champion.job_spec(context, context.store.unfinished("eval_report", "answers", context.key), live)
        if live
        else None
    )
    partial = _answer(context, "eval_report", ["tuned"], adapter=context.inputs["adapter"])
    if opponent is not None:
        local.run(JOB, opponent, partial, context.report)
    new = AnswerFile(partial / "answers.jsonl").answers
    scores = [Score(**row) for row in read_jsonl(baseline.path("scores.jsonl"))]
    variants = [*baseline.json("report.json")["variants"], *([champion.VARIANT] if live else []), "tuned"]
    measures = {"champion": asdict(live) if live else None, **_measures(context, partial)}
    figures = _write(context, tests, [*before, *new], [*scores, *_scores(context, tests, new)], variants, measures)
    return StageResult(figures, unfinished=partial)


def max_new_tokens(context: StageContext, folder: Path) -> int:
    """The declared limit, else the longest training answer in tokens and 20 %. Test answers are not looked at."""
    if context.task.evaluate.max_new_tokens:
        return context.task.evaluate.max_new_tokens
    texts = [row.completion for row in context.inputs["data_split"].examples("train.jsonl")]
    longest = max(model_files.token_counter(folder)(texts), default=1)
    return max(int(longest * SLACK), longest + 2)  # room for the end mark


def _answer(context: StageContext, asset: str, variants: Sequence[str], adapter: Artifact | None = None) -> Path:
    """Run the job; gives the folder with what it wrote."""
    partial = context.store.unfinished(asset, "answers", context.key)
    spec = job_spec(context, partial, variants, adapter)
    local.run(JOB, spec, partial, context.report)
    return partial


def job_spec(
    context: StageContext, partial: Path, variants: Sequence[str], adapter: Artifact | None = None
) -> dict[str, Any]:
    """What the job has to do (see job.py). The measures are of the tuned model alone."""
    folder = model_source.folder_of(context.inputs["base_model"], context.task.base, context.report)
    return {
        "base": str(folder),
        "adapter": str(adapter.folder) if adapter else None,
        "split": str(context.inputs["data_split"].folder),
        "partial": str(partial),
        "task": context.task.model_dump(mode="json", by_alias=True),
        "variants": list(variants),
        "max_new_tokens": max_new_tokens(context, folder),
        "general": adapter is not None and context.task.evaluate.general,
        "memorization": adapter is not None and context.task.evaluate.memorization,
    }


def _scores(context: StageContext, tests: Sequence[Example], answers: Sequence[Answer]) -> list[Score]:
    rows = {row.id: row for row in tests}
    return [metrics.score(rows[answer.id], answer, context.task.answer) for answer in answers]


def _same_rows(tests: Sequence[Example], before: Sequence[Answer]) -> None:
    ids = {row.id for row in tests}
    odd = sorted(ids ^ {answer.id for answer in before})
    if before and odd:
        raise GateRefused(
            f"the baseline answered other rows than the current test rows: {len(odd)} differ, such as {odd[0]}",
            "materialize baseline_report again, so that all variants answer the same rows",
        )


def _measures(context: StageContext, partial: Path) -> dict[str, Any]:
    """What is measured of the tuned model alone; general_ability.jsonl is written on the way."""
    measures: dict[str, Any] = {}
    if context.task.evaluate.general:
        found = json.loads((partial / "general.json").read_text("utf-8"))
        rows = general_ability.compared(found["base"], found["tuned"])
        write_jsonl(context.out / "general.jsonl", rows)
        measures["general"] = (
            general_ability.summary(rows) if rows else None
        )  # where the model can read no text as a whole
    if context.task.evaluate.memorization:
        found = json.loads((partial / "memorization.json").read_text("utf-8"))
        measures["memorization"] = memorized(found["train"], found["test"])
    return measures


def cost(variants: dict[str, Any], prices: Suitability) -> dict[str, Json]:
    """Price of 1000 answers at the declared prices: hosting for the tuned model, tokens for a prompt to a paid model.
    The classical model has none: it runs beside anything."""
    tokens = {n: v["prompt_tokens"] + v["completion_tokens"] for n, v in variants.items() if n in metrics.PROMPTED}
    per_1000 = {name: round(count * prices.prompted_price / 1000, 4) for name, count in tokens.items()}
    if prices.requests_per_day:
        hosted = round(1000 * prices.hosting_per_month / (DAYS_PER_MONTH * prices.requests_per_day), 4)
        per_1000 |= dict.fromkeys(("tuned", *({champion.VARIANT} & variants.keys())), hosted)
    return {
        "currency": prices.currency,
        "per_1000": per_1000,
        "requests_per_day": prices.requests_per_day,
        "prompted_price": prices.prompted_price,
    }


def _write(
    context: StageContext,
    tests: Sequence[Example],
    answers: Sequence[Answer],
    scores: Sequence[Score],
    names: Sequence[str],
    measures: dict[str, Any],
) -> dict[str, Json]:
    """Write the artifact's files; gives the figures for its manifest."""
    variants = {
        name: metrics.variant([s for s in scores if s.variant == name], [a for a in answers if a.variant == name])
        for name in names
    }
    folder = model_source.folder_of(context.inputs["base_model"], context.task.base)
    figures: dict[str, Any] = {
        "rows": len(tests),
        "variants": variants,
        "best_prompted": metrics.best_prompted({name: figure["exact"] for name, figure in variants.items()}),
        "champion": None,
        "max_new_tokens": max_new_tokens(context, folder),
        "general": None,
        "memorization": None,
        "cost": cost(variants, context.task.suitability) if "tuned" in variants else None,
        **measures,
    }
    told = {name: value for name, value in figures.items() if value is not None or name == "best_prompted"}
    write_jsonl(context.out / "answers.jsonl", answers)
    write_jsonl(context.out / "scores.jsonl", scores)
    (context.out / "report.json").write_text(dumps(told), "utf-8")
    base = str(context.inputs["base_model"].json("base_model.json")["id"])
    facts = Facts(context.task.name, context.task.description, base, context.now, figures, tests, answers, scores)
    (context.out / "report.html").write_text(page(facts), "utf-8")
    return _summary(figures)


def _summary(figures: dict[str, Any]) -> dict[str, Json]:
    shares = {name: figure["exact"] for name, figure in figures["variants"].items()}
    measured: dict[str, Json] = {"rows": figures["rows"], **shares, "best_prompted": figures["best_prompted"]}
    if figures["general"]:
        measured["general_rise"] = figures["general"]["rise"]
    if figures["memorization"]:
        measured["memorization_auc"] = figures["memorization"]["auc"]
    return measured

"""The process that answers the test rows, with a model in memory or through an API.

    python -m finetune_pipeline.baseline.job job.json

The description is an AnswerRequest (answering.py). Every answer is appended to `<partial>/answers.jsonl` when it is
complete, so that a killed job resumes where it stopped. Scores and report are made from this file (assets.py).
"""

from __future__ import annotations

from finetune_pipeline.backends import worker
from finetune_pipeline.baseline import classical
from finetune_pipeline.baseline.answer_log import AnswerFile
from finetune_pipeline.baseline.answering import ANSWERS, AnswerCounts, AnswerRequest
from finetune_pipeline.baseline.prompts import PROMPTED, Chat, prompts
from finetune_pipeline.baseline.variants import CLASSICAL
from finetune_pipeline.inference.answerer import Answerer, LocalModel
from finetune_pipeline.inference.generate import Generation
from finetune_pipeline.inference.loading import Loaded, load
from finetune_pipeline.models.device import kind
from finetune_pipeline.providers.api_answerer import api_answerer
from finetune_pipeline.records import Example, Reporter


def run(request: AnswerRequest, report: Reporter) -> AnswerCounts:
    """Answer what is not answered yet."""
    return answer(request, answerer_of(request, report), report)


def answerer_of(request: AnswerRequest, report: Reporter) -> Answerer:
    """The provider's model where one is named, else the base model with what was trained, loaded."""
    spec = request.task.answer
    if request.provider is not None:
        return api_answerer(request.provider, spec)
    return LocalModel(load_model(request, report), spec)


def load_model(request: AnswerRequest, report: Reporter) -> Loaded:
    loaded = load(request.base, request.adapter, request.precision)
    report.log(f"the model computes in {loaded.dtype_name} on the {kind()}")
    return loaded


def answer(request: AnswerRequest, answerer: Answerer, report: Reporter) -> AnswerCounts:
    """Answer the test rows with every variant of the request."""
    log = AnswerFile(request.partial / ANSWERS)
    reused = len(log.answers)
    if reused:
        report.log(f"{reused} answers of an earlier run are reused")
    train, tests = request.rows("train"), request.rows("test")
    for variant in request.variants:
        if variant != CLASSICAL:
            _generate(variant, request, answerer, log, train, tests, report)
        elif classical.applies(request.task.answer):
            _classify(request, log, train, tests, report)
    return AnswerCounts(len(log.answers) - reused, reused, answerer.precision)


def _classify(
    request: AnswerRequest, log: AnswerFile, train: list[Example], tests: list[Example], report: Reporter
) -> None:
    answered = log.of(CLASSICAL)
    if len(answered) < len(tests):
        for row in classical.answers(train, tests, request.task.answer, report):
            if row.id not in answered:
                log.append(row)
        report.progress(CLASSICAL, len(tests), len(tests))


def _generate(
    variant: str,
    request: AnswerRequest,
    answerer: Answerer,
    log: AnswerFile,
    train: list[Example],
    tests: list[Example],
    report: Reporter,
) -> None:
    task, limit = request.task, request.max_new_tokens
    answered = log.of(variant)
    remaining = [row for row in tests if row.id not in answered]

    def fits(chat: Chat) -> bool:
        return answerer.fits(chat, limit)

    chats = prompts(variant, train, remaining, task.prompt.system, task.answer, task.baseline.shots, fits)
    how = Generation(variant, limit, task.evaluate.batch_size)
    # The tuned model answers as it is served. A prompted one selects among the labels (inference/label_choice.py),
    # which is the most favorable way to prompt for a label.
    labels = task.answer.labels if variant in PROMPTED else ()
    answerer.answer(chats, how, log.append, report, done=len(answered), labels=labels)


if __name__ == "__main__":
    worker.main(run, AnswerRequest)

"""Replays the held-out rows through the live endpoint, over HTTP, 48 at a time.

    answers = replay(endpoint, "support_tickets@4", examples, report, answer_log)    # {"9f2c…": "{\\"intent\\": …}"}

The endpoint adds the system prompt and the limits, as for any client. There is no time limit: a replay ends with an
error when the endpoint computes nothing any more. Answers are appended to `answer_log` as they arrive, and an
interrupted replay continues after them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import httpx

from finetune_pipeline.backends.progress import STALLED_SECONDS
from finetune_pipeline.baseline.answer_log import AnswerFile
from finetune_pipeline.errors import ServingError
from finetune_pipeline.records import Answer, Example, Reporter
from finetune_pipeline.serve.client import EndpointClient, log_tail
from finetune_pipeline.serve.traffic import PURPOSE_HEADER

CONCURRENCY = 48  # leaves room for other clients (engine.MAX_REQUESTS)
WATCH_SECONDS = 1.0
LOG_SECONDS = 60.0
_HINT = "see the endpoint's log, and run again: the answers so far are kept, and no traffic was moved"


def replay(
    endpoint: EndpointClient,
    model: str,
    examples: Sequence[Example],
    report: Reporter,
    answer_log: AnswerFile | None = None,
) -> dict[str, str]:
    """The endpoint's answer to every example, by id. Answers of this model that are already in `answer_log` are used.

    ServingError when a request fails: an incomplete replay would be no comparison with what was evaluated.
    """
    logged = {id_: answer.text for id_, answer in answer_log.of(model).items()} if answer_log else {}
    answers = {e.id: logged[e.id] for e in examples if e.id in logged}
    if answers:
        report.log(f"{len(answers)} answers of {model} are kept from an interrupted replay")
    asyncio.run(_replay(endpoint, model, examples, answers, report, answer_log))
    return answers


async def _replay(
    endpoint: EndpointClient,
    model: str,
    examples: Sequence[Example],
    answers: dict[str, str],
    report: Reporter,
    answer_log: AnswerFile | None,
) -> None:
    slots = asyncio.Semaphore(CONCURRENCY)
    limits = httpx.Limits(max_connections=CONCURRENCY)
    headers = {**endpoint.headers, PURPOSE_HEADER: "parity"}
    async with httpx.AsyncClient(timeout=None, limits=limits, headers=headers) as client:  # noqa: S113

        async def replay_row(example: Example) -> None:
            async with slots:
                text = await _complete(client, endpoint, model, example)
            if answer_log is not None:
                answer_log.append(Answer(example.id, model, text))
            answers[example.id] = text
            report.progress(f"replaying through {model}", len(answers), len(examples))

        try:
            async with asyncio.TaskGroup() as group:
                requests = [group.create_task(replay_row(e)) for e in examples if e.id not in answers]
                watch = group.create_task(_watch(endpoint, model, answers, len(examples), report))
                group.create_task(_cancel_when_done(watch, requests))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures  # the others are the same, or follow from the first


async def _cancel_when_done(watch: asyncio.Task[None], requests: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.gather(*requests)
    watch.cancel()


async def _watch(
    endpoint: EndpointClient, model: str, answers: Mapping[str, str], total: int, report: Reporter
) -> None:
    """ServingError when neither an answer arrives nor the endpoint computes for STALLED_SECONDS. Its steps are those
    for all clients: on a busy machine other clients may be served first."""
    last: object = None
    moved = logged = began = time.monotonic()
    while True:
        report.alive()
        await asyncio.sleep(WATCH_SECONDS)
        now = time.monotonic()
        progress = len(answers), (await asyncio.to_thread(endpoint.version))["steps"]
        if progress != last:
            last, moved = progress, now
        if now - moved > STALLED_SECONDS:
            raise ServingError(
                f"{endpoint.url} has computed nothing for {now - moved:.0f} s; {len(answers)} of {total} rows are "
                f"answered by {model}{log_tail(endpoint.log)}",
                _HINT,
            )
        if now - logged > LOG_SECONDS:
            logged = now
            report.log(
                f"replaying through {model}: {len(answers)} of {total} rows after {now - began:.0f} s; "
                "the machine is slow or busy, and work goes on"
            )


async def _complete(client: httpx.AsyncClient, endpoint: EndpointClient, model: str, example: Example) -> str:
    body = {"model": model, "messages": example.chat("")}
    while True:
        try:
            response = await client.post(endpoint.url + "/v1/chat/completions", json=body)
        except httpx.TransportError as error:
            raise ServingError(
                f"the connection to {endpoint.url} failed at row {example.id}: {error!r}{log_tail(endpoint.log)}", _HINT
            ) from error
        if response.status_code not in (429, 503):
            break
        await asyncio.sleep(float(response.headers.get("retry-after", "1")))  # the engine is full with other requests
    if response.status_code != 200:
        raise ServingError(
            f"{model} answers row {example.id} with status {response.status_code}: {response.text[:300]}", _HINT
        )
    return str(response.json()["choices"][0]["message"]["content"])

"""Is what is served what was evaluated? The held-out rows, asked through the live endpoint, beside the answers in the
evaluation's report.

    answers = replay(endpoint, "support_tickets@4", examples, report)        # through HTTP, 48 at a time
    result = compare(examples, answers, evaluated, base, spec)               # pure
    evaluate_parity(result, threshold=0.97, about=registered.content)                  # the verdict

A different chat template, a system prompt that is missing, a tokenizer that adds a token, another precision, an adapter
that was loaded only in part: each shows here, and nowhere else before the users. Answers are compared as values (JSON
objects by content, labels by name), and two answers that break the format by their text.

What it is not: a judgment of the model. That was the release decision's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

from finetune_pipeline.backends.progress import STALLED_SECONDS
from finetune_pipeline.baseline.answer_log import AnswerFile
from finetune_pipeline.baseline.metrics import canonical, score
from finetune_pipeline.clean.answers import parse
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.errors import ServingError
from finetune_pipeline.records import Answer, Check, Example, Reporter, Verdict
from finetune_pipeline.serve.client import Live, tail
from finetune_pipeline.statistics.formatting import percent

CONCURRENCY = 48  # leaves room for requests of others (engine.MAX_REQUESTS)
WATCH_SECONDS = 1.0
SAY_SECONDS = 60.0
BASE_ROWS = 4  # asked of the base first, and more until an answer differs: to see an adapter that does nothing


@dataclass(frozen=True, slots=True)
class Row:
    """One replayed row: what was served and what was evaluated, whether they agree, and whether each is right."""

    id: str
    equal: bool
    served: str
    evaluated: str
    served_exact: bool
    evaluated_exact: bool


@dataclass(frozen=True, slots=True)
class Parity:
    """`base_differs` of `base_rows` answers differ from the base model's to the same prompt."""

    rows: tuple[Row, ...]
    base_rows: int
    base_differs: int

    @property
    def share(self) -> float:
        return sum(row.equal for row in self.rows) / len(self.rows)

    @property
    def served_exact(self) -> float:
        return sum(row.served_exact for row in self.rows) / len(self.rows)

    @property
    def evaluated_exact(self) -> float:
        return sum(row.evaluated_exact for row in self.rows) / len(self.rows)


def same(one: str, other: str, spec: AnswerFormat) -> bool:
    """Whether two answers say the same: equal values, or the same text where both break the format."""
    values = []
    for text in (one, other):
        try:
            values.append((True, canonical(parse(text, spec))))
        except ValueError:
            values.append((False, text.strip()))
    return values[0] == values[1]


def chosen(examples: Sequence[Example], evaluated: Mapping[str, str], limit: int) -> list[Example]:
    """The rows to replay: those that were evaluated, `limit` at most, the same ones each time (by id: a hash)."""
    return sorted((e for e in examples if e.id in evaluated), key=lambda e: e.id)[:limit]


def compare(
    examples: Sequence[Example],
    served: Mapping[str, str],
    evaluated: Mapping[str, str],
    base: Mapping[str, str],
    spec: AnswerFormat,
) -> Parity:
    """Compare answers by row id. `served` holds every example; `base` the few that were asked of the base as well."""
    rows = tuple(
        Row(
            e.id,
            same(served[e.id], evaluated[e.id], spec),
            served[e.id],
            evaluated[e.id],
            score(e, Answer(e.id, "served", served[e.id]), spec).exact,
            score(e, Answer(e.id, "tuned", evaluated[e.id]), spec).exact,
        )
        for e in examples
    )
    differs = sum(served[id_] != text for id_, text in base.items())
    return Parity(rows, len(base), differs)


def evaluate_parity(parity: Parity, threshold: float, about: str) -> Verdict:
    """Passed when enough served answers equal the evaluated ones, and the adapter does something at all."""
    equal, total = sum(row.equal for row in parity.rows), len(parity.rows)
    checks = (
        Check(
            "served equals evaluated", parity.share >= threshold, f"at least {percent(threshold)} of the replayed rows",
            f"{equal} of {total} ({percent(parity.share)})", value=parity.share,
        ),
        Check(
            "the adapter is at work", parity.base_differs > 0, "an answer that differs from the base model's",
            f"{parity.base_differs} of {parity.base_rows} differ", value=parity.base_differs,
        ),
    )  # fmt: skip
    passed = all(check.passed for check in checks)
    summary = f"{equal} of {total} served answers equal the evaluated ones"
    if not passed:
        differing = [row.id for row in parity.rows if not row.equal]
        named = f"; differing rows: {', '.join(differing[:5])}{' …' if len(differing) > 5 else ''}" if differing else ""
        failed = "; ".join(check.name for check in checks if not check.passed)
        summary += f"; does not hold: {failed}{named}; nothing was moved"
    figures = {
        "rows": total,
        "equal": equal,
        "share": round(parity.share, 4),
        "served_exact": round(parity.served_exact, 4),
        "evaluated_exact": round(parity.evaluated_exact, 4),
    }
    return Verdict("deployed_endpoint", passed, about, summary, checks, figures)


# through the endpoint ---------------------------------------------------------------------------------------


def replay(
    endpoint: Live, model: str, examples: Sequence[Example], report: Reporter, kept: AnswerFile | None = None
) -> dict[str, str]:
    """The endpoint's answer to every example, by id; the endpoint adds system prompt and limits by itself.

    It takes as long as it takes: what ends it is an endpoint that computes nothing any more. Answers are added to
    `kept` as they come, and those that are there already are not asked for again.

    ServingError when a request fails: a replay with holes would compare something else than what is served.
    """
    before = {id_: answer.text for id_, answer in kept.of(model).items()} if kept else {}
    answers = {e.id: before[e.id] for e in examples if e.id in before}
    if answers:
        report.log(f"{len(answers)} answers of {model} are there from before")
    asyncio.run(_replay(endpoint, model, examples, answers, report, kept))
    return answers


async def _replay(
    endpoint: Live,
    model: str,
    examples: Sequence[Example],
    answers: dict[str, str],
    report: Reporter,
    kept: AnswerFile | None,
) -> None:
    places = asyncio.Semaphore(CONCURRENCY)
    limits = httpx.Limits(max_connections=CONCURRENCY)
    async with httpx.AsyncClient(timeout=None, limits=limits, headers=_headers(endpoint)) as client:  # noqa: S113

        async def one(example: Example) -> None:
            async with places:
                text = await _ask(client, endpoint, model, example)
            if kept is not None:
                kept.append(Answer(example.id, model, text))
            answers[example.id] = text
            report.progress(f"replaying through {model}", len(answers), len(examples))

        try:
            async with asyncio.TaskGroup() as group:
                asking = [group.create_task(one(e)) for e in examples if e.id not in answers]
                watching = group.create_task(_watch(endpoint, model, answers, len(examples), report))
                group.create_task(_all_done(asking, watching))
        except ExceptionGroup as several:
            raise several.exceptions[0] from several  # the first says it; the others are the same or follow from it


async def _all_done(asking: Sequence[asyncio.Task[None]], watching: asyncio.Task[None]) -> None:
    await asyncio.gather(*asking)
    watching.cancel()


async def _watch(endpoint: Live, model: str, answers: Mapping[str, str], total: int, report: Reporter) -> None:
    """Stay as long as answers come, or the endpoint computes. Its steps are those of all clients: who is served first
    on a busy machine is not known here."""
    seen: object = None
    moved = said = began = time.monotonic()
    while True:
        report.alive()
        await asyncio.sleep(WATCH_SECONDS)
        now = time.monotonic()
        figure = len(answers), (await asyncio.to_thread(endpoint.get, "/version"))["steps"]
        if figure != seen:
            seen, moved = figure, now
        if now - moved > STALLED_SECONDS:
            raise ServingError(
                f"{endpoint.url} has computed nothing for {now - moved:.0f} s; {len(answers)} of {total} rows are "
                f"answered by {model}{tail(endpoint.log)}",
                _CURE,
            )
        if now - said > SAY_SECONDS:
            said = now
            report.log(
                f"replaying through {model}: {len(answers)} of {total} rows after {now - began:.0f} s; "
                "the machine is slow or busy, and work goes on"
            )


async def _ask(client: httpx.AsyncClient, endpoint: Live, model: str, example: Example) -> str:
    body = {"model": model, "messages": example.chat("")}
    while True:
        try:
            response = await client.post(endpoint.url + "/v1/chat/completions", json=body)
        except httpx.TransportError as error:
            raise ServingError(
                f"{endpoint.url} broke off at row {example.id}: {error!r}{tail(endpoint.log)}", _CURE
            ) from error
        if response.status_code not in (429, 503):
            break
        await asyncio.sleep(float(response.headers.get("retry-after", "1")))  # other clients were first
    if response.status_code != 200:
        raise ServingError(
            f"{model} answers row {example.id} with {response.status_code}: {response.text[:300]}", _CURE
        )
    return str(response.json()["choices"][0]["message"]["content"])


def _headers(endpoint: Live) -> dict[str, str]:
    return {**endpoint.headers, "x-finetune-purpose": "parity"}


_CURE = "see the endpoint's log, and run again: the answers so far are kept, and nothing was moved"

"""Answers from a chat completions API: an inference.answerer.Answerer.

    answerer = ApiAnswerer(connection, "ft:gpt-4.1-mini-2025-04-14:acme:parcels:9x1", task.answer)
    answerer.answer(chats, Generation("tuned", 96), log.append, report)

Temperature 0 and a fixed seed. A provider computes one prompt beside others of its clients, so a repeated request may
still give another answer now and then. `Answer.seconds` is the time of the row's own request with its retries, and the
tokens are the provider's own count. Rows that were answered before an interruption are not sent again (answer_log.py).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.inference.answerer import nothing
from finetune_pipeline.inference.generate import Generation, Messages
from finetune_pipeline.inference.stopping import final
from finetune_pipeline.providers.connection import Connection, api_call, connect_async, connection_of
from finetune_pipeline.providers.record import ProviderModel
from finetune_pipeline.records import SILENT, Answer, Reporter

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

REQUESTS_AT_ONCE = 8
MAX_RETRIES = 8  # more than for a single call: many requests at once meet rate limits
ALIVE_SECONDS = 0.5


@dataclass(frozen=True)
class ApiAnswerer:
    """`model` is the name in the requests. `structured_outputs`: labels are chosen by a JSON schema; otherwise by the
    prompt alone."""

    where: Connection
    model: str
    spec: AnswerFormat
    requests_at_once: int = REQUESTS_AT_ONCE
    structured_outputs: bool = True

    @property
    def precision(self) -> None:
        """None: the provider does not say what it computes in."""

    def answer(
        self,
        chats: Mapping[str, Messages],
        settings: Generation,
        on_answer: Callable[[Answer], None] = nothing,
        report: Reporter = SILENT,
        done: int = 0,
        labels: Sequence[str] = (),
    ) -> list[Answer]:
        """See Answerer. ServingError when the API fails after its retries; JobCanceled."""
        answers: list[Answer] = []

        def collect(answer: Answer) -> None:
            on_answer(answer)
            answers.append(answer)
            report.progress(settings.variant, done + len(answers), done + len(chats))

        try:
            asyncio.run(self._all(chats, settings, collect, report, labels))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the others are the same, or follow from the first
        return answers

    def fits(self, chat: Messages, max_new_tokens: int) -> bool:
        """True: the context of the provider's model is not known here, and it refuses what does not fit by name."""
        return True

    async def _all(
        self,
        chats: Mapping[str, Messages],
        settings: Generation,
        collect: Callable[[Answer], None],
        report: Reporter,
        labels: Sequence[str],
    ) -> None:
        slots = asyncio.Semaphore(self.requests_at_once)
        async with connect_async(self.where, MAX_RETRIES) as client:

            async def one(id_: str, chat: Messages) -> None:
                async with slots:
                    collect(await self._one(client, id_, chat, settings, labels))

            async with asyncio.TaskGroup() as group:
                watch = group.create_task(_watch(report))
                rows = [group.create_task(one(id_, chat)) for id_, chat in chats.items()]
                await asyncio.gather(*rows)
                watch.cancel()

    async def _one(
        self, client: AsyncOpenAI, id_: str, chat: Messages, settings: Generation, labels: Sequence[str]
    ) -> Answer:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in chat],
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": settings.seed,
        }
        choose = bool(labels) and self.structured_outputs
        if choose:
            body["response_format"] = label_schema(labels)
        start = time.perf_counter()
        with api_call(f"answer row {id_} with {self.model}", self.where):
            completion: ChatCompletion = await client.chat.completions.create(**body)
        seconds = round(time.perf_counter() - start, 4)
        first, usage = completion.choices[0], completion.usage
        text = chosen_label(first.message.content or "") if choose else first.message.content or ""
        return Answer(
            id_,
            settings.variant,
            final(text, self.spec),
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
            seconds,
            first.finish_reason != "length",
        )


def api_answerer(model: ProviderModel, spec: AnswerFormat) -> ApiAnswerer:
    """The answerer of a provider's model. DeclarationError when its key is not in the environment."""
    provider = model.provider
    where = connection_of(provider, model.base_url)
    return ApiAnswerer(where, model.model, spec, provider.requests_at_once, provider.structured_outputs)


def label_schema(labels: Sequence[str]) -> dict[str, Any]:
    """`response_format` that allows one of the labels only."""
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": list(labels)}},
        "required": ["label"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": schema}}


def chosen_label(text: str) -> str:
    """The label in an answer to `label_schema`; the text itself where a server did not follow the schema."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return str(value["label"]) if isinstance(value, dict) and "label" in value else text


async def _watch(report: Reporter) -> None:
    """Lets the run cancel the requests."""
    while True:
        report.alive()
        await asyncio.sleep(ALIVE_SECONDS)

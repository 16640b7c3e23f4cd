"""Answers through the API: the requests, limits, retries, resuming, cancellation and errors."""

from __future__ import annotations

import pytest

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.errors import JobCanceled, ModelError, ServingError
from finetune_pipeline.inference.answerer import Answerer
from finetune_pipeline.inference.generate import Generation
from finetune_pipeline.providers.api_answerer import ApiAnswerer, chosen_label
from finetune_pipeline.providers.connection import Connection
from finetune_pipeline.records import Answer, Silent
from finetune_pipeline_tests.providers.fake_provider import KEY, MODEL, FakeProvider

LABELS = ("red", "green", "blue")
SPEC = AnswerFormat(format="label", labels=LABELS)
HOW = Generation("tuned", 24)
TUNED = f"ft:{MODEL}:acme:doors:9x1"


def chats(count: int) -> dict[str, list[dict[str, str]]]:
    return {f"q{i}": [{"role": "user", "content": f"door {i}"}] for i in range(count)}


def answerer(url: str, requests_at_once: int = 4, model: str = MODEL) -> ApiAnswerer:
    return ApiAnswerer(Connection(url, KEY), model, SPEC, requests_at_once)


def test_every_row_is_answered_with_tokens_and_seconds(provider: FakeProvider, url: str) -> None:
    provider.tuned, provider.answers = [TUNED], {"door 3": "blue\nbecause of the paint"}
    model: Answerer = answerer(url, model=TUNED)
    found = {answer.id: answer for answer in model.answer(chats(20), HOW)}
    assert len(found) == 20
    assert found["q3"].text == "blue", "cut where a label is complete, as on this machine"
    assert (found["q1"].prompt_tokens, found["q1"].completion_tokens, found["q1"].finished) == (2, 2, True)
    assert found["q1"].seconds >= 0.02
    assert provider.most_open_chats <= 4
    body = provider.chats[0]
    assert (body["temperature"], body["seed"], body["max_tokens"], body["model"]) == (0.0, 0, 24, TUNED)
    assert "response_format" not in body


def test_a_prompted_baseline_chooses_among_the_labels(provider: FakeProvider, url: str) -> None:
    found = answerer(url).answer(chats(1), HOW, labels=LABELS)
    assert [answer.text for answer in found] == ["red"]
    schema = provider.chats[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["label"]["enum"] == list(LABELS)
    assert (chosen_label("red"), chosen_label('{"label": "red"}'), chosen_label("[1]")) == ("red", "red", "[1]")


def test_rate_limits_and_failures_of_the_server_are_retried(provider: FakeProvider, url: str) -> None:
    provider.faults = {("POST", "/chat"): [429, 500, "drop", 429]}
    assert len(answerer(url).answer(chats(6), HOW)) == 6


def test_what_was_answered_before_a_failure_was_passed_on(provider: FakeProvider, url: str) -> None:
    provider.faults = {("POST", "/chat"): [0, 0, 400]}
    kept: list[Answer] = []
    with pytest.raises(ServingError, match=r"could not answer row q\d with .*: fault 400"):
        answerer(url, requests_at_once=1).answer(chats(5), HOW, kept.append)
    assert len(kept) == 2
    left = {id_: chat for id_, chat in chats(5).items() if id_ not in {answer.id for answer in kept}}
    answerer(url).answer(left, HOW, kept.append)
    assert sorted(answer.id for answer in kept) == [f"q{i}" for i in range(5)]


def test_a_model_that_is_gone_is_named(url: str) -> None:
    with pytest.raises(ModelError, match="The model `ft:gone` does not exist") as caught:
        answerer(url, model="ft:gone").answer(chats(2), HOW)
    assert "check the name of the model" in caught.value.hint


def test_a_canceled_run_stops_the_requests(provider: FakeProvider, url: str) -> None:
    class Canceled(Silent):
        def alive(self) -> None:
            if len(provider.chats) > 3:
                raise JobCanceled("stopped", "run again")

    with pytest.raises(JobCanceled):
        answerer(url, requests_at_once=1).answer(chats(500), HOW, report=Canceled())
    assert len(provider.chats) < 400

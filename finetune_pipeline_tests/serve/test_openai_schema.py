"""The request schema: errors name the field and what to do; unsupported parameters are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_pipeline.serve import openai_schema
from finetune_pipeline.serve.openai_schema import ApiError, parse_request

GOOD: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def refused(**changes: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_request(json.dumps({**GOOD, **changes}).encode())
    assert caught.value.status == 400
    return caught.value


def test_a_plain_request() -> None:
    request = parse_request(json.dumps(GOOD | {"user": "u", "n": 1, "tools": [], "temperature": None}).encode())
    assert (
        request.chat == [{"role": "user", "content": "hi"}]
        and request.max_answer_tokens is None
        and request.stops == ()
    )


def test_text_parts_and_the_developer_role_are_accepted() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    request = parse_request(json.dumps(GOOD | {"messages": messages}).encode())
    assert request.chat == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "ab"}]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"hello",
        b'{"model": ',
        b"\xff\xfe",
        b"[]",
        b'"text"',
        b"null",
        b"[" * 40_000,
        b'{"model": "\\ud800"}',
        b'{"temperature": NaN}',
        b'{"seed": 1' + b"0" * 5000 + b"}",
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(ApiError, match="JSON") as caught:
        parse_request(raw)
    assert caught.value.status == 400 and caught.value.code == "invalid_json"


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hi"}, "messages", "list"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "the last message must have the role user"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages.0.role", "'user'"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "hot"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"stop": ["a", ""]}, "stop", "must not be empty"),
        ({"model": ""}, "model", "at least 1"),
        ({"model": "m" * 201}, "model", "at most 200"),
        ({"seed": 2**70}, "seed", "less than"),
        ({"seed": -(2**63) - 1}, "seed", "greater than"),
        ({"stop": ["a"] * 5}, "stop", "up to 4"),
        ({"stop": "a" * 257}, "stop", "nor longer than 256 characters"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}]}, "messages.0", "`tool_calls`"),
        ({"messages": [{"role": "user", "content": "x", "weight": 0}]}, "messages.0", "`weight`"),
        ({"messages": [GOOD["messages"][0]] * 3000}, "messages", "at most 2048"),
    ],
)
def test_an_error_names_the_field_and_the_problem(changes: dict[str, Any], field: str, message: str) -> None:
    error = refused(**changes)
    assert error.param == field and message in error.message


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 2},
        {"logprobs": True},
        {"tools": [{"type": "function"}]},
        {"presence_penalty": 1.5},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_unsupported_parameters_are_refused_not_ignored(changes: dict[str, Any]) -> None:
    assert f"`{next(iter(changes))}` is not supported" in refused(**changes).message


def test_validation_stops_at_the_first_wrong_message() -> None:
    """A million wrong messages must not become a million errors."""
    raw = b'{"model": "m", "messages": [' + b"1," * 1_000_000 + b"1]}"
    with pytest.raises(ApiError) as caught:
        parse_request(raw)
    assert caught.value.param in ("messages", "messages.0") and len(caught.value.message) < 300


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model": "m", "messages": [' + b"{}," * 1_000_000 + b"1]}",
        b"{" + b",".join(b'"%d":1' % n for n in range(300_000)) + b"}",
        json.dumps({"messages": [{"content": [{"type": "text", "text": "a"}] * 256}] * 200}).encode(),
    ],
    ids=["objects", "keys", "parts"],
)
def test_a_million_tiny_values_are_not_parsed(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_schema, "from_json", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(ApiError, match="shorten `messages`"):
        parse_request(raw)


def test_too_many_parameters_are_refused_by_their_number() -> None:
    assert "100 parameters" in refused(**{f"p{n}": 1 for n in range(98)}).message


def test_an_unknown_parameter_is_named() -> None:
    for name in ("top_k", "min_p", "temprature", "repetition_penalty"):
        assert f"`{name}` is not a parameter of this endpoint" in refused(**{name: 1}).message
    assert len(refused(**{"x" * 100_000: 1}).message) < 200


def test_extra_fields_of_openai_messages_are_accepted() -> None:
    """A message of the openai client, sent back unchanged."""
    answer: dict[str, object] = {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None}
    answer |= {"function_call": None, "tool_calls": None}
    messages = [GOOD["messages"][0], answer, {"role": "user", "content": "b", "name": "anna"}]
    request = parse_request(json.dumps(GOOD | {"messages": messages, "metadata": {"a": "b"}, "store": False}).encode())
    assert len(request.chat) == 3

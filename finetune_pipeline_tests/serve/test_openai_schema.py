"""The wire format: bad requests name the field and the hint; what cannot be honored is refused."""

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
    assert request.chat == [{"role": "user", "content": "hi"}] and request.limit is None and request.stops == ()


def test_parts_and_the_developer_role_are_understood() -> None:
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
def test_a_body_that_is_no_request(raw: bytes) -> None:
    with pytest.raises(ApiError, match="JSON") as caught:
        parse_request(raw)
    assert caught.value.status == 400 and caught.value.code == "invalid_json"


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hi"}, "messages", "list"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "last message has to be the user's"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages.0.role", "'user'"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "hot"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"stop": ["a", ""]}, "stop", "not empty"),
        ({"model": ""}, "model", "at least 1"),
        ({"model": "m" * 201}, "model", "at most 200"),
        ({"seed": 2**70}, "seed", "less than"),
        ({"seed": -(2**63) - 1}, "seed", "greater than"),
        ({"stop": ["a"] * 5}, "stop", "up to 4"),
        ({"stop": "a" * 257}, "stop", "256 characters at most"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}]}, "messages.0", "`tool_calls`"),
        ({"messages": [{"role": "user", "content": "x", "weight": 0}]}, "messages.0", "`weight`"),
        ({"messages": [GOOD["messages"][0]] * 3000}, "messages", "at most 2048"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_the_cure(changes: dict[str, Any], field: str, says: str) -> None:
    error = refused(**changes)
    assert error.param == field and says in error.message


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
def test_what_cannot_be_honored_is_refused_not_ignored(changes: dict[str, Any]) -> None:
    assert f"`{next(iter(changes))}` is not supported" in refused(**changes).message


def test_the_first_thing_that_is_wrong_is_enough() -> None:
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
def test_a_million_tiny_values_are_not_read(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_schema, "from_json", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ApiError, match="shorten `messages`"):
        parse_request(raw)


def test_more_parameters_than_there_are_are_refused_unseen() -> None:
    assert "100 parameters" in refused(**{f"p{n}": 1 for n in range(98)}).message


def test_a_parameter_nobody_knows_is_named() -> None:
    for name in ("top_k", "min_p", "temprature", "repetition_penalty"):
        assert f"`{name}` is no parameter of this endpoint" in refused(**{name: 1}).message
    assert len(refused(**{"x" * 100_000: 1}).message) < 200


def test_what_clients_send_along_is_taken() -> None:
    """openai's own message, sent back as it came."""
    answer: dict[str, object] = {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None}
    answer |= {"function_call": None, "tool_calls": None}
    messages = [GOOD["messages"][0], answer, {"role": "user", "content": "b", "name": "anna"}]
    request = parse_request(json.dumps(GOOD | {"messages": messages, "metadata": {"a": "b"}, "store": False}).encode())
    assert len(request.chat) == 3

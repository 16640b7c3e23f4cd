"""The wire format: what a chat request may say, and the shapes of answers, pieces and errors, as OpenAI's API has them.

    POST /v1/chat/completions
    {"model": "support_tickets", "messages": [{"role": "user", "content": "where is HV-48213?"}], "stream": false}

A parameter that would change the answer and that this endpoint cannot honour is refused, never ignored: an answer that
silently is not what was asked for is worse than none. Parameters that change nothing (`user`, `metadata`) are accepted.

What it is not: the application (app.py), or what is done with an answer (answering.py). Values only.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from finetune_pipeline.serve.traffic import Status

DEFAULTS: dict[str, tuple[Any, ...]] = {  # parameters that are taken only at the values that change nothing
    "n": (1,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}


class ApiError(Exception):
    """An answer that is an error: status, OpenAI's error object, and headers such as Retry-After."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.headers = status, message, code, param, headers or {}

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Part(BaseModel):
    type: Literal["text"]
    text: str


class Turn(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of a chat request; unknown keys are allowed, as clients send more every month."""

    model_config = ConfigDict(extra="allow")
    model: str = Field(min_length=1)
    messages: list[Turn] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None

    @field_validator("messages")
    @classmethod
    def _asks(cls, turns: list[Turn]) -> list[Turn]:
        if turns[-1].role != "user":
            raise ValueError(f"the last message has to be the user's, not the {turns[-1].role}'s")
        return turns

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: str | list[str] | None) -> str | list[str] | None:
        given = [stop] if isinstance(stop, str) else stop or []
        if len(given) > 4 or not all(given):
            raise ValueError("give up to 4 stop strings, none of them empty")
        return stop

    @model_validator(mode="after")
    def _honourable(self) -> ChatRequest:
        for name, value in (self.model_extra or {}).items():
            if name in DEFAULTS and value is not None and value not in DEFAULTS[name]:
                raise ValueError(f"`{name}` is not supported by this endpoint; leave it out")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def chat(self) -> list[dict[str, str]]:
        """The messages as a chat template takes them; `developer` is what newer clients call `system`."""
        roles = {"developer": "system"}
        return [{"role": roles.get(turn.role, turn.role), "content": turn.text} for turn in self.messages]


def parse_request(raw: bytes) -> ChatRequest:
    """The request in a body. ApiError 400 names the field that is wrong, its value, and the cure."""
    try:
        body = json.loads(raw)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        where = f" ({error.msg}, character {error.pos})" if isinstance(error, json.JSONDecodeError) else ""
        raise ApiError(
            400,
            f'the body is no JSON{where}; send {{"model": "…", "messages": [{{"role": "user", …}}]}}',
            "invalid_json",
        ) from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is a JSON {type(body).__name__}; send an object", "invalid_json")
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        raise _shape_error(error) from None


def _shape_error(error: ValidationError) -> ApiError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part not in ("str", "list[Part]", "list[str]"))
    message = first["msg"].removeprefix("Value error, ")
    shown = repr(first["input"])
    if first["type"] == "missing":
        return ApiError(
            400, f"`{field}` is missing; every chat request needs `model` and `messages`", "missing_field", field
        )
    value = f" (it is {shown})" if len(shown) <= 80 and not isinstance(first["input"], dict) else ""
    return ApiError(400, f"`{field}`: {message}{value}" if field else message, "invalid_value", field or None)


def completion(
    request_id: str,
    created: int,
    model: str,
    fingerprint: str,
    text: str,
    reason: str,
    usage: dict[str, int],
    trace: Any,
) -> dict[str, Any]:
    """A plain answer. `trace` is the extension object `finetune` (version, adapter, validity)."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    head = {"id": request_id, "object": "chat.completion", "created": created, "model": model}
    return {**head, "system_fingerprint": fingerprint, "choices": [choice], "usage": usage, "finetune": trace}


def chunk(
    request_id: str, created: int, model: str, fingerprint: str, delta: dict[str, str] | None, reason: str | None = None
) -> dict[str, Any]:
    """A piece of a streamed answer; without `delta` the closing piece that carries usage and no choice."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]
    head = {"id": request_id, "object": "chat.completion.chunk", "created": created, "model": model}
    return {**head, "system_fingerprint": fingerprint, "choices": choices}


def usage_of(prompt_tokens: int, answer_tokens: int) -> dict[str, int]:
    total = prompt_tokens + answer_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": answer_tokens, "total_tokens": total}


def event(row: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(row, ensure_ascii=False)}\n\n"


def trace_of(
    task: str, version: int, adapter: str, request: str, status: Status, valid: bool | None, problem: str | None
) -> dict[str, Any]:
    """The extension object: which model answered, and whether the answer keeps the task's format."""
    facts = {"task": task, "version": version, "adapter": adapter, "request": request}
    return {**facts, "status": status, "valid": valid, "problem": problem}

"""The wire format: what a chat request may say, and the shapes of answers, pieces and errors, as OpenAI's API has them.

    POST /v1/chat/completions
    {"model": "support_tickets", "messages": [{"role": "user", "content": "where is HV-48213?"}], "stream": false}

A parameter that would change the answer and that this endpoint cannot honor is refused, never ignored: an answer that
silently is not what was asked for is worse than none. So is one that it does not know (`top_k`, or a misspelled name).
Parameters that change nothing (`user`, `metadata`) are accepted.

What it is not: the application (app.py), or what is done with an answer (generation.py). Values only.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

from finetune_pipeline.serve.traffic import Status

DEFAULTS: dict[str, tuple[Any, ...]] = {  # OpenAI's parameters that are taken only at the values that change nothing
    "n": (1,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "verbosity": (),
}
NOTES = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")  # change no answer
ECHOED = ("name", "refusal", "annotations", "audio", "tool_calls", "function_call")  # clients send messages back whole
MAX_MESSAGES, MAX_PARTS, MAX_KEYS = 2048, 256, 64
MAX_MARKS = 50_000  # of JSON (and quoted in texts): a body of a million tiny values would keep everybody waiting
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 256
SEED = 2**63


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
    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=MAX_PARTS)]

    @model_validator(mode="after")
    def _nothing_lost(self) -> Turn:
        for name, value in (self.model_extra or {}).items():
            if name not in ECHOED or (value and name != "name" and name != "annotations"):
                raise ValueError(f"`{shown(name)}` of a message is not supported by this endpoint; leave it out")
        return self

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of a chat request. Every number and every list has a bound, so that none can cost time or break another
    request's computation."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    model: str = Field(min_length=1, max_length=200)
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES), FailFast()]
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-SEED, lt=SEED)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None

    @field_validator("messages")
    @classmethod
    def _asks(cls, turns: list[Turn]) -> list[Turn]:
        if turns[-1].role != "user":
            raise ValueError(f"the last message has to be the user's, not the {turns[-1].role}'s")
        return turns

    @field_validator("stop", mode="before")
    @classmethod
    def _few(cls, stop: Any) -> Any:
        given = stop if isinstance(stop, list) else [stop]
        if len(given) > MAX_STOPS:
            raise ValueError(f"give up to {MAX_STOPS} stop strings")
        if any(isinstance(text, str) and not 0 < len(text) <= MAX_STOP_CHARACTERS for text in given):
            raise ValueError(f"a stop string is not empty, and has {MAX_STOP_CHARACTERS} characters at most")
        return stop

    @model_validator(mode="after")
    def _honorable(self) -> ChatRequest:
        for name, value in (self.model_extra or {}).items():
            if name in DEFAULTS:
                if value is not None and value not in DEFAULTS[name]:
                    raise ValueError(f"`{name}` is not supported by this endpoint; leave it out")
            elif name not in NOTES:
                raise ValueError(f"`{shown(name)}` is no parameter of this endpoint; leave it out")
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
    """The request in a body. ApiError 400 names the field that is wrong, its value, and the hint.

    pydantic's own JSON reader: unlike Python's it refuses lone surrogates, NaN, and nesting without end."""
    if sum(raw.count(mark) for mark in (b"{", b"[", b'"')) > MAX_MARKS:
        raise ApiError(
            400, f'the body has more than {MAX_MARKS} of {{, [ and "; shorten `messages`', "body_too_complex"
        )
    try:
        body = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(
            400,
            f'the body is no JSON ({error}); send {{"model": "…", "messages": [{{"role": "user", …}}]}}',
            "invalid_json",
        ) from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is a JSON {type(body).__name__}; send an object", "invalid_json")
    if len(body) > MAX_KEYS:
        raise ApiError(400, f"the body has {len(body)} parameters; this endpoint knows fewer", "invalid_value")
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        raise _shape_error(error) from None


def shown(text: str) -> str:
    """What a client sent, short enough for a message and without control characters."""
    return repr(text[:80])[1:-1] + ("…" if len(text) > 80 else "")


def _shape_error(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("str", "list", "function")))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return ApiError(
            400, f"`{field}` is missing; every chat request needs `model` and `messages`", "missing_field", field
        )
    given = first["input"]
    value = f" (it is {given!r})" if isinstance(given, bool | float) or _short(given) else ""
    return ApiError(400, f"`{field}`: {message}{value}" if field else message, "invalid_value", field or None)


def _short(value: Any) -> bool:
    return len(value) <= 60 if isinstance(value, str) else isinstance(value, int) and abs(value) < 10**40


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


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def event(row: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(row, ensure_ascii=False)}\n\n"


def trace_of(
    task: str, version: int, adapter: str, request: str, status: Status, valid: bool | None, problem: str | None
) -> dict[str, Any]:
    """The extension object: which model answered, and whether the answer keeps the task's format."""
    facts = {"task": task, "version": version, "adapter": adapter, "request": request}
    return {**facts, "status": status, "valid": valid, "problem": problem}

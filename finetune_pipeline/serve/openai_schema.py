"""Validates the body of a chat request, and defines the error object, both as in OpenAI's API.

    POST /v1/chat/completions
    {"model": "support_tickets", "messages": [{"role": "user", "content": "where is HV-48213?"}], "stream": false}

A parameter that would change the answer and that this endpoint does not support is refused, never ignored: the answer
would not be the one that was requested. So is an unknown parameter (`top_k`, or a misspelled name). Parameters that
change no answer (`user`, `metadata`) are accepted.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, field_validator, model_validator
from pydantic_core import from_json

NEUTRAL_VALUES: dict[
    str, tuple[Any, ...]
] = {  # OpenAI's parameters that are accepted only with values that change nothing
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
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")  # change no answer
ECHOED = ("name", "refusal", "annotations", "audio", "tool_calls", "function_call")  # clients send whole messages back
MAX_MESSAGES, MAX_PARTS, MAX_KEYS = 2048, 256, 64
MAX_JSON_MARKS = 50_000  # {, [ and ", also within texts: parsing a million tiny values would delay all other requests
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 256
SEED_BOUND = 2**63


class ApiError(Exception):
    """An error response: status, OpenAI's error object, and headers such as Retry-After."""

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
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_PARTS)]

    @model_validator(mode="after")
    def _check_extra_fields(self) -> ChatMessage:
        for name, value in (self.model_extra or {}).items():
            if name not in ECHOED or (value and name != "name" and name != "annotations"):
                raise ValueError(f"`{excerpt(name)}` of a message is not supported by this endpoint; leave it out")
        return self

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of a chat request. Every number and every list has a bound, so that no request can delay or break
    another."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    model: str = Field(min_length=1, max_length=200)
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES), FailFast()]
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-SEED_BOUND, lt=SEED_BOUND)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None

    @field_validator("messages")
    @classmethod
    def _check_last_role(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        if messages[-1].role != "user":
            raise ValueError(f"the last message must have the role user, not {messages[-1].role}")
        return messages

    @field_validator("stop", mode="before")
    @classmethod
    def _check_stop(cls, stop: Any) -> Any:
        strings = stop if isinstance(stop, list) else [stop]
        if len(strings) > MAX_STOPS:
            raise ValueError(f"there are {len(strings)} stop strings; send up to {MAX_STOPS}")
        if any(isinstance(text, str) and not 0 < len(text) <= MAX_STOP_CHARACTERS for text in strings):
            raise ValueError(f"a stop string must not be empty, nor longer than {MAX_STOP_CHARACTERS} characters")
        return stop

    @model_validator(mode="after")
    def _check_parameters(self) -> ChatRequest:
        for name, value in (self.model_extra or {}).items():
            if name in NEUTRAL_VALUES:
                if value is not None and value not in NEUTRAL_VALUES[name]:
                    raise ValueError(f"`{name}` is not supported by this endpoint; leave it out")
            elif name not in IGNORED:
                raise ValueError(f"`{excerpt(name)}` is not a parameter of this endpoint; leave it out")
        return self

    @property
    def max_answer_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def sampling(self) -> tuple[float, float, int]:
        """Temperature, top_p and seed; without them greedy decoding."""
        return self.temperature or 0.0, 1.0 if self.top_p is None else self.top_p, self.seed or 0

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def chat(self) -> list[dict[str, str]]:
        """The messages in the form of chat templates; newer clients call the role `system` `developer`."""
        roles = {"developer": "system"}
        return [{"role": roles.get(message.role, message.role), "content": message.text} for message in self.messages]


def parse_request(raw: bytes) -> ChatRequest:
    """The request in a body. ApiError 400 names the wrong field, its value, and what to do.

    It uses pydantic's JSON parser, which unlike Python's refuses lone surrogates, NaN and unbounded nesting."""
    if sum(raw.count(mark) for mark in (b"{", b"[", b'"')) > MAX_JSON_MARKS:
        raise ApiError(
            400, f'the body has more than {MAX_JSON_MARKS} of {{, [ and "; shorten `messages`', "body_too_complex"
        )
    try:
        body = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(
            400,
            f'the body is not JSON ({error}); send {{"model": "…", "messages": [{{"role": "user", …}}]}}',
            "invalid_json",
        ) from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is a JSON {type(body).__name__}; send an object", "invalid_json")
    if len(body) > MAX_KEYS:
        raise ApiError(400, f"the body has {len(body)} parameters; send at most {MAX_KEYS}", "invalid_value")
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        raise _validation_error(error) from None


def excerpt(text: str) -> str:
    """The first 80 characters of what a client sent, without control characters, for a message."""
    return repr(text[:80])[1:-1] + ("…" if len(text) > 80 else "")


def _validation_error(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("str", "list", "function")))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return ApiError(
            400, f"`{field}` is missing; every chat request needs `model` and `messages`", "missing_field", field
        )
    received = first["input"]
    value = f" (it is {received!r})" if isinstance(received, bool | float) or _is_short(received) else ""
    return ApiError(400, f"`{field}`: {message}{value}" if field else message, "invalid_value", field or None)


def _is_short(value: Any) -> bool:
    return len(value) <= 60 if isinstance(value, str) else isinstance(value, int) and abs(value) < 10**40

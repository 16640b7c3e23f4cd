"""Response bodies of the chat API: completions, chunks of a stream, usage, and the extension object `finetune`.

ResponseHead("chatcmpl-…", 1767607200, "support_tickets", "support_tickets@4:9be0…")
chunk(head, {"content": "{\\"intent\\""})
sse_event(chunk(head, {}, "stop"))                  # "data: {…}\\n\\n"
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from finetune_pipeline.serve.traffic import Status

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What all chunks of one response share. `created` is in Unix seconds; `fingerprint` is `system_fingerprint`."""

    id: str
    created: int
    model: str
    fingerprint: str

    def body(self, kind: str) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "system_fingerprint": self.fingerprint}


@dataclass(frozen=True, slots=True)
class AnswerTrace:
    """The extension object `finetune`: the version that the request was routed to (with `status` "fallback" the base
    model answered), and whether the answer keeps the task's format (`valid`, None without a declared format; `problem`
    is what breaks it)."""

    task: str
    version: int
    adapter: str
    request: str
    status: Status
    valid: bool | None
    problem: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def completion(head: ResponseHead, text: str, finish: str, usage: dict[str, int], trace: AnswerTrace) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    return head.body("chat.completion") | {"choices": [choice], "usage": usage, "finetune": trace.to_json()}


def chunk(head: ResponseHead, delta: dict[str, str] | None, finish: str | None = None) -> dict[str, Any]:
    """A chunk of a streamed answer; without `delta` the last chunk, which has `usage` and no choice."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
    return head.body("chat.completion.chunk") | {"choices": choices}


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def sse_event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

"""When an answer is complete before the model says so: the same rule in evaluation and serving, for every variant.

    stop = StopRule(tokenizer.decode, spec)          # goes into Request.stop: called with the answer's ids so far
    complete('{"a": {"b": 1}} I hope', spec)         # '{"a": {"b": 1}}'
    complete('```json\\n{"a": 1}\\n``` I', spec)      # '```json\\n{"a": 1}\\n```'
    complete('refund\\nThe customer wants', spec)     # 'refund'   (format: label)

- json: the first complete object or array that the answer begins with ends it, and what follows is cut off. In a
  Markdown fence (```json) it is complete at the closing fence, which stays.
- label: the first line with text in it ends it.
- text: only the model ends it.

Why: an untuned model gives the right object and then explains it. Cutting is what any caller would do, it helps the
prompted variants more than the tuned one (so a gain is not an artifact of it), and it saves the rambling's time. Why
not more: an answer that begins with other words goes on, because a second object may follow, and then nothing says
which of them is meant. How an answer is read (`clean.answers.lenient`) is the same before and after the cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from finetune_pipeline.config import AnswerFormat

_CLOSING = {"json": "}]`", "label": "\n", "text": ""}
_OPENS, _CLOSES = re.compile(r"```\w*\s*"), re.compile(r"\s*```")
_json = json.JSONDecoder()


def complete(text: str, spec: AnswerFormat) -> str | None:
    """The answer within `text` if it is complete there, cut at its end and stripped; else None."""
    bare = text.lstrip()
    if spec.format == "json":
        return _complete_json(bare)
    if spec.format == "label" and "\n" in bare:
        return bare.split("\n", 1)[0].strip()
    return None


def _complete_json(text: str) -> str | None:
    fence = _OPENS.match(text)
    start = fence.end() if fence else 0
    if not text.startswith(("{", "["), start):
        return None
    try:
        _, end = _json.raw_decode(text, start)
    except (json.JSONDecodeError, RecursionError):
        return None
    if fence is None:
        return text[:end]
    closed = _CLOSES.match(text, end)
    return text[: closed.end()] if closed else None


def final(text: str, spec: AnswerFormat) -> str:
    """The answer's text when generation has ended: cut where it was complete, else as it is, stripped."""
    found = complete(text, spec)
    return text.strip() if found is None else found


class StopRule:
    """Says whether an answer's ids are a complete answer. `decode` turns ids into text.

    The whole answer is decoded only when its last token can have completed it, which is rare.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], spec: AnswerFormat) -> None:
        self._decode, self._spec = decode, spec
        self._closing = _CLOSING[spec.format]

    def __call__(self, ids: Sequence[int]) -> bool:
        if not self._closing or not set(self._closing) & set(self._decode(ids[-1:])):
            return False
        return complete(self._decode(ids), self._spec) is not None

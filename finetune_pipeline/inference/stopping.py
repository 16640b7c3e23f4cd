"""Stop generation when the answer is complete in its declared format; the same in evaluation and serving.

    stop = StopRule(tokenizer.decode, spec)          # for Request.stop: called with the answer's ids so far
    complete('{"a": {"b": 1}} I hope', spec)         # '{"a": {"b": 1}}'
    complete('```json\\n{"a": 1}\\n``` I', spec)      # '```json\\n{"a": 1}\\n```'
    complete('refund\\nThe customer wants', spec)     # 'refund'   (format: label)

- json: the answer ends after a complete object or array at its beginning; the rest is cut off. In a Markdown fence
  (```json) it ends after the closing fence, which is kept.
- label: it ends after the first line that is not empty.
- text: only an end-of-turn token ends it.

Reason: an untuned model generates the right object and then explains it. Any caller would cut the explanation; this
helps the prompted variants more than the tuned one, so it does not exaggerate a gain; and it saves time. An answer that
begins with other words is not cut, because a second object may follow, and it is unclear which of them counts. The
result of `clean.answers.lenient` is the same before and after the cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from finetune_pipeline.config import AnswerFormat

_CLOSING = {"json": "}]`", "label": "\n", "text": ""}
_FENCE_START, _FENCE_END = re.compile(r"```\w*\s*"), re.compile(r"\s*```")
_json = json.JSONDecoder()


def complete(text: str, spec: AnswerFormat) -> str | None:
    """The complete answer at the beginning of `text`, stripped; None when it is not complete."""
    stripped = text.lstrip()
    if spec.format == "json":
        return _complete_json(stripped)
    if spec.format == "label" and "\n" in stripped:
        return stripped.split("\n", 1)[0].strip()
    return None


def _complete_json(text: str) -> str | None:
    fence = _FENCE_START.match(text)
    start = fence.end() if fence else 0
    if not text.startswith(("{", "["), start):
        return None
    try:
        _, end = _json.raw_decode(text, start)
    except (json.JSONDecodeError, RecursionError):
        return None
    if fence is None:
        return text[:end]
    closed = _FENCE_END.match(text, end)
    return text[: closed.end()] if closed else None


def final(text: str, spec: AnswerFormat) -> str:
    """The answer's text after generation: cut where it is complete, else all of it; stripped."""
    answer = complete(text, spec)
    return text.strip() if answer is None else answer


class StopRule:
    """Whether token ids are a complete answer. `decode` turns ids into text.

    The whole answer is decoded only when its last token contains a closing character, which is rare.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], spec: AnswerFormat) -> None:
        self._decode, self._spec = decode, spec
        self._closing = _CLOSING[spec.format]

    def __call__(self, ids: Sequence[int]) -> bool:
        if not self._closing or not set(self._closing) & set(self._decode(ids[-1:])):
            return False
        return complete(self._decode(ids), self._spec) is not None

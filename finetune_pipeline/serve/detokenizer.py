"""Incremental detokenization: token ids in, text deltas out, never half a character, ended by stop strings.

    stream = TextStream(decode, answer_format, stop=("\\n\\n",))
    for token in tokens: send(stream.add(token))       # "" while a character of several tokens is not complete
    send(stream.end())                                 # all deltas joined == stream.text, the plain answer

A character may be spread over several tokens (an emoji over four). Decoding shows an incomplete one as U+FFFD, so
U+FFFD at the end is held back until the next token. Each step decodes the whole answer: the cost grows with the square
of its length (20 ms in all for 500 tokens), and the result equals one decode by construction.

inference/stopping.py defines where an answer ends (a complete JSON object, the line of a label). White space around an
answer is not part of it: it is dropped at the beginning, and held back until other text follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.inference.stopping import complete

REPLACEMENT_CHARACTER = "\ufffd"


class TextStream:
    """The text of one answer. `decode` turns token ids into text without special tokens; `answer_format` defines when
    an answer is complete."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], answer_format: AnswerFormat, stop: tuple[str, ...] = ()
    ) -> None:
        self._decode, self._format, self._stop = decode, answer_format, stop
        self._ids: list[int] = []
        self._sent = 0
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that became final with this token; "" after a stop string."""
        if self.stopped:
            return ""
        self._ids.append(token)
        self.text = self._decode(self._ids).lstrip()
        cut = first_stop(self.text, self._stop)
        if cut is not None:
            self.text, self.stopped = self.text[:cut].rstrip(), True
        whole = complete(self.text, self._format)
        if whole is not None:
            self.text, self.stopped = whole, True
        if self.stopped:
            return self._delta(len(self.text))
        final = len(self.text) - partial_stop(self.text, self._stop)
        return self._delta(len(self.text[:final].rstrip(REPLACEMENT_CHARACTER).rstrip()))

    def end(self) -> str:
        """The text that was held back, when no more tokens follow."""
        self.text = self.text.rstrip()
        return self._delta(len(self.text))

    def _delta(self, upto: int) -> str:
        delta = self.text[self._sent : max(upto, self._sent)]
        self._sent += len(delta)
        return delta


def first_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """The index of the earliest stop string in `text`."""
    indices = [index for string in stop if (index := text.find(string)) >= 0]
    return min(indices) if indices else None


def partial_stop(text: str, stop: tuple[str, ...]) -> int:
    """The length of the longest end of `text` that may be the beginning of a stop string."""
    return max((n for string in stop for n in range(1, len(string)) if text.endswith(string[:n])), default=0)

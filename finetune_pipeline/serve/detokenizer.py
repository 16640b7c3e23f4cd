"""Tokens to text while they come: pieces that never break a character, ended by stop strings.

    stream = TextStream(decode, stop=("\\n\\n",))
    for token in tokens: send(stream.add(token))       # "" while a character of several tokens is not complete
    send(stream.end())                                 # pieces joined == stream.text, the text of a plain answer

A character may be spread over several tokens (an emoji over four). The decoder shows what is not complete yet as
U+FFFD, so a trailing run of these is held back until the next token settles it. Each step decodes the whole answer: the
cost grows with its square, which is 20 ms in all for 500 tokens, and the result is by construction that of one decode.

What is an answer's end is inference/stopping.py's word (a JSON object that is complete, a label's line), and space
around an answer belongs to none: it is not sent at the beginning, and held back until something follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.inference.stopping import complete

UNSETTLED = "\ufffd"


class TextStream:
    """Text of one answer. `decode` turns token ids into text, without special tokens; `spec` says what is complete."""

    def __init__(self, decode: Callable[[Sequence[int]], str], spec: AnswerFormat, stop: tuple[str, ...] = ()) -> None:
        self._decode, self._spec, self._stop = decode, spec, stop
        self._ids: list[int] = []
        self._sent = 0
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain now and was not given before. After a stop string: nothing any more."""
        if self.stopped:
            return ""
        self._ids.append(token)
        self.text = self._decode(self._ids).lstrip()
        cut = first_stop(self.text, self._stop)
        if cut is not None:
            self.text, self.stopped = self.text[:cut].rstrip(), True
        whole = complete(self.text, self._spec)
        if whole is not None:
            self.text, self.stopped = whole, True
        if self.stopped:
            return self._give(len(self.text))
        certain = len(self.text) - pending(self.text, self._stop)
        return self._give(len(self.text[:certain].rstrip(UNSETTLED).rstrip()))

    def end(self) -> str:
        """What was held back, when no more tokens come."""
        self.text = self.text.rstrip()
        return self._give(len(self.text))

    def _give(self, upto: int) -> str:
        piece = self.text[self._sent : max(upto, self._sent)]
        self._sent += len(piece)
        return piece


def first_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the earliest of the stop strings begins."""
    found = [at for s in stop if (at := text.find(s)) >= 0]
    return min(found) if found else None


def pending(text: str, stop: tuple[str, ...]) -> int:
    """How many characters at the end of `text` could be the beginning of a stop string."""
    return max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)

"""Tokens to text while they come: pieces that never break a character, ended by stop strings.

    stream = TextStream(decode, stop=("\\n\\n",))
    for token in tokens: send(stream.add(token))       # "" while a character of several tokens is not complete
    send(stream.end())                                 # pieces joined == stream.text, the text of a plain answer

A character may be spread over several tokens (an emoji over four). The decoder shows what is not complete yet as
U+FFFD, so a trailing run of these is held back until the next token settles it. Each step decodes the whole answer: the
cost grows with its square, which is 20 ms in all for 500 tokens, and the result is by construction that of one decode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNSETTLED = "\ufffd"


class TextStream:
    """Text of one answer. `decode` turns token ids into text, without special tokens."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._ids: list[int] = []
        self._sent = 0
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain now and was not given before. After a stop string: nothing any more."""
        if self.stopped:
            return ""
        self._ids.append(token)
        self.text = self._decode(self._ids)
        cut = first_stop(self.text, self._stop)
        if cut is not None:
            self.text, self.stopped = self.text[:cut], True
            return self._give(len(self.text))
        return self._give(len(self.text.rstrip(UNSETTLED)) - pending(self.text, self._stop))

    def end(self) -> str:
        """What was held back, when no more tokens come."""
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

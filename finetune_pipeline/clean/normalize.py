"""Two normal forms of a text: one in which similar texts are compared, one in which two texts are identical.

normalize("Where's my  ORDER (HV-48213)?!")    # "where s my order hv 48213": no punctuation
normalize("what is 3 - 4?")                    # "what is 3 - 4": between numbers punctuation has a meaning
normalize("???")                               # "???": a text of punctuation only is unchanged

identity(" cd ..\n")                            # "cd ..", which is not "cd ."
identity("Polish")                             # "Polish", which is not "polish"
"""

from __future__ import annotations

import re
import unicodedata

_BETWEEN_NUMBERS = re.compile(r"(?<=\d) ?([-*/%]) ?(?=\d)")
# private use characters, which the table below keeps
_KEPT = {"-": "\ue000", "*": "\ue001", "/": "\ue002", "%": "\ue003"}
_BACK = {ord(mark): sign for sign, mark in _KEPT.items()}


class _Table(dict[int, str]):
    """Maps punctuation to a space, and symbols and letters to themselves; filled as characters occur."""

    def __missing__(self, code: int) -> str:
        kind = unicodedata.category(chr(code))
        self[code] = result = " " if kind[0] in "PZ" or kind in ("Cc", "Cf") else chr(code)
        return result


_TABLE = _Table()


def normalize(text: str) -> str:
    """Unicode NFKC, case folded, without punctuation, single spaces. Symbols (+, €, emoji) are kept."""
    folded = text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    bare = " ".join(folded.translate(_TABLE).split())
    if _BETWEEN_NUMBERS.search(folded):
        marked = _BETWEEN_NUMBERS.sub(lambda match: f" {_KEPT[match[1]]} ", folded)
        bare = " ".join(marked.translate(_TABLE).translate(_BACK).split())
    return bare or folded.strip()


def identity(text: str) -> str:
    """Unicode NFC, without outer space. Every other character can have a meaning ("-v" and "-V") and is kept."""
    return unicodedata.normalize("NFC", text).strip()

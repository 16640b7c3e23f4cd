"""Detects traces of a wrong decoding (mojibake) in a text.

intact("naïve café")      # True
intact("a schÃ¶ne lamp")   # False
"""

from __future__ import annotations

import re

# The replacement character, a byte order mark within the text, control characters but for line ends and tabs, halves of
# surrogate pairs.
_BROKEN = re.compile("[\ufffd\ufeff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
# Mojibake is a few characters long, and one of them is not ASCII: of long ASCII parts only the ends are searched.
_LONG_ASCII = re.compile(r"(?<=[\x00-\x7f]{6})[\x00-\x7f]+(?=[\x00-\x7f]{6})")


def intact(text: str) -> bool:
    """Whether the text holds no character that only a wrong decoding leaves behind."""
    from ftfy.badness import is_bad  # one regular expression that knows what mojibake looks like

    if _BROKEN.search(text):
        return False
    return text.isascii() or not any(is_bad(piece) for piece in _LONG_ASCII.split(text) if not piece.isascii())

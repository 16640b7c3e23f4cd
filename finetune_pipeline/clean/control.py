"""Characters that nobody typed and nobody sees: control characters, terminal escapes, zero-width and direction marks.

Line ends and tabs stay, and so do the joiners that emoji and several scripts are written with (U+200C, U+200D).

    without_control("where is\\x00 my\\u200b order\\x1b[0m")    # "where is my order"
"""

from __future__ import annotations

import re

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f"  # C0 and C1 but for tab, line feed, return, next line
    "\u00ad\u200b\u200e\u200f\u2060-\u2064\ufeff\ufff9-\ufffb"  # soft hyphen, zero width, marks, byte order mark
    "\u202a-\u202e\u2066-\u2069]"  # direction overrides, also a way to hide text from readers
)


def without_control(text: str) -> str:
    """The text without them."""
    return _UNSEEN.sub("", _ESCAPES.sub("", text)) if _UNSEEN.search(text) else text

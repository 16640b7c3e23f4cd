"""White space: one kind of it, none at the ends, no runs of it. Indentation and fenced code stay as they are.

even_space("where  is\\u00a0my order \\r\\n\\n\\n\\nHV-48213 ")    # "where is my order\\n\\nHV-48213"
"""

from __future__ import annotations

import re

from finetune_pipeline.clean.code import outside_code

_LINE_ENDS = re.compile(r"\r\n?|[\x85\u2028\u2029]")
_ODD_SPACE = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_RUN = re.compile(r"(?<=\S)[ \t]{2,}(?=\S)")
_TRAILING = re.compile(r"[ \t]+(?=\n)")
_UNEVEN = re.compile(r"  |[\t\r]| \n|\n\n\n")  # without any of these, ASCII is even already
_BLANK_LINES = re.compile(r"\n{3,}")


def even_space(text: str) -> str:
    """The text with even white space."""
    if text.isascii() and not _UNEVEN.search(text):
        return text.strip()
    return outside_code(_even, _LINE_ENDS.sub("\n", text)).strip()


def _even(text: str) -> str:
    plain = _ODD_SPACE.sub(" ", text)
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", _RUN.sub(" ", plain)))

"""Code inside a text (between backticks) is not prose: rules for prose are applied around it.

outside_code(str.upper, "use `a < b` here")    # "USE `a < b` HERE"
"""

from __future__ import annotations

import re
from collections.abc import Callable

_CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)


def outside_code(rule: Callable[[str], str], text: str) -> str:
    """`rule` applied to all that is not between backticks."""
    if "`" not in text:
        return rule(text)
    parts = _CODE.split(text)
    return "".join(part if number % 2 else rule(part) for number, part in enumerate(parts))

"""What a reader gives: one row of a file as it was read, with its line, and what is wrong with it if it is unreadable.

Row(line=12, value={"message": "where is it?", "intent": "delivery"})
Row(line=13, value={"": "{\\"message"}, problem="not-json", detail="Unterminated string: line 1 column 2 (char 1)")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """`problem` is the slug of a drop ("not-json", "broken-row", "empty-row"); `value` is then what could be read, for
    the drop's id only. `detail` explains it, and never quotes the row (it may hold personal data)."""

    line: int
    value: Mapping[str, Any]
    problem: str | None = None
    detail: str = ""

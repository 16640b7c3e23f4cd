"""What will be learned, checked before a step is paid for. Pure: encoded rows in, checks out.

The faults it looks for leave the loss curve looking healthy: rows whose answer is masked away or cut, an end-of-turn
token that is never trained (the model then never stops), a chat template that differs between training and serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune_pipeline.records import Check
from finetune_pipeline.train.tokenize import Encoded

NAMED = 5


@dataclass(frozen=True, slots=True)
class Audit:
    """Counts over the training rows (tokens, not characters), and the checks made on them."""

    rows: int
    tokens: int
    supervised_tokens: int
    fewest_supervised: int
    longest_row: int
    shared_prefix: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"supervised_share": self.supervised_tokens / max(1, self.tokens)}


def audit(rows: Sequence[Encoded], end_ids: frozenset[int], context: int, prefix: int) -> Audit:
    """Look at every row. `end_ids`: the tokens that end a turn; `context`: the model's limit in tokens."""
    silent = [row.id for row in rows if len(row.answer) < 2]
    endless = [row.id for row in rows if not row.answer or row.answer[-1] not in end_ids]
    cut = [row.id for row in rows if len(row.ids) > context]
    other = [row.id for row in rows if not row.joined]
    checks = (
        _none("every row has supervised tokens", silent),
        _none("the end-of-turn token is trained in every row", endless),
        _none(f"no row is longer than the model's {context} tokens", cut),
        _none("training renders the prompt as serving does", other),
    )
    lengths = [len(row.answer) for row in rows]
    return Audit(
        rows=len(rows),
        tokens=sum(len(row.ids) for row in rows),
        supervised_tokens=sum(lengths),
        fewest_supervised=min(lengths, default=0),
        longest_row=max((len(row.ids) for row in rows), default=0),
        shared_prefix=prefix,
        checks=checks,
    )


def _none(name: str, rows: list[str]) -> Check:
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    observed = f"{len(rows)} rows: {', '.join(rows[:NAMED])}{more}" if rows else "none"
    return Check(name, not rows, "no row breaks it", observed)

"""The audit of the tokenized rows before the first step: what will be learned, and which rows are faulty.

    audit(rows, end_ids, max_tokens=8192, prefix_tokens=367).passed      # False: a row is longer than the limit

It finds faults that do not show in the loss curve: rows without supervised tokens or beyond the model's limit, an
end-of-turn token that is never trained (the model then never stops), and a chat template that differs between training
and serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune_pipeline.records import Check
from finetune_pipeline.train.tokenize import TokenizedExample

NAMED_ROWS = 5
SUPERVISED, END, LONGEST, PROMPT = (
    "every row has supervised tokens",
    "the end-of-turn token is trained in every row",
    "no row is longer than the model's context",
    "training renders the prompt as serving does",
)
HINTS = {
    SUPERVISED: "drop rows with an empty answer in the source (`train.turns: all` learns every turn of a conversation)",
    END: "choose a base model whose chat template ends every turn with a token of its `eos_token`",
    LONGEST: "set `clean.max_tokens` to at most that, or choose a base model with a longer context",
    PROMPT: "take what the chat template reads as reasoning (<think>…</think>) out of the answers, or choose a base "
    "model whose chat template renders a prompt the same with and without its answer",
}


@dataclass(frozen=True, slots=True)
class Audit:
    """audit.json: counts over the training rows, in tokens, and the checks. `fewest_supervised` and `longest_row` are
    of a single row; `shared_prefix` is the number of tokens that all prompts begin with."""

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

    @property
    def hint(self) -> str:
        """What to do about the checks that failed."""
        failed = [check.name for check in self.checks if not check.passed]
        return "; ".join(hint for name, hint in HINTS.items() if any(each.startswith(name) for each in failed))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"supervised_share": self.supervised_tokens / max(1, self.tokens)}


def audit(
    rows: Sequence[TokenizedExample],
    end_ids: frozenset[int],
    max_tokens: int,
    prefix_tokens: int,
    validation: Sequence[TokenizedExample] = (),
) -> Audit:
    """Check every row; those of `validation`, which choose the weights that are kept, are checked as well, and not
    counted. `end_ids`: the end-of-turn tokens; `max_tokens`: the model's limit (model_family.py)."""
    checked = [*rows, *validation]
    completions = [(row.id, completion) for row in checked for completion in row.completions]
    unsupervised = [id_ for id_, each in completions if len(each.learned) < 2]  # nothing but the end-of-turn token
    without_end = [id_ for id_, each in completions if not each.ids or each.ids[-1] not in end_ids]
    too_long = [row.id for row in checked if row.tokens > max_tokens]
    other_prompt = [row.id for row in checked if not row.prompt_matches]
    checks = (
        _no_rows(SUPERVISED, unsupervised),
        _no_rows(END, without_end),
        _no_rows(f"{LONGEST} of {max_tokens} tokens", too_long),
        _no_rows(PROMPT, other_prompt),
    )
    lengths = [row.learned for row in rows]
    return Audit(
        rows=len(rows),
        tokens=sum(len(row.prompt) + sum(len(each.ids) for each in row.completions) for row in rows),
        supervised_tokens=sum(lengths),
        fewest_supervised=min(lengths, default=0),
        longest_row=max((row.tokens for row in rows), default=0),
        shared_prefix=prefix_tokens,
        checks=checks,
    )


def _no_rows(name: str, violating: list[str]) -> Check:
    """A check that passes when no row violates it; names the first NAMED_ROWS ids."""
    more = f" and {len(violating) - NAMED_ROWS} more" if len(violating) > NAMED_ROWS else ""
    observed = f"{len(violating)} rows: {', '.join(violating[:NAMED_ROWS])}{more}" if violating else "none"
    return Check(name, not violating, "no such row", observed)

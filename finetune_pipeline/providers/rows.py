"""Training rows as the provider's JSONL, and its documented rules, checked before anything is uploaded.

    supervised   {"messages": [{"role": "system", …}, {"role": "user", …}, {"role": "assistant", …}]}
    dpo          {"input": {"messages": […]}, "preferred_output": [{"role": "assistant", …}],
                  "non_preferred_output": [{"role": "assistant", …}]}

Rules (OpenAI's guides on supervised fine-tuning and on direct preference optimization): at least 10 examples, a file
of at most 512 MB, roles system, user and assistant, an answer that is not empty at the end, and at most so many tokens
in a row, since a longer one is cut off there. The numbers are settings of `train.provider`: other providers differ.

    counted(rows, "Say the color.", provider, count)       # Counted(rows=754, tokens=182000), and no file
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.config import Provider
from finetune_pipeline.errors import DataError
from finetune_pipeline.records import Check, Example, dumps

MESSAGE_TOKENS, REPLY_TOKENS = 4, 3  # marks around each message and before an answer, by OpenAI's cookbook, rounded up
NAMED_ROWS = 5
Counter = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file: the row's id, what is sent, and the content of every message."""

    id: str
    body: dict[str, Any]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A file as it will be uploaded. `tokens`: of all lines, estimated with the local tokenizer; `ids`: the row of
    each line, in order; `size`: bytes."""

    path: Path
    ids: tuple[str, ...]
    tokens: int
    size: int
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """The rows that train, and the tokens of all of them in one epoch, estimated with the local tokenizer."""

    rows: int
    tokens: int


def counted(examples: Iterable[Example], system: str, provider: Provider, count: Counter) -> Counted:
    """What the file of these examples would hold, without writing it; `count`: the number of tokens of each text."""
    lengths = [tokens_of(line, count) for line in lines_of(examples, system, provider)]
    return Counted(len(lengths), sum(lengths))


def lines_of(examples: Iterable[Example], system: str, provider: Provider) -> Iterator[Line]:
    """The lines of a file; for DPO of those examples that have a rejected completion."""
    for row in examples:
        if provider.method != "dpo":
            yield supervised_line(row, system)
        elif row.rejected is not None:
            yield preference_line(row, row.rejected, system)


def tokens_of(line: Line, count: Counter) -> int:
    """The tokens that the provider trains on in one line: every message (both answers of a pair), and the marks."""
    return sum(count(line.texts)) + MESSAGE_TOKENS * len(line.texts) + REPLY_TOKENS


def supervised_line(row: Example, system: str) -> Line:
    """A conversation whose last message is learned."""
    messages = [*row.chat(system), {"role": "assistant", "content": row.completion}]
    return Line(row.id, {"messages": messages}, tuple(message["content"] for message in messages))


def preference_line(row: Example, rejected: str, system: str) -> Line:
    """A prompt with the row's own answer, which is preferred, and the one that was rejected."""
    chat = row.chat(system)
    body = {
        "input": {"messages": chat, "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": row.completion}],
        "non_preferred_output": [{"role": "assistant", "content": rejected}],
    }
    return Line(row.id, body, (*(message["content"] for message in chat), row.completion, rejected))


def prepare(path: Path, lines: Iterable[Line], provider: Provider, count: Counter, min_examples: int = 1) -> Prepared:
    """Write the file and check it. The result has failed checks where a rule is violated (`require_accepted`)."""
    ids: list[str] = []
    too_long, empty, no_question = [], [], []
    tokens = 0
    with path.open("w", encoding="utf-8") as out:
        for line in lines:
            out.write(dumps(line.body) + "\n")
            length = tokens_of(line, count)
            ids.append(line.id)
            tokens += length
            too_long += [line.id] if length > provider.max_example_tokens else []
            empty += [] if all(text.strip() for text in answers_of(line)) else [line.id]
            no_question += [] if "user" in roles_of(line) else [line.id]
    size, limit = path.stat().st_size, provider.max_file_mb
    checks = (
        Check("enough examples", len(ids) >= min_examples, f"at least {min_examples}", str(len(ids)), value=len(ids)),
        Check("size of the file", size <= limit * 1e6, f"at most {limit} MB", f"{size / 1e6:.1f} MB", value=size / 1e6),
        _no_rows(f"no row is longer than {provider.max_example_tokens} tokens (estimated)", too_long),
        _no_rows("no answer is empty", empty),
        _no_rows("every row has a message of the user", no_question),
    )
    return Prepared(path, tuple(ids), tokens, size, checks)


def require_accepted(prepared: Prepared) -> None:
    """DataError that names the rules which the file violates, and the rows."""
    failed = [f"{check.name}: {check.observed} ({check.expected})" for check in prepared.checks if not check.passed]
    if failed:
        raise DataError(
            f"the provider would refuse {prepared.path.name}: {'; '.join(failed)}",
            "fix or drop these rows, or correct the limits under `train.provider`; nothing was uploaded",
        )


def answers_of(line: Line) -> list[str]:
    """The answers that a line trains on or compares."""
    if "messages" in line.body:
        return [line.body["messages"][-1]["content"]]
    return [line.body[name][0]["content"] for name in ("preferred_output", "non_preferred_output")]


def roles_of(line: Line) -> set[str]:
    messages = line.body.get("messages") or line.body["input"]["messages"]
    return {message["role"] for message in messages}


def _no_rows(name: str, violating: list[str]) -> Check:
    more = f" and {len(violating) - NAMED_ROWS} more" if len(violating) > NAMED_ROWS else ""
    observed = f"{len(violating)} rows: {', '.join(violating[:NAMED_ROWS])}{more}" if violating else "none"
    return Check(name, not violating, "no such row", observed)

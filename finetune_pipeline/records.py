"""The nouns that flow through the pipeline. Values only: no I/O, no clock, no randomness.

What it is not: the declaration (`config.py`), or where things lie on disk (`store.py`).

An example as it lies in a JSONL file:

    {"id": "9f1c20e4a7b35d68", "source": "tickets", "origin": "tickets.csv:12", "group": null,
     "messages": [{"role": "user", "content": "where is hv 48213??"},
                  {"role": "assistant", "content": "{\"intent\": \"delivery\", ...}"}]}

The task's system prompt is not stored in the rows: it belongs to the declaration, and is added where a row is
rendered (`Example.chat`), unless the row brings a system message of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from finetune_pipeline.errors import reading

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


def content_id(*parts: str) -> str:
    """16 hexadecimal digits (64 bits) of the SHA-256 of `parts`, joined so that ("ab", "c") != ("a", "bc")."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row: a conversation whose last message is the answer to learn.

    `id` is the hash of content and source as they were read (before cleaning), and never changes afterwards;
    `origin` says where a person finds it ("tickets.csv:12").
    """

    id: str
    messages: tuple[Message, ...]
    source: str
    origin: str
    group: str | None = None  # a hash of what the source says (ingest/groups.py)

    @property
    def prompt(self) -> str:
        """The last thing the user said."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def completion(self) -> str:
        last = self.messages[-1] if self.messages else None
        return last.content if last is not None and last.role == "assistant" else ""

    @property
    def content_hash(self) -> str:
        """Hash of what this row says now; a review is valid for exactly this content."""
        return content_id(*(part for m in self.messages for part in (m.role, m.content)))

    def chat(self, system: str) -> list[dict[str, str]]:
        """All messages but the answer, as a chat template takes them, headed by `system` unless the row has its own."""
        prompt = self.messages[:-1] if self.ends_with_completion else self.messages
        own = bool(prompt) and prompt[0].role == "system"
        head = [{"role": "system", "content": system}] if system and not own else []
        return head + [{"role": m.role, "content": m.content} for m in prompt]

    @property
    def ends_with_completion(self) -> bool:
        return bool(self.messages) and self.messages[-1].role == "assistant"

    def with_completion(self, completion: str) -> Example:
        return replace(self, messages=(*self.messages[:-1], Message("assistant", completion)))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"messages": [{"role": m.role, "content": m.content} for m in self.messages]}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Example:
        messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
        return Example(row["id"], messages, row["source"], row["origin"], row.get("group"))


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt with the answer people preferred and the one they did not (for DPO)."""

    id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    source: str
    origin: str
    group: str | None = None

    def as_example(self) -> Example:
        """The preferred answer as an example for supervised training."""
        messages = (*self.messages, Message("assistant", self.chosen))
        return Example(self.id, messages, self.source, self.origin, self.group)


@dataclass(frozen=True, slots=True)
class Fix:
    """A row that was fixed, and how: one line of the ledger. `rule` is a slug such as "html" or "pii-email"."""

    id: str
    origin: str
    stage: str
    rule: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that left the pipeline, and why: one line of the ledger. `reason` is a slug such as "exact-duplicate".

    `detail` names the evidence (the id of the row it duplicates, the schema's complaint); never personal data.
    """

    id: str
    origin: str
    stage: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Review:
    """What one expert said of one row. `content_hash` is `Example.content_hash` as shown; `completion` is that of
    an edit."""

    id: str
    content_hash: str
    reviewer: str
    decision: Literal["approve", "reject", "edit"]
    at: str
    completion: str | None = None
    note: str = ""
    recorded: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a verdict that a person can read: what was asked, what was found, whether it holds. `value` is what
    was found as a number, where it is one (a share, a count, a loss): Dagster plots it over runs."""

    name: str
    passed: bool
    expected: str
    observed: str
    severity: Literal["error", "warning"] = "error"
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate said about one artifact. `about` is that artifact's content hash: the next step re-reads this,
    and refuses when the hash is not that of the data it is about to use."""

    gate: str
    passed: bool
    about: str
    summary: str
    checks: tuple[Check, ...] = ()
    figures: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Verdict:
        checks = tuple(Check(**c) for c in row["checks"])
        return Verdict(row["gate"], row["passed"], row["about"], row["summary"], checks, dict(row["figures"]))


@dataclass(frozen=True, slots=True)
class Answer:
    """What one variant (zero_shot, few_shot, few_shot_retrieved, classical, tuned, ...) said to one row."""

    id: str
    variant: str
    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Score:
    """How one answer compares with the reference. `exact`: means the same, read leniently; `valid`: keeps the declared
    format as it stands; `fields`: for JSON answers, which of them are right."""

    id: str
    variant: str
    exact: bool
    valid: bool
    fields: Mapping[str, bool] = field(default_factory=dict)
    slice: str = ""


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """The registered model behind the endpoint, as an evaluation has to know it: `adapter` and `base` are content
    hashes, `adapter_key` finds the artifact, `max_new_tokens` is the longest answer that it may give."""

    version: int
    adapter: str
    adapter_key: str
    base: str
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Decision:
    """PROMOTE, REJECT or INCONCLUSIVE, with every reason as a check. `adapter` and `evaluation` are content hashes."""

    outcome: Literal["PROMOTE", "REJECT", "INCONCLUSIVE"]
    adapter: str
    evaluation: str
    checks: tuple[Check, ...]
    summary: str
    figures: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished piece on disk: `folder` is local and complete, `manifest` is what was written last.

    `content_hash` is the hash of its files: the identity that verdicts, lineage and keys refer to.
    """

    asset: str
    key: str
    content_hash: str
    folder: Path
    manifest: Mapping[str, Any]

    @property
    def inputs_key(self) -> str:
        """The hash of what it is made from: the key without the number of a forced run (store/revisions.py)."""
        key, _, number = self.key.rpartition(".")
        return key if key and number.isdecimal() else self.key

    @property
    def summary(self) -> Mapping[str, Any]:
        summary: Mapping[str, Any] = self.manifest["summary"]
        return summary

    @property
    def verdict(self) -> Verdict | None:
        raw = self.manifest.get("verdict")
        return Verdict.from_json(raw) if raw else None

    def path(self, name: str) -> Path:
        return self.folder / name

    def reading(self, name: str) -> AbstractContextManager[None]:
        """A block that reads and parses the file `name`: what is wrong with it is a StorageError with its hint."""
        return reading(self.path(name), f"delete {self.folder} and run again")

    def json(self, name: str) -> Any:
        """The content of a JSON file. StorageError when it is missing or damaged."""
        with self.reading(name):
            return json.loads(self.path(name).read_text("utf-8"))

    def examples(self, name: str = "examples.jsonl") -> Iterator[Example]:
        """The rows of a file. StorageError when it is missing or damaged."""
        with self.reading(name):
            yield from map(Example.from_json, read_jsonl(self.path(name)))


class Reporter(Protocol):
    """Where a long step tells how far it is. Implemented by the command line, by Dagster, and silently by tests."""

    def log(self, text: str) -> None: ...

    def progress(self, what: str, done: int, total: int, **figures: float) -> None: ...

    def alive(self) -> None:
        """Called about once a second by whatever takes long; raises when the work was cancelled."""


class Silent:
    """A reporter that says nothing and never cancels."""

    def log(self, text: str) -> None:
        return None

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        return None

    def alive(self) -> None:
        return None


def dumps(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False, sort_keys=False)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of an artifact's file. StorageError when it is missing or damaged."""
    with reading(path, f"delete {path.parent} and run again"), path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write dataclass instances, `to_json` objects or plain dicts, a line each; gives the number of lines."""
    count = 0
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            plain = row.to_json() if hasattr(row, "to_json") else row if isinstance(row, dict) else asdict(row)
            out.write(dumps(plain) + "\n")
            count += 1
    return count
